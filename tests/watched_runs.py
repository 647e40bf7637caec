"""Run folders as training leaves them on disk, made without a model."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import yaml

PNG = base64.b64encode(b"\x89PNG not really").decode()


def line(k: int, headline: str = "x-strict", **more: Any) -> dict[str, Any]:
    """The metrics of an iteration; every fifth has an evaluation."""
    found: dict[str, Any] = {"iteration": k, "images": 8 * k, "seconds": {"total": 2.0}, "health": []}
    if k:
        found |= {"reward": 0.5 + 0.01 * k, "gradient_norm": 0.25 + k % 7 / 100, "pull@0": 1.0}
    if k % 5 == 0:
        score = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 4}
        scored = {"overall": score, "categories": {"a": score, "b": score}}
        found["evaluation"] = {"prompts": "held-out", "scores": {headline: scored}}
    return found | more


def written(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(each) + "\n" for each in lines)


def made(path: Path, many: int = 11, headline: str = "x-strict", **config: Any) -> Path:
    """A run of so many lines, with the pictures of its first evaluation."""
    (path / "samples").mkdir(parents=True)
    settings = {"model": "scenes", "reward": ["scenes"], "algorithm": {"name": "awm"}, "run": {"iterations": 10}}
    (path / "config.yaml").write_text(yaml.safe_dump(settings | config))
    (path / "metrics.jsonl").write_text(written([line(k, headline) for k in range(many)]))
    picture = {"number": 0, "prompt": "<b>a cat</b>", "image": PNG, "mark": "", "scores": {"x": 0.5}}
    (path / "samples" / "000000.json").write_text(json.dumps({"iteration": 0, "samples": [picture]}))
    return path
