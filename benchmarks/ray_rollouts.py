"""Time of an iteration with one trainer and one drawer in Ray (k = 1), beside one process that does both, interleaved.

    OMP_NUM_THREADS=1 python benchmarks/ray_rollouts.py [--rounds 5] [--images 288] [--rollout-batch 288]

The built-in model and its usual settings, float32, one thread for each process. A round is one iteration of the plain
run and two with drawers, of which the second counts: before the first the drawers have had time to get ahead. No drawer
works while the plain run does. The CPU time is that of the trainer alone: on busy cores it says more than the seconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from concurrent import futures
from dataclasses import replace

import torch

from flowward import models, prompts, rewards
from flowward.training import config
from flowward.training.rollouts.ray import Actors, Model
from flowward.training.rollouts.remote import RemoteTrainer
from flowward.training.trainer import Trainer

PATIENCE = 600.0  # seconds for what the drawers still have to draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=288)
    parser.add_argument("--rollout-batch", type=int, default=288)
    parser.add_argument("--algorithm", default="advantageflow")
    parser.add_argument("--drawers", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    one, two = trainers(given)
    times: dict[str, list[float]] = {"one process": [], "with drawers": []}
    try:
        one.step()  # copies are still what the policy is, so it takes less time than the next ones
        two.step()  # the actors start
        for number in range(given.rounds):
            wait(two)
            times["one process"].append(timed(one, f"round {number}, one process "))
            two.step()
            times["with drawers"].append(timed(two, f"round {number}, with drawers"))
    finally:
        two.close()
    alone, shared = (statistics.median(found) for found in times.values())
    print(f"medians of {given.rounds}: {alone:.2f} s and {shared:.2f} s, so {alone / shared:.2f} times as fast")


def trainers(given: argparse.Namespace) -> tuple[Trainer, RemoteTrainer]:
    """The plain one, and one with drawers."""
    settings = config.settings_type(given.algorithm)()
    sizes = {"images_per_update": given.images, "rollout_batch": given.rollout_batch}
    run = replace(settings.run, **sizes, iterations=1000)
    how, reward, texts = settings.algorithm, rewards.load(settings.reward), prompts.load(settings.prompts)
    own, other = (models.load("scenes", None, "float32", run.seed) for _ in range(2))
    actors = Actors(Model.of(other, None, how.rollout, run), other, given.drawers)
    return Trainer(how, own, reward, texts, run), RemoteTrainer(how, other, reward, texts, run, actors.studio, 1)


def wait(trainer: RemoteTrainer) -> None:
    """Until the drawers have drawn what they were asked for."""
    for blocks in trainer._drawn.values():
        futures.wait(blocks, PATIENCE)


def timed(trainer: Trainer, what: str) -> float:
    """Seconds of an iteration."""
    started, worked = time.perf_counter(), time.process_time()
    step = trainer.step()
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    parts = ", ".join(f"{name} {value:.2f}" for name, value in step.seconds.items())
    print(f"{what} {seconds:6.2f} s ({parts}; {worked:.2f} s of CPU; load {os.getloadavg()[0]:.1f})", flush=True)
    return seconds


if __name__ == "__main__":
    main()
