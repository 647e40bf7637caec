"""AgentFlow on the built-in world: three seeds, controls, and statistics by turn against by trajectory.

    python benchmarks/agentflow.py --output runs/agentflow [--only main shuffled first statistics]

Every run is one process with one thread; a run that is finished is not repeated. Results: results.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowward.agent import config
from flowward.agent.assembly import AgentAssembly, assembled
from flowward.agent.trainer import Scored
from flowward.system.streams import generator


def settings(seed: int, **algorithm: Any) -> config.Settings:
    found = config.starting("world", None)
    run = replace(found.run, seed=seed, output=None, evaluate_every=0)
    return replace(found, run=run, algorithm=replace(found.algorithm, **algorithm))


def shuffled(made: AgentAssembly) -> None:
    """Give every episode the advantage of another one."""
    trainer = made.trainer
    plain = trainer.credit

    def credit(found: Scored, group: Tensor) -> Tensor:
        own = torch.zeros(len(group), dtype=torch.float64).index_put((found.trace.episode,), plain(found, group))
        order = torch.randperm(len(group), generator=generator("shuffled", trainer.run.seed, trainer.iteration))
        return own[order][found.trace.episode]

    trainer.credit = credit  # type: ignore[method-assign]


def runs() -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """(part, name, seed, fields of the algorithm)"""
    for seed in range(3):
        yield "main", f"trajectory, seed {seed}", seed, {}
    for seed in range(3):
        yield "shuffled", f"shuffled advantages, seed {seed}", seed, {}
        yield "first", f"first turn only, seed {seed}", seed, {"turns": "first"}
    for seed in range(5):
        yield "statistics", f"statistics by turn, seed {seed}", seed, {"statistics": "turn"}
        if seed > 2:
            yield "statistics", f"trajectory, seed {seed}", seed, {}


def measured(made: AgentAssembly) -> dict[str, Any]:
    found = made.evaluator.measure().summary()
    return {
        **{name: score["overall"] for name, score in found["scores"].items()},
        "strata": {name: each["mean"] for name, each in found["scores"]["exact"]["categories"].items()},
        "turns": found["behaviour"]["sampled"]["turns"],
        "used": found["behaviour"]["sampled"]["used"],
    }


def one(part: str, seed: int, algorithm: dict[str, Any]) -> dict[str, Any]:
    started = time.process_time()
    made = assembled(settings(seed, **algorithm))
    loaded = time.process_time() - started
    if part == "shuffled":
        shuffled(made)
    before = measured(made)
    began = time.process_time()
    curve = [step.metrics["reward"] for step in made.trainer.steps()]
    spent = time.process_time() - began
    return {"before": before, "after": measured(made), "curve": curve, "training_cpu_s": spent, "loading_cpu_s": loaded}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=Path("runs/agentflow"))
    parser.add_argument("--only", nargs="*", default=["main", "shuffled", "first", "statistics"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.output.mkdir(parents=True, exist_ok=True)
    file = asked.output / "results.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for part, name, seed, algorithm in runs():
        if part in asked.only and name not in found:
            found[name] = one(part, seed, algorithm)
            file.write_text(json.dumps(found, indent=1))
            after = found[name]["after"]
            print(
                f"{name}: {found[name]['before']['exact']['mean']:.3f} -> {after['exact']['mean']:.3f} sampled, "
                f"{after['exact (greedy)']['mean']:.3f} greedy, turns {after['turns']:.2f}, "
                f"guess {after['used'].get('guess', 0):.1%}, strata "
                + " ".join(f"{key} {value:.2f}" for key, value in after["strata"].items())
                + f", {found[name]['training_cpu_s']:.0f} CPU s",
                flush=True,
            )


if __name__ == "__main__":
    main()
