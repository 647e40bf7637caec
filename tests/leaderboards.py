"""A study.json by hand: four algorithms whose order, ties and costs are known. The numbers are made up."""

from __future__ import annotations

from typing import Any

COSTS = {"advantageflow": 0.011, "diffusion_nft": 0.012, "awm": 0.013, "flow_grpo": 0.03}
SECONDS = {"awm": 0.62, "diffusion_nft": 0.61, "advantageflow": 0.60, "flow_grpo": 0.50}  # at equal time
IMAGES = {"flow_grpo": 0.70, "awm": 0.62, "diffusion_nft": 0.61, "advantageflow": 0.60}  # at equal images
MARGIN = 0.015  # half an interval of a difference: 2 points apart are told apart, 1 point is not


def interval(mean: float, half: float = 0.025) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def budget(amount: float, scores: dict[str, float]) -> dict[str, Any]:
    best = max(scores, key=lambda name: scores[name])
    rows = {}
    for name, own in scores.items():
        over = {other: interval(own - scores[other], MARGIN) for other in scores if other != name}
        rows[name] = {**interval(own), "over": over, "below_best": over.get(best), "collapsed": int(name == "awm")}
    return {"amount": amount, "target": 0.55, "best": best, "algorithms": rows}


def study(changes: dict[str, float] | None = None, **more: dict[str, Any]) -> dict[str, Any]:
    """The scores of `strict` at equal time are changed by `changes`; `more` are other budgets of `soft`."""
    strict = {"seconds": budget(50, {**SECONDS, **(changes or {})}), "images": budget(4320, IMAGES)}
    soft = more or {"images": budget(4320, IMAGES)}
    rewards = {"strict": ["scenes-strict"], "soft": ["scenes-soft"], "both": ["scenes"]}
    each = {"strict": strict, "soft": soft, "both": strict}
    return {
        "study": {"model": "scenes", "score": "scenes-strict", "seeds": [0, 1, 2], "rewards": rewards},
        "costs": {name: {"seconds": own, "evaluations": 20.0, "images": 288} for name, own in COSTS.items()},
        "rewards": [{"reward": name, "base": interval(0.382), "budgets": own} for name, own in each.items()],
        "hours": 1.5,
        "machine": "2 CPU cores, Linux x86_64",
    }
