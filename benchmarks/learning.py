"""Does every algorithm learn on scenes? Default settings, several seeds, equal numbers of images.

    python benchmarks/learning.py runs/learning [--algorithms awm fdfo] [--seeds 0 1 2] [--images 11520]
    python benchmarks/learning.py runs/learning --record docs/learning.json --figure docs/learning.png

Each run is a run folder of its own, made by `flowward train`; finished ones are kept, so it can be stopped and started
again. At the end a table: strict accuracy on 1,200 held-out images before and after, per seed. The second form runs
nothing: it adds the finished runs of the folder to a file of results, prints the table of that file, and draws it (for
which matplotlib is needed: pip install flowward[figures]).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from flowward.algorithms import ALGORITHMS
from flowward.algorithms.presets import facts
from flowward.training.config import settings_type
from flowward.training.folder import RunFolder

SHARES = 2  # evaluations at equal distances, after the base's
Result = dict[str, Any]


def learn(folder: Path, name: str, seed: int, images: int, precision: str, more: list[str]) -> None:
    """One run to its end, or on to its end."""
    iterations = images // settings_type(name)().run.images
    run = folder / f"{name}-{seed}"
    if finished(run):
        return
    new = ["--algorithm", name, "--output", str(run), "--precision", precision]
    words = ["--resume", str(run)] if (run / "config.yaml").is_file() else new
    words += ["--seed", str(seed), "--iterations", str(iterations), "--evaluate-every", str(iterations // SHARES)]
    subprocess.run([sys.executable, "-m", "flowward", "train", *words, *more], check=True)


def finished(run: Path) -> bool:
    summary = run / "summary.json"
    return summary.is_file() and bool(json.loads(summary.read_text())["finished"])


def result(run: Path) -> Result:
    """What is worth keeping of a run."""
    folder, summary = RunFolder.open(run), json.loads((run / "summary.json").read_text())
    lines, config = folder.lines(), folder.config()
    measured = [(line["images"], line["evaluation"]["scores"]["scenes-strict"]["overall"]) for line in lines
                if "evaluation" in line]  # fmt: skip
    return {
        "algorithm": config["algorithm"]["name"],
        "seed": config["run"]["seed"],
        "date": time.strftime("%Y-%m-%d", time.localtime((run / "summary.json").stat().st_mtime)),
        "precision": config["precision"],
        "machine": summary["machine"],
        "strict": [[images, *(round(100 * score[key], 1) for key in ("mean", "low", "high"))]
                   for images, score in measured],
        "reward": [round(line["reward"], 3) for line in lines if "reward" in line],
    }  # fmt: skip


def merged(known: list[Result], new: list[Result]) -> list[Result]:
    """In the order of the algorithms; a new run takes the place of an old one of the same seed."""
    every = {(each["algorithm"], each["seed"]): each for each in [*known, *new]}
    return [every[key] for key in sorted(every, key=lambda key: (list(ALGORITHMS).index(key[0]), key[1]))]


def show(results: list[Result]) -> None:
    print(f"{'':16}{'seed':>5}   strict accuracy on held-out prompts, percent, with 95 % intervals")
    for each in results:
        cells = "   ".join(f"{images:>6}: {mean:4.1f} [{low:4.1f}, {high:4.1f}]" for images, mean, low, high
                           in each["strict"])  # fmt: skip
        rises = each["strict"][-1][2] > each["strict"][0][3]
        print(f"{each['algorithm']:16}{each['seed']:>5}   {cells}   {'rises' if rises else 'NO RISE'}")


def draw(results: list[Result], output: Path) -> None:
    """A panel per algorithm, a line per seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import lines, pyplot

    names = list(dict.fromkeys(each["algorithm"] for each in results))
    columns = 4
    rows = -(-len(names) // columns)
    size = (3.1 * columns, 2.35 * rows)
    figure, panels = pyplot.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    for panel in panels.flat[len(names) :]:
        panel.axis("off")
    for name, panel in zip(names, panels.flat, strict=False):
        own = [each for each in results if each["algorithm"] == name]
        for each in own:
            images, mean, low, high = zip(*each["strict"], strict=True)
            error = [[m - a for m, a in zip(mean, low, strict=True)], [b - m for m, b in zip(mean, high, strict=True)]]
            panel.errorbar(images, mean, error, marker="o", markersize=3, linewidth=1.2, capsize=2,
                           color=f"C{each['seed']}")  # fmt: skip
        panel.axhline(own[0]["strict"][0][1], color="0.6", linestyle=":", linewidth=1)
        panel.set_title(name, fontsize=10)
        panel.grid(alpha=0.25)
    seeds = sorted({each["seed"] for each in results})
    marks = [lines.Line2D([], [], color=f"C{seed}", marker="o", markersize=3, label=f"seed {seed}") for seed in seeds]
    panels[0, 0].legend(handles=marks, fontsize=7, loc="lower right")
    figure.supxlabel("images drawn", fontsize=9)
    figure.supylabel("strict accuracy on held-out prompts, %", fontsize=9)
    figure.tight_layout()
    figure.savefig(output, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    rewarded = [name for name in ALGORITHMS if facts(name).family != "distillation"]  # others: distillation.py
    parser.add_argument("--algorithms", nargs="+", default=rewarded, choices=rewarded)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=11520, help="per run (11520: 40 iterations of the demo)")
    parser.add_argument(
        "--precision", default="float32", choices=["bf16", "float32"], help="of the networks of new runs"
    )
    parser.add_argument("--record", type=Path, help="run nothing, and keep what there is in this file")
    parser.add_argument("--figure", type=Path, help="draw the file of results")
    options, more = parser.parse_known_args()
    if options.record:
        known = json.loads(options.record.read_text()) if options.record.is_file() else []
        results = merged(known, [result(run) for run in sorted(options.folder.glob("*")) if finished(run)])
        text = ",\n".join(json.dumps(each) for each in results)  # a line each
        options.record.write_text(f"[\n{text}\n]\n")
    else:
        chosen = [(name, seed) for seed in options.seeds for name in options.algorithms]
        for name, seed in chosen:
            learn(options.folder, name, seed, options.images, options.precision, more)
        results = merged([], [result(options.folder / f"{name}-{seed}") for name, seed in chosen])
    show(results)
    if options.figure:
        draw(results, options.figure)


if __name__ == "__main__":
    main()
