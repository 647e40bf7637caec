"""Does `gamma: auto` reach the best fixed gamma? AdvantageFlow on scenes, a sweep of gamma, two rewards, three seeds.

    python benchmarks/gamma.py runs/gamma.jsonl [--only scenes-strict:auto:0 balance:0.2:1] [--seconds 420]
    python benchmarks/gamma.py runs/gamma.jsonl --table

Each run is one line of the file: its settings, the rewards of its iterations, what gamma auto chose, and one evaluation
at the end on fixed images. Runs that are in the file are not made again, so it can be stopped and started again;
--seconds starts no run after that time. The most telling runs come first.

The setting is one in which gamma acts: `old` keeps 0.9 of itself from the first iteration on, as in the preset `paper`,
and there are two optimiser steps per rollout. With one step and an `old` that follows at once, gamma has no effect. A
gamma of at most 1 leaves some points without a minimum, so fixed gammas need `signed`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from flowward import models, prompts, rewards
from flowward.algorithms import AdvantageFlow
from flowward.evaluation.evaluate import Evaluation, Evaluator
from flowward.learning.points import Renoise
from flowward.learning.snapshots import Decay
from flowward.training.course import TrainingError
from flowward.training.run import Run
from flowward.training.trainer import Trainer

REWARDS = ("scenes-strict", "balance")
GAMMAS = ("auto", "0.2", "1", "2", "0.5", "5")  # the most telling first
SEEDS = (0, 1, 2)
WATCHED = ("gamma", "gamma_factor", "line_search", "ess", "old_nats", "reference_nats", "latent_rms", "residual")
LOST = 5.0  # points below the base: a run that ends there has diverged
Line = dict[str, Any]


def plan() -> list[str]:
    """The names REWARD:GAMMA:SEED of all runs: the first four gammas before the rest, then by reward and by seed."""
    parts = (GAMMAS[:4], GAMMAS[4:])
    return [f"{r}:{g}:{seed}" for part in parts for r in REWARDS for seed in SEEDS for g in part]


def algorithm(gamma: str) -> AdvantageFlow:
    """With lag, so that gamma acts."""
    given: dict[str, Any] = {"gamma": "auto"} if gamma == "auto" else {"gamma": float(gamma), "signed": True}
    return AdvantageFlow(old=Decay(0.9), points=Renoise(2), **given)


def trained(name: str, iterations: int, images: int, rate: float, measured: int) -> Line:
    """One run to its end, and so many images `measured`. The base model has gamma `base`."""
    reward, gamma, seed = name.split(":")
    began, policy = time.perf_counter(), models.load("scenes", precision="auto")
    evaluator = Evaluator(policy, Evaluation(rewards=(reward,), images=measured), prompts.load("scenes-held-out"))
    line: Line = {"run": name, "iterations": iterations, "images": images, "rate": rate, "reward": [], "failed": None}
    if gamma != "base":
        run = Run(
            iterations=iterations, images_per_update=images // 2, group_size=12, updates_per_iteration=2, warmup=10,
            microbatch=96, rollout_batch=images, learning_rate=rate, seed=int(seed), schedule="constant",
        )  # fmt: skip
        trainer = Trainer(algorithm(gamma), policy, rewards.load([reward]), prompts.load("scenes"), run)
        watched: dict[str, list[float]] = {}
        try:
            for _ in range(iterations):
                metrics: Mapping[str, float] = trainer.step().metrics
                line["reward"].append(round(metrics["reward"], 4))
                for key in WATCHED:
                    watched.setdefault(key, []).append(float(f"{metrics.get(key, float('nan')):.4g}"))
        except TrainingError as error:
            line["failed"] = str(error)
        line["watched"] = watched
    score = evaluator.scores()["scores"][reward]["overall"]
    line["score"] = [round(100 * score[key], 2) for key in ("mean", "low", "high")]
    return line | {"seconds": round(time.perf_counter() - began, 1), "threads": torch.get_num_threads()}


def show(lines: list[Line]) -> None:
    """The score of each gamma, seed by seed, and what auto chose."""
    found = {line["run"]: line for line in lines}
    for reward in REWARDS:
        base = found.get(f"{reward}:base:0")
        print(f"{reward}: held-out score in percent; the base has {base['score'][0] if base else '?'}")
        for gamma in ("auto", *sorted(GAMMAS[1:], key=float)):
            own = [found[name] for seed in SEEDS if (name := f"{reward}:{gamma}:{seed}") in found]
            if not own:
                continue
            scores = [line["score"][0] for line in own]
            cells = "  ".join(f"{score:5.1f}" for score in scores)
            floor = base["score"][0] - LOST if base else 0.0
            lost = sum(bool(line["failed"]) or line["score"][0] < floor for line in own)
            nats = median(value for line in own for value in line["watched"]["old_nats"][-10:])
            said = f"  diverged: {lost}" if lost else ""
            print(f"  gamma {gamma:5} {cells}   mean {mean(scores):5.1f}   old_nats {nats:6.1f}{said}")
    for line in (line for line in lines if ":auto:" in line["run"]):
        tail = {key: line["watched"][key][-1] for key in ("gamma", "gamma_factor", "line_search", "ess")}
        print(f"  {line['run']} ends with", ", ".join(f"{key} {value:g}" for key, value in tail.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", nargs="+", help="runs by name, REWARD:GAMMA:SEED, or by the beginning of a name")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no run after this time")
    parser.add_argument("--iterations", type=int, default=24)
    parser.add_argument("--images", type=int, default=96, help="per iteration")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--evaluation-images", type=int, default=600, help="of each run, in all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="run nothing, and print the table of the file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = [json.loads(line) for line in options.file.read_text().splitlines()] if options.file.is_file() else []
    names = [*(f"{reward}:base:0" for reward in REWARDS), *plan()]
    chosen = [name for name in names if not options.only or name.startswith(tuple(options.only))]
    started, done = time.perf_counter(), {line["run"] for line in lines}
    for name in () if options.table else chosen:
        if name in done or time.perf_counter() - started > options.seconds:
            continue
        line = trained(name, options.iterations, options.images, options.learning_rate, options.evaluation_images)
        print(line["run"], line["score"], f"{line['seconds']} s", line["failed"] or "", flush=True)
        with options.file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        lines.append(line)
    show(lines)


if __name__ == "__main__":
    main()
