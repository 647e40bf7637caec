"""How long does a checkpoint hold training up, and how much work is it to resume a run?

    python benchmarks/checkpoint.py [--iterations 3] [--lora-rank N]

Trains the built-in model with its default settings. Pause: seconds of writing a checkpoint (hash and flush to the disk
included), as a share of an iteration. Resume: CPU seconds of a new process until its first iteration begins.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WORDS = ["train", "--evaluate-every", "0", "--evaluation.images", "24", "--checkpoint-every", "1", "--threads", "1"]
CODE = """
import json, sys, time
from flowward.cli import main
from flowward.system import checkpoint
from flowward.training.loop import Loop

pauses, steps, began, save, step = [], [], [], checkpoint.save, Loop.step

def timed_save(*given):
    start = time.perf_counter()
    save(*given)
    pauses.append(time.perf_counter() - start)

def timed_step(self):
    began.append(time.process_time())
    start = time.perf_counter()
    found = step(self)
    steps.append(time.perf_counter() - start)
    return found

checkpoint.save, Loop.step = timed_save, timed_step
assert main(sys.argv[2:]) == 0
json.dump({"pauses": pauses, "steps": steps, "work": began[0]}, open(sys.argv[1], "w"))
"""


def run(folder: Path, *words: str) -> dict[str, list[float]]:
    """The figures of one process."""
    subprocess.run([sys.executable, "-c", CODE, str(folder / "figures.json"), *words], check=True)
    found: dict[str, list[float]] = json.loads((folder / "figures.json").read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--lora-rank", default="none")
    how = parser.parse_args()
    with tempfile.TemporaryDirectory() as where:
        folder, first = Path(where), str(how.iterations)
        out = str(folder / "run")
        one = run(folder, *WORDS, "--output", out, "--iterations", first, "--lora-rank", how.lora_rank)
        size = max((folder / "run/checkpoints").iterdir()).stat().st_size
        two = run(folder, "train", "--resume", out, "--iterations", str(how.iterations + 1))
    pause, step = statistics.median(one["pauses"]), statistics.median(one["steps"])
    print(f"load {os.getloadavg()[0]:.1f}, checkpoint of {size / 1e6:.1f} MB")
    print(f"pause {pause:.3f} s, iteration {step:.2f} s: {pause / step:.2%}")
    print(f"resume to the first iteration: {two['work']:.1f} s of CPU")


if __name__ == "__main__":
    main()
