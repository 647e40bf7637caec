"""The pixels of an image file as a viewer shows them: 8-bit sRGB, turned by its EXIF tag, over white.

Pillow's own conversion drops alpha, clips 16 bits to 8, and ignores colour profiles. This needs no torch.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # modes of grey pixels with more than 8 bits
SIXTEEN = ("PNG", "PPM")  # formats whose mode I has 16 bits
KNOWN = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", *DEEP[1:])
PAGES = ("MPO", "PSD")  # formats whose first frame is the whole picture; in MPO the others are depth or previews
BITS, PHOTOMETRIC = 258, 262  # TIFF tags


def refuse_unclear(image: Any) -> None:
    """Raise ValueError if an image has no single meaning: several frames, or numbers without a known range."""
    many = getattr(image, "n_frames", 1)
    if many > 1 and image.format not in PAGES:
        raise ValueError(f"it has {many} frames or pages; save the one that you mean as a file of its own")
    if image.mode not in KNOWN and not (image.mode == "I" and image.format in SIXTEEN):
        kind = {"I": "32-bit or signed whole numbers", "F": "floating-point numbers"}.get(image.mode, "of another kind")
        raise ValueError(
            f"its pixels are {kind} (mode {image.mode}), so black and white are not known; "
            "save it with 8 or 16 bits per channel"
        )
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        raise ValueError("it has 16 bits per channel and one transparent colour; save it with an alpha channel")


def rgb(image: Any) -> Image.Image:
    """An open image as 8-bit sRGB.

    Transparent parts are composed over white. More than 8 bits of grey are rounded; 16-bit colours keep their upper 8
    bits. Colours go through the embedded profile, if it is valid.

    Raises:
        ValueError: see `refuse_unclear`.
        OSError: the file is truncated.
    """
    refuse_unclear(image)
    black, white = _ends(image)
    profile, turned = image.info.get("icc_profile"), ImageOps.exif_transpose(image)
    if turned.mode in DEEP:
        turned = _rounded(turned, black, white)
    if turned.has_transparency_data:
        whole = turned.convert("RGBA")
        turned = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")
    return _standard(turned, profile)


def _ends(image: Any) -> tuple[int, int]:
    """The values of black and white of deep grey pixels."""
    if image.format != "TIFF":
        return 0, 65535
    white = 2 ** image.tag_v2.get(BITS, (16,))[0] - 1
    return (white, 0) if image.tag_v2.get(PHOTOMETRIC) == 0 else (0, white)


def _rounded(image: Any, black: int, white: int) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    grey = Image.fromarray(np.rint(255 * (values - black) / (white - black)).clip(0, 255).astype(np.uint8))
    if (key := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def _standard(image: Image.Image, profile: bytes | None) -> Image.Image:
    """To sRGB, through the profile; one that is broken or belongs to another mode is ignored, as viewers do."""
    if image.mode not in ("L", "CMYK", "LAB"):
        image = image.convert("RGB")
    if image.mode != "LAB" and not profile:
        return image.convert("RGB")
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile or b"")) if image.mode != "LAB" else None
        if own and "sRGB" in ImageCms.getProfileDescription(own):
            return image.convert("RGB")
        source: Any = own or ImageCms.createProfile("LAB")
        found = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        if image.mode == "LAB":
            raise ValueError(f"its colours (mode LAB) cannot be converted: {error}") from error
        return image.convert("RGB")
    assert found is not None  # only a conversion in place returns None
    return found
