"""Does a run wait for a reward server? One that takes as long for a rollout batch as drawing it does.

    OMP_NUM_THREADS=1 python benchmarks/reward_overlap.py [--rounds 5]

A reward server on this machine (`flowward serve-reward`) sleeps for the time that a rollout batch takes, which is
measured first, and then scores. Printed: seconds of an iteration with that reward and with one that costs nothing, and
the first over max(rollout, reward) + train.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flowward import models, prompts, rewards
from flowward.algorithms import AdvantageFlow
from flowward.training.run import Run
from flowward.training.trainer import Trainer

SECONDS = "FLOWWARD_SLEEP"  # environment variable of the server
BATCH, BATCHES = 48, 4


def sleepy(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
    """The brightness, after a rest that does not depend on how many images there are beyond a batch."""
    time.sleep(float(os.environ.get(SECONDS, "0")) * len(images) / BATCH)
    return images.mean((1, 2, 3))


@contextmanager
def server(seconds: float) -> Iterator[str]:
    """The address of one that takes so long for a batch."""
    words = [sys.executable, "-m", "flowward", "serve-reward", f"{__file__}:sleepy", "--port", "0"]
    with subprocess.Popen(
        words, env={**os.environ, SECONDS: str(seconds)}, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            yield next(word for word in process.stdout.readline().split() if word.startswith("http"))
        finally:
            process.terminate()


def trainer(reward: Any) -> Trainer:
    run = Run(images_per_update=BATCHES * BATCH, group_size=12, rollout_batch=BATCH, microbatch=96)
    policy = models.load("scenes", precision="float32")
    return Trainer(AdvantageFlow(), policy, reward, prompts.load("scenes"), run)


def measured(reward: Any, rounds: int) -> dict[str, float]:
    """Medians of the seconds of each part of an iteration, and of the whole."""
    one = trainer(reward)
    one.step()
    steps = [one.step().seconds for _ in range(rounds)]
    found = {name: statistics.median(each[name] for each in steps) for name in steps[0]}
    return {**found, "iteration": statistics.median(sum(each.values()) for each in steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    alone = measured(sleepy, options.rounds)
    with server(alone["rollout"] / BATCHES) as address:
        beside = measured(rewards.load([address]), options.rounds)
    ideal = alone["rollout"] + alone["train"]  # the reward takes as long as the rollout
    for name, found in (("free reward", alone), ("server", beside)):
        print(f"{name:12}" + "  ".join(f"{part} {seconds:6.2f} s" for part, seconds in found.items()))
    print(f"iteration over max(rollout, reward) + train: {beside['iteration'] / ideal:.3f}")


if __name__ == "__main__":
    main()
