"""The reward server that somebody may copy speaks the language of the client, without flowward."""

from __future__ import annotations

import importlib.util
import re
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from judges import IMAGES, LEVELS, PROMPTS

from flowward import rewards
from flowward.rewards import RewardError
from flowward.rewards.service.remote import Remote

pytestmark = pytest.mark.usefixtures("hasty")


PATH = Path(__file__).parents[2] / "examples" / "reward_server.py"


def loaded() -> Any:
    spec = importlib.util.spec_from_file_location("reward_server", PATH)
    assert spec and spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def test_the_example_speaks_the_same_language() -> None:
    example = loaded()
    assert not re.search(r"^\s*(from|import) (flowward|torch)", PATH.read_text(), re.MULTILINE)

    def brightness(images: np.ndarray, prompts: list[str], metadata: Any) -> list[float]:
        if prompts[0] == "bad":
            raise KeyError("weights")
        return [float(image.mean()) + len(prompt) for image, prompt in zip(images, prompts, strict=True)]

    server = example.serve(brightness, "brightness", port=0, token="secret")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        at = f"http://127.0.0.1:{server.server_address[1]}"
        with pytest.raises(ValueError, match="401"):
            Remote(at, token="wrong")
        for encoding in ("float32", "float16", "uint8"):
            remote = Remote(at, token="secret", batch=4, encoding=encoding)
            found = remote(IMAGES, PROMPTS)
            assert found.tolist() == pytest.approx(
                (LEVELS + torch.tensor([len(p) for p in PROMPTS])).tolist(), abs=1e-3
            )
        rewards.refuse(remote, PROMPTS)
        with pytest.raises(RewardError, match="500: KeyError"):
            remote(IMAGES[:1], ["bad"])
    finally:
        server.shutdown()
        server.server_close()


def module(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    made = ModuleType(name)
    made.__dict__.update(contents)
    monkeypatch.setitem(sys.modules, name, made)


def test_hpsv3_gets_pictures_and_its_mean_is_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    class Inferencer:
        def __init__(self, device: str):
            assert device == "cuda"

        def reward(self, image_paths: list[Any], prompts: list[str]) -> Any:
            return [(np.asarray(each).mean() + len(text), 9.0) for each, text in zip(image_paths, prompts, strict=True)]

    module(monkeypatch, "hpsv3", HPSv3RewardInferencer=Inferencer)
    score = loaded().SCORERS["hpsv3"](None)
    images = np.full((2, 3, 4, 4), 0.2, np.float32)
    assert score(images, ["a", "bcd"], None) == [52.0, 54.0]  # 0.2 x 255 + letters


def test_videoalign_gets_films_of_all_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    films: dict[str, np.ndarray] = {}

    def write(path: str, frames: list[np.ndarray], fps: float, macro_block_size: int) -> None:
        assert fps == 16 and macro_block_size == 1 and path.endswith(".mp4")  # sides stay as they are
        films[path] = np.stack(frames)

    class Inference:
        def __init__(self, folder: str, device: str):
            assert (folder, device) == ("checkpoints", "cuda")

        def reward(self, paths: list[str], prompts: list[str], use_norm: bool) -> Any:
            assert use_norm and prompts == ["a", "b"]
            return [{"MQ": float(films[path].mean()), "Overall": 0.0} for path in paths]

    module(monkeypatch, "imageio")
    module(monkeypatch, "imageio.v2", mimwrite=write)
    sys.modules["imageio"].v2 = sys.modules["imageio.v2"]  # type: ignore[attr-defined]
    module(monkeypatch, "inference", VideoVLMRewardInference=Inference)
    monkeypatch.setattr(sys, "path", list(sys.path))
    example = loaded()
    score = example.SCORERS["videoalign"](SimpleNamespace(checkpoints="checkpoints", part="MQ", fps=16.0))
    videos = np.stack([np.zeros((5, 3, 4, 6), np.float32), np.ones((5, 3, 4, 6), np.float32)])
    assert score(videos, ["a", "b"], None) == [0.0, 255.0]
    assert {film.shape for film in films.values()} == {(5, 4, 6, 3)}
    assert "videoalign" in example.VIDEOS
