"""The reward server that somebody may copy speaks the language of the client, without flowward."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from judges import IMAGES, LEVELS, PROMPTS

from flowward import rewards
from flowward.rewards import RewardError
from flowward.rewards.service.remote import Remote

pytestmark = pytest.mark.usefixtures("hasty")


def test_the_example_speaks_the_same_language(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    path = Path(__file__).parents[2] / "examples" / "reward_server.py"
    spec = importlib.util.spec_from_file_location("reward_server", path)
    assert spec and spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    source = path.read_text()
    assert not re.search(r"^\s*(from|import) (flowward|torch)", source, re.MULTILINE)

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
