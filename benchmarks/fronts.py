"""The front of a palette against a soup of two runs, on scenes with strict accuracy and balance, at equal images.

    python benchmarks/fronts.py --output runs/fronts [--seeds 0] [--minutes 7]

The palette sees as many images as the two single runs of the soup together. What is done is not repeated, and a run
that is stopped by --minutes goes on where it was. results.jsonl has one line per finished part.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flowward import prompts
from flowward.evaluation.evaluate import Evaluation, load_rewards
from flowward.evaluation.fronts import compared
from flowward.export import trained
from flowward.export.grids import measured, refuse
from flowward.process.rollout import Sampler
from flowward.training import config
from flowward.training.assembly import started

SCORES = ("scenes-strict", "balance")
IMAGES = 144  # per iteration
ITERATIONS = 24  # of a single run


def settings(folder: Path, names: tuple[str, ...], seed: int) -> Any:
    many = len(names)
    found = config.starting("advantageflow", None, None)
    run = replace(
        found.run,
        output=folder,
        seed=seed,
        iterations=many * ITERATIONS,
        images_per_update=IMAGES,
        learning_rate=2e-3,
        mix="advantages",
        evaluate_every=0,
        checkpoint_every=10,
        keep=1,
    )
    how = replace(found.evaluation, images=24)
    return replace(found, run=run, evaluation=how, reward=names, lora_rank=32, palette=many > 1)


def train(folder: Path, names: tuple[str, ...], seed: int, until: float) -> dict[str, Any] | None:
    """The curve of a run; None if time is up before its end."""
    resume, began = (folder / "config.yaml").is_file(), time.process_time()
    with started(settings(folder, names, seed), resume, resume) as (made, held):
        for _ in made.trainer.steps(made.evaluator, held):
            if time.monotonic() > until:
                break
        done = made.trainer.iteration
    spent = time.process_time() - began
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    curve = {name: [line.get(f"reward/{name}", line.get("reward")) for line in lines[1:]] for name in names}
    return {"curve": curve, "cpu_s": spent} if done == len(names) * ITERATIONS else None


def measure(policy: Any, name: str, images: int) -> Any:
    how = Evaluation(images=images, rewards=SCORES, sampler=Sampler(grid="model"))
    return measured(policy, name, refuse(policy, SCORES, 5), prompts.load(how.prompts), how, load_rewards(SCORES))


def parts(folder: Path, seed: int, images: int) -> list[tuple[str, Any]]:
    runs = {"palette": SCORES, **{name: (name,) for name in SCORES}}
    found: list[tuple[str, Any]] = [
        (f"train {name}", lambda until, name=name, own=own: train(folder / name, own, seed, until))
        for name, own in runs.items()
    ]

    def front(until: float) -> dict[str, Any]:
        grids = [
            measure(trained.load(folder / "palette"), "palette", images),
            measure(trained.soup({name: str(folder / name) for name in SCORES}), "soup", images),
        ]
        return compared(grids, [0.0, 0.0])

    return [*found, ("front", front)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=Path("runs/fronts"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=1e9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    until = time.monotonic() + 60 * options.minutes
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "results.jsonl"
    done = [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []
    known = {(each["seed"], each["part"]) for each in done}
    for seed in options.seeds:
        for name, part in parts(options.output / str(seed), seed, options.images):
            if (seed, name) in known:
                continue
            found = part(until)
            if found is None or time.monotonic() > until + 120:
                return
            with file.open("a", encoding="utf-8") as opened:
                opened.write(json.dumps({"seed": seed, "part": name, **found}) + "\n")
            print(seed, name, flush=True)
            if time.monotonic() > until:
                return


if __name__ == "__main__":
    main()
