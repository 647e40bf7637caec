"""Pixels of every mode and depth of PNG, TIFF and WebP files: true values over white, or refused by name."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from flowward.prompts.image_files import refuse_broken
from flowward.prompts.pictures import picture
from flowward.prompts.pixels import rgb


def stored(values: Any, mode: str | None = None, kind: str = "PNG", dtype: Any = np.uint8, **more: Any) -> Image.Image:
    """A file of these pixels, opened again."""
    file = io.BytesIO()
    image = Image.fromarray(np.array(values, dtype))
    if mode:
        image = Image.frombytes(mode, image.size, np.array(values, dtype).tobytes())
    image.save(file, kind, **more)
    return Image.open(io.BytesIO(file.getvalue()))


def tiff(bits: int, data: bytes, white_is_0: bool = False, order: str = "<", form: int = 1, width: int = 2) -> Any:
    """A grey TIFF file of one row, in the kinds that Pillow does not write."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: 0 if white_is_0 else 1, 273: 0, 277: 1, 278: 1, 279: len(data)}
    tags[339], begin = form, 10 + 12 * 10 + 4
    tags[273] = begin
    rows = b"".join(struct.pack(order + "HHIHH", tag, 3, 1, value, 0) for tag, value in sorted(tags.items()))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(tags))
    return Image.open(io.BytesIO(head + rows + bytes(4) + data))


def greys(image: Any) -> list[int]:
    found = np.asarray(rgb(image))
    assert found.dtype == np.uint8 and (found == found[..., :1]).all()
    return [int(value) for value in found[..., 0].ravel()]


def colours(image: Any) -> list[list[int]]:
    return [[int(value) for value in pixel] for pixel in np.asarray(rgb(image)).reshape(-1, 3)]


SIXTEEN = [[0, 7 * 257, 65535]]


@pytest.mark.parametrize(
    ("image", "right"),
    [
        (lambda: stored([[False, True]], dtype=bool), [0, 255]),
        (lambda: stored([[0, 7, 255]]), [0, 7, 255]),
        (lambda: stored(SIXTEEN, dtype=np.uint16), [0, 7, 255]),
        (lambda: stored(SIXTEEN, kind="TIFF", dtype=np.uint16), [0, 7, 255]),
        (lambda: stored(SIXTEEN, kind="PPM", dtype=np.uint16), [0, 7, 255]),
        (lambda: tiff(16, struct.pack("<HH", 0, 100 * 257), white_is_0=True), [255, 155]),
        (lambda: tiff(16, struct.pack(">HH", 0, 100 * 257), order=">"), [0, 100]),
        (lambda: tiff(12, bytes([0, 0x0F, 0xFF])), [0, 255]),
        (lambda: tiff(8, bytes([0, 100]), white_is_0=True), [255, 155]),
        (lambda: stored([[[0, 255], [0, 0], [100, 51]]], "LA"), [0, 255, 224]),
        (lambda: stored([[[0, 255], [0, 0], [100, 51]]], "LA", "TIFF"), [0, 255, 224]),
        (lambda: stored([[0, 9]], transparency=0), [255, 9]),
        (lambda: stored(SIXTEEN, dtype=np.uint16, transparency=0), [255, 7, 255]),
        (lambda: stored([[[0, 0, 0], [9, 9, 9]]], transparency=(0, 0, 0)), [255, 9]),
    ],
)
def test_grey_pixels_keep_their_values(image: Any, right: list[int]) -> None:
    assert greys(image()) == right


def palette(**more: Any) -> Image.Image:
    image, file = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P"), io.BytesIO()
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(file, "PNG", **more)
    return Image.open(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize(
    ("image", "right"),
    [
        (lambda: stored([[[1, 2, 3]]]), [[1, 2, 3]]),
        (lambda: stored([[[1, 2, 3]]], kind="WEBP", lossless=True), [[1, 2, 3]]),
        (lambda: stored([[[0, 0, 0, 0], [255, 0, 255, 0]]], "RGBA"), [[255] * 3] * 2),
        (lambda: stored([[[100, 0, 0, 51]]], "RGBA"), [[224, 204, 204]]),
        (lambda: stored([[[0, 0, 0, 0]]], "RGBA", "TIFF"), [[255] * 3]),
        (lambda: stored([[[9, 0, 0, 0]]], "RGBA", "WEBP", lossless=True), [[255] * 3]),
        (palette, [[10, 20, 30], [200, 100, 50]]),
        (lambda: palette(transparency=0), [[255] * 3, [200, 100, 50]]),
        (lambda: palette(transparency=bytes([255, 0])), [[10, 20, 30], [255] * 3]),
        (lambda: stored([[[0, 0, 0, 0], [255, 0, 0, 0]]], "CMYK", "TIFF"), [[255] * 3, [0, 255, 255]]),
        (lambda: stored([[[0, 0, 0, 255]]], "CMYK", "TIFF"), [[0] * 3]),
        (lambda: stored([[[255, 128, 128], [0, 128, 128]]], "YCbCr", "TIFF"), [[255] * 3, [0] * 3]),
    ],
)  # fmt: skip
def test_colours_keep_their_values_over_white(image: Any, right: list[list[int]]) -> None:
    assert colours(image()) == right


def test_lab_is_converted() -> None:
    found = colours(stored([[[255, 0, 0], [0, 0, 0], [137, 80, 67]]], "LAB", "TIFF"))
    assert np.abs(np.array(found) - [[255] * 3, [0] * 3, [255, 0, 0]]).max() <= 12


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (lambda: tiff(16, struct.pack("<hh", -5, 5), form=2), r"signed whole numbers \(mode I\)"),
        (lambda: tiff(32, struct.pack("<ff", 0, 1), form=3), r"floating-point numbers \(mode F\)"),
    ],
)
def test_numbers_without_a_range_are_refused(image: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        rgb(image())
    (tmp_path / "x.tif").write_bytes(image().fp.getvalue())
    for read in (refuse_broken, lambda path: picture(path, (8, 8))):
        with pytest.raises(ValueError, match=said) as error:
            read(tmp_path / "x.tif")
        assert "x.tif" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused(kind: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 200)]
    frames[0].save(tmp_path / "x", kind, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"x is not an image .* it has 2 frames or pages; save the one that you mean"):
        refuse_broken(tmp_path / "x")


def test_the_first_frame_of_a_photo_is_the_photo(tmp_path: Path) -> None:
    """Phones store previews and depth after it."""
    frames = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (0, 200)]
    frames[0].save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=frames[1:])
    refuse_broken(tmp_path / "x.jpg")
    assert picture(tmp_path / "x.jpg", (8, 8)).max() < 0.05


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_every_kind_is_turned_by_its_tag(kind: str, tmp_path: Path) -> None:
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, 16:] = 255
    image = Image.fromarray(wide)
    image.getexif()[0x0112] = 6
    image.save(tmp_path / "x", kind, exif=image.getexif())
    found = picture(tmp_path / "x", (32, 16))
    torch.testing.assert_close(found[0, :, 0], torch.tensor([0.0] * 16 + [1.0] * 16), rtol=0, atol=0.05)


# Colour profiles


def profile(name: str = "sRGB", exchanged: bool = False) -> bytes:
    """sRGB's, or one whose red is sRGB's green and the other way round."""
    found = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if exchanged:
        many = struct.unpack(">I", found[128:132])[0]
        places = {bytes(found[at : at + 4]): at + 4 for at in range(132, 132 + 12 * many, 12)}
        red, green = (slice(places[tag], places[tag] + 8) for tag in (b"rXYZ", b"gXYZ"))
        found[red], found[green] = found[green], found[red]
    return bytes(found).replace("sRGB".encode("utf-16-be"), name.encode("utf-16-be"))


def test_colours_go_through_their_profile() -> None:
    pixels = [[[200, 100, 50], [255, 255, 255]]]
    assert colours(stored(pixels, icc_profile=profile())) == pixels[0]
    found = colours(stored(pixels, icc_profile=profile("swap", exchanged=True)))
    assert np.abs(np.array(found) - [[100, 200, 50], [255, 255, 255]]).max() <= 2
    clear = [[[0, 0, 0, 0], [200, 100, 50, 255]]]
    found = colours(stored(clear, "RGBA", icc_profile=profile("swap", exchanged=True)))
    assert np.abs(np.array(found) - [[255, 255, 255], [100, 200, 50]]).max() <= 2


def test_a_broken_profile_or_one_of_another_mode_is_ignored() -> None:
    assert colours(stored([[[200, 100, 50]]], icc_profile=b"nonsense")) == [[200, 100, 50]]
    assert greys(stored([[7, 200]], icc_profile=profile("swap", exchanged=True))) == [7, 200]


# The cases that were reported


def test_pictures_that_look_the_same_are_the_same(tmp_path: Path) -> None:
    """Whatever stands under the transparent part."""
    tensors = []
    for under in ((0, 0, 0), (255, 0, 255)):
        pixels = np.zeros((64, 64, 4), np.uint8)
        pixels[:32] = (*under, 0)
        pixels[32:] = (0, 0, 200, 255)
        Image.fromarray(pixels).save(tmp_path / "x.png")
        tensors.append(picture(tmp_path / "x.png", (64, 64)))
    assert torch.equal(*tensors)
    assert (tensors[0][:, :30] == 1).all() and (tensors[0][0, 34:] == 0).all()
