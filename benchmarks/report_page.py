"""Size of a long run's report, and what it costs to write: report_page.py FOLDER

Makes a run folder of 1,000 iterations with 51 evaluations, and writes its report after each of them, as training does.
Then `node benchmarks/report_page.mjs FOLDER/report.html` measures how long Chromium takes to load the page.
"""

from __future__ import annotations

import math
import random
import sys
import time
from pathlib import Path

import torch

from flowward.evaluation.samples import Samples, grouped, members
from flowward.pages import report
from flowward.training.folder import RunFolder

ITERATIONS, EVERY = 1000, 20
CATEGORIES = ("single_object", "two_objects", "counting", "colors", "position", "color_attribution")
RUN = {"model": "scenes", "reward": ["scenes"], "algorithm": {"name": "flow_grpo"}, "run": {"iterations": ITERATIONS}}
METRICS = (
    *("reward_std", "zero_variance", "latent_rms", "loss", "gradient_norm", "divergence", "first_ratio_max"),
    *("reward/scenes", "reward/balance", "correlation/scenes/balance"),
    *(name + step for name in ("log_ratio", "clipped_up", "clipped_down", "pull")
      for step in ("", *(f"@{k}" for k in range(8)))),
)  # fmt: skip


def level(k: int) -> float:
    return 0.45 + 0.4 * (1 - math.exp(-k / 300))


def score(mean: float, n: int) -> dict:
    return {"mean": mean, "low": mean - 0.03, "high": mean + 0.03, "n": n, "over_prompts": None, "prompts": n}


def line(k: int) -> dict:
    found = {"iteration": k, "images": 288 * k, "health": ["equal rewards in 40% of the groups"] if k % 97 == 5 else []}
    found["seconds"] = {"rollout": 3 + random.random(), "reward": 0.1, "train": 4 + random.random(), "total": 8.0}
    if k:
        found |= {"reward": level(k) + random.gauss(0, 0.02)} | {name: random.random() for name in METRICS}
    if k % EVERY == 0:
        found["evaluation"] = {"seed": 1234, "images": 768, "prompts": "scenes-held-out", "scores": {}}
        for name in ("scenes-strict", "balance"):
            parts = {each: score(level(k) + random.gauss(0, 0.02), 128) for each in CATEGORIES}
            found["evaluation"]["scores"][name] = {"overall": score(level(k), 768), "categories": parts}
    return found


def pictures(run: RunFolder, k: int) -> None:
    """24 smooth pictures of 32 x 32 pixels, and three groups of 12."""
    images = torch.nn.functional.interpolate(torch.rand(36, 3, 6, 6), (32, 32), mode="bilinear")
    images = 0.8 * images + 0.05 * torch.rand(36, 3, 32, 32)
    texts = [f"prompt {n}: a red circle left of a blue square" for n in range(24)]
    marks = ["" if random.random() < level(k) else "2 objects instead of 3" for _ in texts]
    samples = Samples(images[:24], texts, [CATEGORIES[n % 6] for n in range(24)], marks)
    groups = grouped(texts[:3], members(images, torch.rand(36), torch.randn(36))) if k else []
    run.save_sample(k, samples.grid(), record=samples.record(k, groups))


def main(path: Path) -> None:
    random.seed(0)
    torch.manual_seed(0)
    run, spent = RunFolder.create(path, RUN), []
    for k in range(ITERATIONS + 1):
        run.append(line(k))
        if k % EVERY == 0:
            pictures(run, k)
            started = time.process_time()
            report.write(path)
            spent.append(time.process_time() - started)
    size = (path / "report.html").stat().st_size
    print(f"report of {ITERATIONS:,} iterations and {len(spent)} evaluations: {size / 1e6:.2f} MB")
    print(f"CPU seconds to write it: {spent[-1]:.2f}, and {sum(spent):.2f} for all {len(spent)} of the run")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
