"""Experts that are trained one by one and then merged, against one run on everything, with equal numbers of images.

    python benchmarks/distillation.py runs/distillation [--seeds 0 1 2] [--expert 15] [--merge 10] [--only experts]

Per seed: an expert for each of three categories of scenes, trained by AdvantageFlow from the base model on prompts of
its category alone; the base model again, taught by the three (`opd`); and one AdvantageFlow run on all three, with as
many images as the experts and their merging together. Each is a run folder, made by `flowward train`. Finished ones are
kept and unfinished ones are continued, so it can be stopped at any time. Each run is one line of JSON in results.jsonl:
strict accuracy on held-out prompts of the three categories, with 95 % intervals. At the end a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from flowward.prompts import load
from flowward.training.folder import RunFolder

CATEGORIES = ("counting", "position", "color_attribution")
RESULTS = "results.jsonl"


def prompt_file(folder: Path, name: str) -> Path:
    """The prompts of the three categories among those of a built-in set."""
    file, texts = folder / f"{name}.jsonl", load(name)
    rows = zip(texts.texts, texts.categories, strict=True)
    lines = [json.dumps({"prompt": text, "category": category}) for text, category in rows if category in CATEGORIES]
    if not file.is_file():
        file.write_text("\n".join(lines) + "\n")
    return file


def finished(run: Path) -> bool:
    summary = run / "summary.json"
    return summary.is_file() and bool(json.loads(summary.read_text())["finished"])


def train(folder: Path, name: str, seed: int, iterations: int, images: int, words: list[str]) -> None:
    """One run to its end, or on to its end."""
    run = folder / f"{name}-{seed}"
    if finished(run):
        return
    common = [
        *("--prompts", str(prompt_file(folder, "scenes")), "--precision", "float32"),
        *("--evaluation.prompts", str(prompt_file(folder, "scenes-held-out")), "--evaluation.images", str(images)),
        *("--evaluate-every", "0", "--checkpoint-every", "5", "--keep", "1"),
        *("--seed", str(seed), "--iterations", str(iterations)),
    ]
    command = [*words, *common, "--output", str(run), "--resume", "auto"]
    subprocess.run([sys.executable, "-m", "flowward", "train", *command], check=True)


def result(run: Path) -> dict[str, Any]:
    """Strict accuracy of the base and at the end, in percent: of all images, and of each category."""
    lines, (name, _, seed) = RunFolder.open(run).lines(), run.name.rpartition("-")
    return {
        "run": name,
        "seed": int(seed),
        "iterations": lines[-1]["iteration"],
        "images": lines[-1]["images"],
        "seconds": round(sum(line["seconds"]["total"] for line in lines)),
        "base": scores(lines[0]),
        "strict": scores(lines[-1]),
    }


def scores(line: dict[str, Any]) -> dict[str, list[float]]:
    found = line["evaluation"]["scores"]["scenes-strict"]
    each = {"overall": found["overall"], **{name: found["categories"][name] for name in CATEGORIES}}
    return {name: [round(100 * own[key], 1) for key in ("mean", "low", "high")] for name, own in each.items()}


def alone(category: str) -> list[str]:
    """Options for a run on one category."""
    return ["--prompt-weights", *(f"{each}={int(each == category)}" for each in CATEGORIES)]


def overhead(run: Path) -> str:
    """An iteration of a finished merging over its bare network evaluations."""
    import torch

    from flowward.training import assembly, bench, config

    torch.set_num_threads(1)
    settings = config.from_dict(yaml.safe_load((run / "config.yaml").read_text()))
    settings = replace(settings, run=replace(settings.run, output=None))
    found = bench.of(assembly.assembled(settings).trainer)
    calls = ", ".join(f"{count} {what}" for what, count in found.calls.items())
    return f"iteration {found.iteration:.3f} s, bare networks {found.networks:.3f} s, ratio {found.ratio:.3f} ({calls})"


def show(folder: Path) -> None:
    """Write the lines of the finished runs, and print them as a table."""
    lines = [result(run) for run in sorted(folder.iterdir()) if finished(run)]
    (folder / RESULTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{'':28}{'images':>8}" + "".join(f"{name:>26}" for name in ("overall", *CATEGORIES)))
    for each in sorted(lines, key=lambda line: (line["seed"], line["run"])):
        cells = [each["strict"][name] for name in ("overall", *CATEGORIES)]
        said = "".join(f"{f'{mean} [{low}, {high}]':>26}" for mean, low, high in cells)
        print(f"{each['run']:24}{each['seed']:>4}{each['images']:>8}{said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--expert", type=int, default=15, help="iterations of each expert")
    parser.add_argument("--merge", type=int, default=10, help="iterations of their merging")
    parser.add_argument("--images", type=int, default=600, help="per evaluation")
    parser.add_argument("--overhead", action="store_true", help="time the merging of the first seed, and nothing else")
    parser.add_argument("--only", choices=["experts", "all", "merged"], help="one kind of run (default: each kind)")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if options.overhead:
        print(overhead(folder / f"merged-{options.seeds[0]}"))
        return
    kinds = [options.only] if options.only else ["experts", "all", "merged"]
    for seed in options.seeds:
        if "experts" in kinds:
            for name in CATEGORIES:
                train(folder, f"expert-{name}", seed, options.expert, options.images, alone(name))
        if "merged" in kinds:
            taught = [f"{name}={folder / f'expert-{name}-{seed}'}" for name in CATEGORIES]
            words = ["--algorithm", "opd", "--teachers", *taught]
            train(folder, "merged", seed, options.merge, options.images, words)
        if "all" in kinds:
            iterations = len(CATEGORIES) * options.expert + options.merge
            train(folder, "all", seed, iterations, options.images, [])
    show(folder)


if __name__ == "__main__":
    main()
