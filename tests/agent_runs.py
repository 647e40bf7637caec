"""Run folders of agents as training leaves them on disk, made without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowward.agent import episodes
from flowward.training.folder import RunFolder

MODULES = {
    "planner": "world",
    "executor": "http://127.0.0.1:8000/v1#a-small-model",
    "verifier": "rule",
    "generator": "same",
    "analysis": "none",
}
CONFIG = {
    "kind": "agent",
    "model": "world",
    "reward": ["exact"],
    "algorithm": {"name": "agentflow"},
    "run": {"iterations": 20},
}


def score(mean: float, n: int = 40) -> dict[str, Any]:
    found = {"mean": mean, "low": max(0.0, mean - 0.1), "high": min(1.0, mean + 0.1), "n": n}
    return found | {"over_prompts": None, "prompts": n}


def behaviour(guess: float, turns: float = 2.0, **more: Any) -> dict[str, Any]:
    return {
        "turns": turns,
        "ends": {"stopped": 1.0, "turns": 0.0, "time": 0.0, "failed": 0.0},
        "tools": {"1": {"guess": guess, "search": 1 - guess, "n": 40}, "2": {"search": 1.0, "n": 20}},
        "used": {"guess": guess, "search": 1.0},
        "troubles": {"empty": 0.0, "unreadable": 0.0, "tool": 0.0, "arguments": 0.0, "error": 0.0},
        "cut": 0.0,
        "undecided": 0.0,
        "shortened": 0.0,
        "dropped": 0.0,
        "answer_tokens": 3.5,
        **more,
    }


def evaluation(success: float, guess: float = 0.5, **more: Any) -> dict[str, Any]:
    parts = {"lookup": score(success, 20), "sum": score(success / 2, 20)}
    one = {"verdicts": True, "overall": score(success), "categories": parts}
    return {
        "modules": MODULES,
        "temperature": 1.0,
        "max_turns": 5,
        "prompts": "world-held-out",
        "samples": "episodes",
        "weights": "policy",
        "seed": 1234,
        "episodes": 40,
        "scores": {"exact": one, "exact (greedy)": one},
        "behaviour": {"sampled": behaviour(guess), "greedy": behaviour(guess)},
        **more,
    }


def line(k: int, **more: Any) -> dict[str, Any]:
    """The metrics of an iteration, without an evaluation."""
    found: dict[str, Any] = {"iteration": k, "episodes": 64 * k, "health": []}
    if k:
        found |= {"reward": 0.3 + k / 100, "reward_std": 0.4, "zero_variance": 0.2, "gradient_norm": 0.3, "kl": 0.01}
        found |= {"turns": 2.0, "one_turn": 0.1, "end/stopped": 1.0, "end/turns": 0.0, "end/time": 0.0}
        found |= {"end/failed": 0.0, "trouble/unreadable": 0.02 if k == 3 else 0.0, "cut": 0.0, "answer_tokens": 3.5}
        found |= {"tool/search": 0.8} | ({"tool/guess": 0.2} if k < 10 else {})
        found |= {"speed": {"episodes_per_second": 9.0}}
        seconds = {"tools": 0.5, "executor": 1.0, "rollout": 2.0, "reward": 0.25, "train": 0.25, "total": 4.0}
    else:
        seconds = {"evaluate": 1.0, "total": 1.0}
    return found | {"seconds": seconds} | more


def turn(tool: str | None = "search", result: str = "9", **more: Any) -> dict[str, Any]:
    return {
        "said": f"{tool} width arlo",
        "tool": tool,
        "goal": "",
        "context": "width arlo",
        "arguments": {"query": "width arlo"},
        "result": result,
        "trouble": "",
        "stop": True,
        "verdict": "search was used",
        **more,
    }


def episode(question: str, right: bool, category: str = "lookup", **more: Any) -> dict[str, Any]:
    return {
        "question": question,
        "category": category,
        "expected": ["9"],
        "scores": {"exact": float(right)},
        "answer": "9" if right else "55",
        "end": "stopped",
        "turns": [turn()],
        **more,
    }


def made(
    path: Path, lines: list[dict[str, Any]], shown: dict[int, list[dict[str, Any]]] | None = None, **config: Any
) -> RunFolder:
    """A run of these lines, and of these episodes by the iteration of their evaluation."""
    run = RunFolder.create(path, CONFIG | config)
    for each in lines:
        run.append(each)
    for iteration, found in (shown or {}).items():
        episodes.keep(run, iteration, found)
    return run
