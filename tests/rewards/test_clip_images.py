"""Images reach a network as its processor would prepare them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_clip
import torch
import transformers
from PIL import Image
from torch import Tensor

from flowward.rewards.network import Preprocess


def pil(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images]


@pytest.mark.parametrize("shape", [(64, 64), (32, 32), (31, 50), (100, 33), (20, 24), (150, 97)])
@pytest.mark.parametrize("kind", ["noise", "smooth"])
@pytest.mark.parametrize("config", [{}, {"resample": 2}, {"size": {"shortest_edge": 40}},
                                    {"size": {"height": 24, "width": 36}, "do_center_crop": False}])  # fmt: skip
def test_images_are_prepared_as_the_processor_does(
    shape: tuple[int, int], kind: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise has the hardest edges; there the order of directions matters, which newer Pillows choose by shape."""
    resize = Image.Image.resize

    def along_the_width_first(image: Any, size: tuple[int, int], resample: Any = None, **more: Any) -> Any:
        return resize(resize(image, (size[0], image.height), resample), size, resample)

    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (*shape, 3) if kind == "noise" else (5, 5, 3), dtype=np.uint8)
    image = resize(Image.fromarray(pixels), shape[::-1], Image.Resampling.BICUBIC)
    processor = transformers.CLIPImageProcessorPil(**{**tiny_clip.processor(), **config})
    if kind == "noise":
        monkeypatch.setattr(Image.Image, "resize", along_the_width_first)
    wanted = processor(image, return_tensors="pt").pixel_values
    mine = Preprocess.of(processor)(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255)
    levels = (mine - wanted).abs() * torch.tensor(processor.image_std).view(-1, 1, 1) * 255
    assert mine.shape == wanted.shape and levels.max() < 1.2 and levels.mean() < 0.35


def test_processors_of_any_age_are_read(tmp_path: Path) -> None:
    """The files beside CLIP's weights on the hub are of 2022, with plain numbers for sizes."""
    old = {**tiny_clip.processor(), "size": 224, "crop_size": 224, "feature_extractor_type": "CLIPFeatureExtractor"}
    for key in ("image_processor_type", "do_rescale", "rescale_factor", "do_convert_rgb"):
        del old[key]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    found = Preprocess.of(transformers.AutoImageProcessor.from_pretrained(tmp_path))
    assert (found.size, found.shortest, found.fit, found.mode) == ((224, 224), 224, "crop", "bicubic")
    assert found.mean == pytest.approx(tiny_clip.processor()["image_mean"])


@pytest.mark.parametrize("config", [{"do_normalize": False}, {"resample": 1}, {"rescale_factor": 1.0},
                                    {"size": {"shortest_edge": 16}}])  # fmt: skip
def test_what_is_not_known_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"CLIPImageProcessor.* image preprocessing that flowward does not support"):
        Preprocess.of(transformers.CLIPImageProcessorPil(**{**tiny_clip.processor(), **config}))


@pytest.mark.parametrize("shape", [(48, 96), (96, 48), (45, 96), (64, 64), (10, 20)])
def test_a_padded_image_is_whole(shape: tuple[int, int]) -> None:
    """White stays white, what is added is black, and lies on both sides alike."""
    prepare = Preprocess((32, 32), (0.0,) * 3, (1.0,) * 3, fit="pad")
    out = prepare(torch.ones(1, 3, *shape))
    rows, columns = (round(32 * edge / max(shape)) for edge in shape)
    top, left = (32 - rows) // 2, (32 - columns) // 2
    wanted = torch.zeros(1, 3, 32, 32)
    wanted[..., top : top + rows, left : left + columns] = 1
    torch.testing.assert_close(out, wanted, atol=1e-6, rtol=0)
