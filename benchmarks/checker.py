"""How far the checker of a built-in world can be trusted, and how fast it is.

    python benchmarks/checker.py [--world scenes-64] [--renders 5000] [--ocr 300] [--processes 1 2] [--json FILE]

Right: pictures drawn of the prompt. Blurred: the same after a Gaussian blur of 0.7 px and noise of standard deviation
0.02, about what a small autoencoder leaves of them. Wrong: pictures of a prompt that differs in one respect (one object
more or fewer, another shape or colour, the relation the other way round). Nothing: blank paper, noise, merged objects.
OCR: whether the packaged reader of any font (the reward `ocr-strict`) reads the words that were drawn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flowward.prompts import scenes, scenes64
from flowward.scenes import render as small
from flowward.scenes.checker import judge, look
from flowward.scenes.large import layout as large
from flowward.scenes.large.checker import judge as judge_large
from flowward.scenes.large.looking import look as look_large
from flowward.scenes.large.render import draw as draw_large
from flowward.scenes.silhouettes import cover
from flowward.scenes.world import WORLDS, World

Array = NDArray[np.float32]
Pair = tuple[NDArray[np.int64], NDArray[np.int64], Array, Array]  # shape, colour, centre and radius of two objects
CHUNK = 250  # pictures handled at once


@dataclass(frozen=True)
class Bench:
    """What is measured of a world beside what every world has."""

    world: World
    shapes: tuple[str, ...]
    radius: tuple[float, float]  # of objects that overlap
    draw: Callable[[Pair, np.random.Generator], Array]
    asking: Any  # its module of prompts
    judged: Callable[[Array, Any], list[Any]]  # verdicts on pictures, of several requests each


def _judged(look: Any, judge: Any, pictures: Array, wanted: Any) -> list[Any]:
    return [judge(each, request) for each, some in zip(look(pictures), wanted, strict=True) for request in some]


def _padded(values: NDArray[Any], most: int, empty: int) -> NDArray[Any]:
    more = np.full((len(values), most - values.shape[1], *values.shape[2:]), empty, values.dtype)
    return np.concatenate([values, more], 1)


def draw_pair(pair: Pair, rng: np.random.Generator) -> Array:
    shape, colour, centre, radius = (
        _padded(values, small.MAX_OBJECTS, empty) for values, empty in zip(pair, (-1, 0, 0, 1), strict=True)
    )
    paper = rng.uniform(*small.BACKGROUND, len(shape)).astype(np.float32)
    return small.draw(small.Layout(shape, colour, centre, radius, paper))


def draw_large_pair(pair: Pair, rng: np.random.Generator) -> Array:
    shape, colour, centre, radius = (
        _padded(values, large.MAX_OBJECTS, empty) for values, empty in zip(pair, (-1, 0, 0, 1), strict=True)
    )
    paper = np.repeat(rng.uniform(*large.PAPER, (len(shape), 1)), 3, 1).astype(np.float32)
    slope = np.zeros((len(shape), 2), np.float32)
    return draw_large(large.Layout(shape, colour, np.zeros_like(shape), centre, radius, paper, slope))


BENCHES = {
    "scenes": Bench(WORLDS["scenes"], scenes.SHAPES, (4.2, 6.5), draw_pair, scenes, partial(_judged, look, judge)),
    "scenes-64": Bench(
        *(WORLDS["scenes-64"], scenes64.SHAPES, (6.6, 12.5), draw_large_pair, scenes64),
        partial(_judged, look_large, judge_large),
    ),
}


def some_requests(world: World, category: str, count: int, rng: np.random.Generator) -> list[Any]:
    choices = list({p.request: None for p in world.language.prompts().values() if p.request.category == category})
    return [choices[index] for index in rng.integers(len(choices), size=count)]


def respect(right: Any, wrong: Any) -> str:
    """In which respect two requests differ."""
    if right.count != wrong.count:
        return "count"
    for each in fields(right.things[0]):
        one, two = (sorted(str(getattr(thing, each.name)) for thing in request.things) for request in (right, wrong))
        if one != two:
            return each.name
    return "relation"


def acceptance(world: World, renders: int, rng: np.random.Generator) -> dict[str, Any]:
    """Per category how many pictures of each kind are accepted; and of the wrong ones per kind of error."""
    categories: dict[str, dict[str, float]] = {}
    errors: dict[str, list[bool]] = defaultdict(list)
    for category in world.language.categories:
        wanted = some_requests(world, category, renders, rng)
        pictures = world.render(wanted, rng)
        blurred = ndimage.gaussian_filter(pictures, (0, 0, 0.7, 0.7)) + rng.normal(0, 0.02, pictures.shape)
        others = [world.misread(request, rng) for request in wanted]
        right, soft, wrong = (world.check(x, wanted) for x in (pictures, blurred, world.render(others, rng)))
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


def merged(bench: Bench, count: int, one_colour: bool, rng: np.random.Generator) -> tuple[Array, list[tuple[Any, Any]]]:
    """Pictures of two objects that overlap by 5 to 40 % of the smaller; requests for one of them, and for both."""
    n, size, colours = 16 * count, bench.world.design.size, len(scenes.COLOURS)
    shape, colour = rng.integers(len(bench.shapes), size=(n, 2)), rng.integers(colours, size=(n, 2))
    shape[::2, 1] = shape[::2, 0]
    colour[:, 1] = (colour[:, 0] + (0 if one_colour else rng.integers(1, colours, size=n))) % colours
    radius = rng.uniform(*bench.radius, (n, 2)).astype(np.float32)
    angle, distance = rng.uniform(0, 2 * np.pi, n), radius.mean(1) * rng.uniform(0.8, 2.2, n)
    offset = distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) / 2
    centre = (size / 2 + rng.uniform(-2, 2, (n, 1, 2)) + np.stack([-offset, offset], 1)).astype(np.float32)
    axis = np.arange(size, dtype=np.float32) + 0.5
    covers = []
    for k in (0, 1):
        dx, dy = axis[None, None] - centre[:, k, :1, None], axis[None, :, None] - centre[:, k, 1:, None]
        full = (n, size, size)
        placed = np.broadcast_to(dx, full), np.broadcast_to(dy, full)
        covers.append(cover(bench.shapes, shape[:, k], *placed, radius[:, k]))
    share = np.minimum(*covers).sum((1, 2)) / np.minimum(*(each.sum((1, 2)) for each in covers))
    keep = np.flatnonzero((share > 0.05) & (share < 0.4))[:count]
    assert len(keep) == count
    pictures = bench.draw((shape[keep], colour[keep], centre[keep], radius[keep]), rng)
    thing, request = bench.asking.Thing, bench.asking.Request
    things = [(thing(bench.shapes[a]), thing(bench.shapes[b])) for a, b in shape[keep]]
    return pictures, [(request("single_object", two[:1]), request("two_objects", two)) for two in things]


def all_merged(
    bench: Bench, count: int, one_colour: bool, rng: np.random.Generator
) -> tuple[Array, list[tuple[Any, Any]]]:
    """As `merged`, in parts that fit into memory."""
    parts = [merged(bench, min(CHUNK, count - start), one_colour, rng) for start in range(0, count, CHUNK)]
    return np.concatenate([pictures for pictures, _ in parts]), [request for _, some in parts for request in some]


def nothing(bench: Bench, renders: int, rng: np.random.Generator) -> dict[str, dict[str, float]]:
    """Pictures that hold nothing: how many are accepted or score above 0, and the highest soft score."""
    world, size = bench.world, bench.world.design.size
    each = renders // len(world.language.categories) + 1
    any_request = [one for category in world.language.categories for one in some_requests(world, category, each, rng)]
    requests = [(request,) for request in any_request[:renders]]
    paper = rng.random((renders, 3, 1, 1)).astype(np.float32)
    blank = np.broadcast_to(paper, (renders, 3, size, size))
    strength = rng.uniform(0, 0.5, (renders, 1, 1, 1))
    noise = (0.88 + strength * rng.normal(size=blank.shape)).astype(np.float32)
    kinds: dict[str, tuple[Array, Any]] = {
        "blank": (blank, requests),
        "noise, sd 0 to 0.5": (noise, requests),
        "uniform noise": (rng.random(blank.shape, np.float32), requests),
        "merged, one colour": all_merged(bench, renders, True, rng),
        "merged, two colours": all_merged(bench, renders, False, rng),
    }
    out = {}
    for kind, (pictures, wanted) in kinds.items():
        verdicts = bench.judged(pictures, wanted)
        scores = [verdict.soft for verdict in verdicts]
        out[kind] = {
            "judged": len(verdicts),
            "accepted": sum(verdict.strict for verdict in verdicts),
            "above_0": sum(score > 0 for score in scores),
            "mean_soft": float(np.mean(scores)),
        }
    return out


def scores(name: str, pictures: Array, requests: list[Any]) -> list[float]:
    return [verdict.soft for verdict in WORLDS[name].check(pictures, requests)]


def speed(name: str, processes: int, count: int, rng: np.random.Generator) -> float:
    """Images per second on pictures of all categories, with as many worker processes (1: none, in this process)."""
    world, of_world = WORLDS[name], partial(scores, name)
    each = count // len(world.language.categories)
    requests = [one for category in world.language.categories for one in some_requests(world, category, each, rng)]
    order = rng.permutation(len(requests))
    requests = [requests[index] for index in order]
    pictures = world.render(requests, rng)
    cuts = range(0, len(requests), CHUNK)
    work = [pictures[cut : cut + CHUNK] for cut in cuts], [requests[cut : cut + CHUNK] for cut in cuts]
    if processes == 1:
        of_world(work[0][0], work[1][0])
        start = time.perf_counter()
        done = sum(len(part) for part in map(of_world, *work))
    else:
        with ProcessPoolExecutor(processes) as pool:
            list(pool.map(of_world, work[0][:processes], work[1][:processes]))  # start the workers
            start = time.perf_counter()
            done = sum(len(part) for part in pool.map(of_world, *work))
    return done / (time.perf_counter() - start)


def read_by_ocr(world: World, count: int, rng: np.random.Generator) -> dict[str, int]:
    """How many pictures with a word the reward `ocr-strict` passes, of right ones and of ones with another word."""
    import torch

    from flowward.rewards.text.ocr import StrictOCR

    torch.set_num_threads(1)
    texts = [text for text in world.language.prompts() if '"' in text]
    asked = [texts[index] for index in rng.integers(len(texts), size=2 * count)]
    pictures = torch.from_numpy(world.render([world.language.parse(text).request for text in asked[:count]], rng))
    reward, word = StrictOCR(), lambda text: text.split('"')[1]
    others = [other if word(other) != word(own) else texts[0] for own, other in zip(asked, asked[count:], strict=False)]
    different = [word(own) != word(other) for own, other in zip(asked, others, strict=False)]
    right, wrong = reward(pictures, asked[:count]), reward(pictures, others)
    passed = int(wrong[torch.tensor(different)].sum())
    return {"right": int(right.sum()), "of": count, "wrong": passed, "of_wrong": sum(different)}


def show(figures: dict[str, Any]) -> None:
    n = figures["renders"]
    print(f"{figures['machine']}\n\n{n} pictures of each kind and category; accepted:")
    print(f"{'':20}{'right':>16}{'blurred':>16}{'wrong':>16}{'soft right':>12}{'soft wrong':>12}")
    total: Counter[str] = Counter()
    for category, row in figures["categories"].items():
        total.update({kind: row[kind] for kind in ("right", "blurred", "wrong")})
        cells = "".join(f"{row[kind]:>8.0f}{row[kind] / n:>8.2%}" for kind in ("right", "blurred", "wrong"))
        print(f"{category:20}{cells}{row['soft_right']:>12.3f}{row['soft_wrong']:>12.3f}")
    cells = "".join(
        f"{total[kind]:>8.0f}{total[kind] / n / len(figures['categories']):>8.2%}"
        for kind in ("right", "blurred", "wrong")
    )
    print(f"{'all':20}{cells}\n\nwrong in one respect; accepted:")
    for kind, row in figures["errors"].items():
        print(f"{kind:20}{row['accepted']:>8} of {row['of']}")
    print(f"\n{'nothing there':20}{'judged':>8}{'accepted':>10}{'soft > 0':>10}{'mean soft':>11}")
    for kind, row in figures["nothing"].items():
        print(f"{kind:20}{row['judged']:>8}{row['accepted']:>10}{row['above_0']:>10}{row['mean_soft']:>11.5f}")
    print()
    for processes, rate in figures["images_per_second"].items():
        print(f"{rate:>8.0f} images/s on {processes} process{'es' * (processes != '1')}")
    if read := figures.get("ocr"):
        print(
            f"\nOCR: {read['right']} of {read['of']} words read, "
            f"{read['wrong']} of {read['of_wrong']} others taken for them"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=list(BENCHES), default="scenes", help="built-in world (scenes)")
    parser.add_argument("--ocr", type=int, default=0, help="read so many words with the packaged OCR (0)")
    parser.add_argument("--renders", type=int, default=5000, help="pictures of each kind and category (5000)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1], help="time it on so many processes (1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    bench = BENCHES[options.world]
    python = platform.python_version()
    figures = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {python}",
        "renders": options.renders,
        **acceptance(bench.world, options.renders, rng),
        "nothing": nothing(bench, options.renders, rng),
        "images_per_second": {str(n): speed(options.world, n, 2 * options.renders, rng) for n in options.processes},
    }
    if options.ocr:
        figures["ocr"] = read_by_ocr(bench.world, options.ocr, rng)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
