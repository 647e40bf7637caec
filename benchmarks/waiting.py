"""How should CPU threads wait for each other? Seconds of an iteration on a quiet machine, and beside busy processes.

    python benchmarks/waiting.py [--iterations 3] [--images 48] [--threads 2]

Needs Linux, two cores, and a machine with nothing else to do; takes about six minutes. For every setting, a process of
its own trains the built-in model: some iterations alone, as many beside one process that never rests, then beside two.
Printed: a table of medians with the share of the cores that training got (docs/notes/openmp.md), and whether the
rewards of all settings are identical. The last row has one thread, whose sums may be rounded differently.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

BUSY = (0, 1, 2)  # processes beside the training
SETTINGS = {
    "libgomp's default (300,000 rounds)": {"GOMP_SPINCOUNT": "300000"},
    "30,000 rounds": {"GOMP_SPINCOUNT": "30000"},
    "**3,000 rounds**": {"GOMP_SPINCOUNT": "3000"},
    "1,000 rounds": {"GOMP_SPINCOUNT": "1000"},
    "`OMP_WAIT_POLICY=passive`": {"OMP_WAIT_POLICY": "passive"},
}


@contextmanager
def hogs(number: int) -> Iterator[None]:
    """So many processes that never rest."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def train(iterations: int, images: int, threads: int) -> None:
    """In a process of its own: prints (seconds, share, reward) of each iteration as JSON, a list per number of hogs."""
    import torch

    from flowward import models, prompts, rewards
    from flowward.algorithms import AdvantageFlow
    from flowward.training.run import Run
    from flowward.training.trainer import Trainer

    torch.set_num_threads(threads)
    run = Run(images_per_update=images, group_size=12, rollout_batch=images, microbatch=images)
    one = Trainer(AdvantageFlow(), models.load("scenes"), rewards.load("scenes"), prompts.load("scenes"), run)
    one.step()  # warms up
    found = []
    for number in BUSY:
        with hogs(number):
            steps = [one.step() for _ in range(iterations)]
        found.append([(sum(step.seconds.values()), step.cpu_share, step.metrics["reward"]) for step in steps])
    print(json.dumps(found))


def measured(options: argparse.Namespace, threads: int, setting: dict[str, str]) -> list[list[Any]]:
    """What `train` prints under a setting."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    words = ["--worker", "--iterations", options.iterations, "--images", options.images, "--threads", threads]
    command = [sys.executable, __file__, *map(str, words)]
    done = subprocess.run(command, env=kept | setting, stdout=subprocess.PIPE, text=True, check=True)
    found: list[list[Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(name: str, phases: Sequence[Sequence[Any]]) -> str:
    """Of the table: seconds, and the share in brackets."""
    cells = []
    for phase in phases:
        shares = [share for _, share, _ in phase if share is not None]
        said = f" ({statistics.median(shares):.2f})" if shares else ""
        cells.append(f"{statistics.median(seconds for seconds, _, _ in phase):.2f}{said}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return train(options.iterations, options.images, options.threads)
    print(f"load of the machine before: {os.getloadavg()[0]:.2f}\n")
    print("| threads wait | quiet | one busy process | two |\n| --- | --- | --- | --- |")
    rewards = set()
    for name, setting in SETTINGS.items():
        phases = measured(options, options.threads, setting)
        rewards.add(tuple(reward for phase in phases for _, _, reward in phase))
        print(row(name, phases), flush=True)
    print(row("`--threads 1`", measured(options, 1, SETTINGS["**3,000 rounds**"])))
    print(f"\nrewards {'identical' if len(rewards) == 1 else 'NOT identical'} with {options.threads} threads")


if __name__ == "__main__":
    main()
