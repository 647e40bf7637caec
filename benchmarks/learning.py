"""Does every algorithm learn on scenes? Default settings, several seeds, equal numbers of images.

    python benchmarks/learning.py runs/learning [--algorithms awm fdfo] [--seeds 0 1 2] [--images 31680]

Each run is a run folder of its own, made by `flowward train`; finished ones are kept, so it can be stopped and started
again. At the end a table: strict accuracy on 1,200 held-out images before and after, per seed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from flowward.algorithms import ALGORITHMS
from flowward.config import settings_type
from flowward.folder import RunFolder

SHARES = 2  # evaluations at equal distances, after the base's


def learn(folder: Path, name: str, seed: int, images: int, more: list[str]) -> None:
    """One run to its end, or on to its end."""
    iterations = images // settings_type(name)().run.images
    run = folder / f"{name}-{seed}"
    if (run / "summary.json").is_file() and json.loads((run / "summary.json").read_text())["finished"]:
        return
    words = ["--resume", str(run)] if (run / "config.yaml").is_file() else ["--algorithm", name, "--output", str(run)]
    words += ["--seed", str(seed), "--iterations", str(iterations), "--evaluate-every", str(iterations // SHARES)]
    subprocess.run([sys.executable, "-m", "flowward", "train", *words, *more], check=True)


def evaluations(run: Path) -> list[tuple[int, dict[str, Any]]]:
    """(images drawn, strict accuracy) at each evaluation."""
    lines = [line for line in RunFolder.open(run).lines() if "evaluation" in line]
    return [(line["images"], line["evaluation"]["scores"]["scenes-strict"]["overall"]) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=31680, help="per run (31680: 110 iterations of the demo)")
    options, more = parser.parse_known_args()
    for seed in options.seeds:
        for name in options.algorithms:
            learn(options.folder, name, seed, options.images, more)
    print(f"{'':16}{'seed':>6}   strict accuracy on held-out prompts, percent, with 95 % intervals")
    for name in options.algorithms:
        for seed in options.seeds:
            found = evaluations(options.folder / f"{name}-{seed}")
            cells = "   ".join(
                f"{images:>6}: {100 * s['mean']:4.1f} [{100 * s['low']:4.1f}, {100 * s['high']:4.1f}]"
                for images, s in found
            )
            rises = found[-1][1]["low"] > found[0][1]["high"]
            print(f"{name:16}{seed:>6}   {cells}   {'rises' if rises else 'NO RISE'}")


if __name__ == "__main__":
    main()
