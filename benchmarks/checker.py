"""How far the checker of the built-in world can be trusted, and how fast it is.

    python benchmarks/checker.py [--renders 5000] [--processes 1 2] [--json figures.json]

Right: pictures drawn of the prompt. Blurred: the same after a Gaussian blur of 0.7 px and noise of standard deviation
0.02, about what a small autoencoder leaves of them. Wrong: pictures of a prompt that differs in one respect (one object
more or fewer, another shape or colour, the relation the other way round). Nothing: blank paper, noise, merged objects.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flowward.prompts.scenes import CATEGORIES, COLOURS, SHAPES, Request, Thing, prompts
from flowward.scenes.checker import check, judge, look
from flowward.scenes.render import BACKGROUND, MAX_OBJECTS, SIZE, Layout, draw, misread, render, silhouette

Array = NDArray[np.float32]
CHUNK = 250  # pictures handled at once


def some_requests(category: str, count: int, rng: np.random.Generator) -> list[Request]:
    choices = list({p.request: None for p in prompts().values() if p.request.category == category})
    return [choices[index] for index in rng.integers(len(choices), size=count)]


def respect(right: Request, wrong: Request) -> str:
    """In which respect two requests differ."""
    if right.count != wrong.count:
        return "count"
    if sorted(right.things, key=repr) == sorted(wrong.things, key=repr):
        return "relation"
    shapes = [sorted(thing.shape for thing in request.things) for request in (right, wrong)]
    return "colour" if shapes[0] == shapes[1] else "shape"


def acceptance(renders: int, rng: np.random.Generator) -> dict[str, Any]:
    """Per category how many pictures of each kind are accepted; and of the wrong ones per kind of error."""
    categories: dict[str, dict[str, float]] = {}
    errors: dict[str, list[bool]] = defaultdict(list)
    for category in CATEGORIES:
        wanted = some_requests(category, renders, rng)
        pictures = render(wanted, rng)
        blurred = ndimage.gaussian_filter(pictures, (0, 0, 0.7, 0.7)) + rng.normal(0, 0.02, pictures.shape)
        others = [misread(request, rng) for request in wanted]
        right, soft, wrong = (check(x, wanted) for x in (pictures, blurred, render(others, rng)))
        for request, other, verdict in zip(wanted, others, wrong, strict=True):
            errors[respect(request, other)].append(verdict.strict)
        categories[category] = {
            "right": sum(v.strict for v in right),
            "blurred": sum(v.strict for v in soft),
            "wrong": sum(v.strict for v in wrong),
            "soft_right": float(np.mean([v.soft for v in right])),
            "soft_wrong": float(np.mean([v.soft for v in wrong])),
        }
    return {
        "categories": categories,
        "errors": {kind: {"accepted": sum(hits), "of": len(hits)} for kind, hits in sorted(errors.items())},
    }


def merged(count: int, one_colour: bool, rng: np.random.Generator) -> tuple[Array, list[tuple[Request, Request]]]:
    """Pictures of two objects that overlap by 5 to 40 % of the smaller; requests for one of them, and for both."""
    n = 16 * count
    shape, colour = rng.integers(len(SHAPES), size=(n, 2)), rng.integers(len(COLOURS), size=(n, 2))
    shape[::2, 1] = shape[::2, 0]
    colour[:, 1] = (colour[:, 0] + (0 if one_colour else rng.integers(1, len(COLOURS), size=n))) % len(COLOURS)
    radius = rng.uniform(4.2, 6.5, (n, 2)).astype(np.float32)
    angle, distance = rng.uniform(0, 2 * np.pi, n), radius.mean(1) * rng.uniform(0.8, 2.2, n)
    offset = distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) / 2
    centre = (SIZE / 2 + rng.uniform(-2, 2, (n, 1, 2)) + np.stack([-offset, offset], 1)).astype(np.float32)
    axis = np.arange(SIZE, dtype=np.float32) + 0.5
    covers = []
    for k in (0, 1):
        dx, dy = axis[None, None] - centre[:, k, :1, None], axis[None, :, None] - centre[:, k, 1:, None]
        full = (n, SIZE, SIZE)
        covers.append(silhouette(shape[:, k], np.broadcast_to(dx, full), np.broadcast_to(dy, full), radius[:, k]))
    share = np.minimum(*covers).sum((1, 2)) / np.minimum(*(cover.sum((1, 2)) for cover in covers))
    keep = np.flatnonzero((share > 0.05) & (share < 0.4))[:count]
    assert len(keep) == count

    def padded(values: NDArray[Any], empty: int) -> NDArray[Any]:
        return np.concatenate([values[keep], np.full_like(values[keep], empty)], 1)[:, :MAX_OBJECTS]

    paper = rng.uniform(*BACKGROUND, count).astype(np.float32)
    pictures = draw(Layout(padded(shape, -1), padded(colour, 0), padded(centre, 0), padded(radius, 1), paper))
    things = [(Thing(SHAPES[a]), Thing(SHAPES[b])) for a, b in shape[keep]]
    return pictures, [(Request("single_object", two[:1]), Request("two_objects", two)) for two in things]


def all_merged(count: int, one_colour: bool, rng: np.random.Generator) -> tuple[Array, list[tuple[Request, Request]]]:
    """As `merged`, in parts that fit into memory."""
    parts = [merged(min(CHUNK, count - start), one_colour, rng) for start in range(0, count, CHUNK)]
    return np.concatenate([pictures for pictures, _ in parts]), [request for _, some in parts for request in some]


def nothing(renders: int, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Pictures that hold nothing: how many are accepted or score above 0, and the highest soft score."""
    any_request = [request for category in CATEGORIES for request in some_requests(category, renders // 6 + 1, rng)]
    requests = [(request,) for request in any_request[:renders]]
    paper = rng.random((renders, 3, 1, 1)).astype(np.float32)
    blank = np.broadcast_to(paper, (renders, 3, SIZE, SIZE))
    strength = rng.uniform(0, 0.5, (renders, 1, 1, 1))
    noise = (0.88 + strength * rng.normal(size=blank.shape)).astype(np.float32)
    kinds: dict[str, tuple[Array, Any]] = {
        "blank": (blank, requests),
        "noise, sd 0 to 0.5": (noise, requests),
        "uniform noise": (rng.random(blank.shape, np.float32), requests),
        "merged, one colour": all_merged(renders, True, rng),
        "merged, two colours": all_merged(renders, False, rng),
    }
    out = {}
    for kind, (pictures, wanted) in kinds.items():
        found = look(pictures)
        verdicts = [judge(each, request) for each, some in zip(found, wanted, strict=True) for request in some]
        scores = [verdict.soft for verdict in verdicts]
        out[kind] = {
            "judged": len(verdicts),
            "accepted": sum(verdict.strict for verdict in verdicts),
            "above_0": sum(score > 0 for score in scores),
            "mean_soft": float(np.mean(scores)),
        }
    return out


def scores(pictures: Array, requests: list[Request]) -> list[float]:
    return [verdict.soft for verdict in check(pictures, requests)]


def speed(processes: int, count: int, rng: np.random.Generator) -> float:
    """Images per second on pictures of all categories, with as many worker processes (1: none, in this process)."""
    requests = [request for category in CATEGORIES for request in some_requests(category, count // 6, rng)]
    order = rng.permutation(len(requests))
    requests = [requests[index] for index in order]
    pictures = render(requests, rng)
    cuts = range(0, len(requests), CHUNK)
    work = [pictures[cut : cut + CHUNK] for cut in cuts], [requests[cut : cut + CHUNK] for cut in cuts]
    if processes == 1:
        scores(work[0][0], work[1][0])
        start = time.perf_counter()
        done = sum(len(part) for part in map(scores, *work))
    else:
        with ProcessPoolExecutor(processes) as pool:
            list(pool.map(scores, work[0][:processes], work[1][:processes]))  # start the workers
            start = time.perf_counter()
            done = sum(len(part) for part in pool.map(scores, *work))
    return done / (time.perf_counter() - start)


def show(figures: dict[str, Any]) -> None:
    n = figures["renders"]
    print(f"{figures['machine']}\n\n{n} pictures of each kind and category; accepted:")
    print(f"{'':20}{'right':>16}{'blurred':>16}{'wrong':>16}{'soft right':>12}{'soft wrong':>12}")
    total: Counter[str] = Counter()
    for category, row in figures["categories"].items():
        total.update({kind: row[kind] for kind in ("right", "blurred", "wrong")})
        cells = "".join(f"{row[kind]:>8.0f}{row[kind] / n:>8.2%}" for kind in ("right", "blurred", "wrong"))
        print(f"{category:20}{cells}{row['soft_right']:>12.3f}{row['soft_wrong']:>12.3f}")
    cells = "".join(f"{total[kind]:>8.0f}{total[kind] / n / 6:>8.2%}" for kind in ("right", "blurred", "wrong"))
    print(f"{'all':20}{cells}\n\nwrong in one respect; accepted:")
    for kind, row in figures["errors"].items():
        print(f"{kind:20}{row['accepted']:>8} of {row['of']}")
    print(f"\n{'nothing there':20}{'judged':>8}{'accepted':>10}{'soft > 0':>10}{'mean soft':>11}")
    for kind, row in figures["nothing"].items():
        print(f"{kind:20}{row['judged']:>8}{row['accepted']:>10}{row['above_0']:>10}{row['mean_soft']:>11.5f}")
    print()
    for processes, rate in figures["images_per_second"].items():
        print(f"{rate:>8.0f} images/s on {processes} process{'es' * (processes != '1')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--renders", type=int, default=5000, help="pictures of each kind and category (5000)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1], help="time it on so many processes (1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    python = platform.python_version()
    figures = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {python}",
        "renders": options.renders,
        **acceptance(options.renders, rng),
        "nothing": nothing(options.renders, rng),
        "images_per_second": {str(n): speed(n, 2 * options.renders, rng) for n in options.processes},
    }
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
