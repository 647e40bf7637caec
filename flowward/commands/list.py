"""flowward list: rewards, prompts, suites, recipes, models and presets, from tables that are read without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any

import tyro
from rich.console import RenderableType

from ..algorithms import CLASSES
from ..algorithms.presets import TRAINING, facts
from ..system import tables
from ..system.errors import unknown
from ..training import recipes
from .help import Page
from .options import parse
from .tables import say, short, table

PAGE = Page(
    about="List what can be named on the command line, and what each needs.",
    examples=(
        ("list", "the lists there are"),
        ("list rewards", "what --reward and --evaluation.rewards accept"),
        ("list recipes", "config files for real models"),
    ),
)
Parts = Iterator[RenderableType]


@dataclass(frozen=True)
class List:
    """List what can be named on the command line."""

    what: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[LIST]")] = None
    """rewards, prompts, suites, recipes, models or presets"""


def run(words: list[str]) -> int:
    what = parse(List, words, "list", page=PAGE).what
    if what is None:
        say(table(["list", "what it lists"], [(f"flowward list {name}", line) for name, (line, _) in LISTS.items()]))
        return 0
    if what not in LISTS:
        raise ValueError(unknown("list", what, LISTS))
    say(*LISTS[what][1]())
    return 0


def _rewards() -> Parts:
    found = tables.load(tables.PACKAGE / "rewards" / "table.yaml")
    rows = [(name, own["what"], own["needs"]) for name, own in found.items()]
    yield table(["reward", "what it measures", "needs"], rows)
    yield "Your own: --reward file.py:FUNCTION or package.module:FUNCTION. Several: --reward pickscore=1 ocr=0.5"


def _prompts() -> Parts:
    found = tables.load(tables.PACKAGE / "prompts" / "table.yaml")
    rows = [(name, f"{own['prompts']:,}", own["what"], own["rewards"]) for name, own in found.items()]
    yield table(["set", "prompts", "what it asks for", "rewards that fit"], rows, right=("prompts",))
    yield (
        "Your own: --prompts FILE (one prompt per line), FILE.jsonl, FILE.csv, FILE.tsv, FILE.parquet or "
        "hf:owner/name. The last two need pip install 'flowward[data]'. train:FILE and held-out:FILE are 95 and 5 % of "
        "a file."
    )


def _suites() -> Parts:
    sizes = {name: own["prompts"] for name, own in tables.load(tables.PACKAGE / "prompts" / "table.yaml").items()}
    rows = []
    for name, own in tables.load(tables.PACKAGE / "evaluation" / "suites.yaml").items():
        many = own.get("images_per_prompt")
        images = many * sizes[own["prompts"]] if many else IMAGES
        rows.append((name, own["what"], own["prompts"], ", ".join(own["rewards"]), f"{images:,}", own["needs"]))
    yield table(["suite", "measures", "prompts", "rewards", "images", "needs"], rows, right=("images",))
    yield "flowward eval MODEL --suite NAME measures it. The first reward is the headline; see flowward list rewards."


def _recipes() -> Parts:
    known = recipes.every()
    yield f"Config files for real models, in {short(tables.shipped('recipes'))}/. Start one from anywhere by its name."
    for folder, own in groupby(known.values(), key=lambda file: file.parent):
        given = {file: recipes.given(file) for file in own}
        rows = [
            (file.stem, _named(recipe["algorithm"]), " + ".join(recipe["reward"]), f"{_images(recipe):,}")
            for file, recipe in given.items()
        ]
        model = next(iter(given.values()))["model"]
        columns = [f"{folder.name}/", "algorithm (preset)", "reward", "images"]
        yield table(columns, rows, model, right=("images",))
    yield "images: per iteration, over all GPUs."
    yield f"flowward train --config {next(iter(known))} [--processes N]"


def _named(algorithm: Mapping[str, Any]) -> str:
    return f"{algorithm['name']} ({algorithm.get('preset', 'scenes')})"


def _images(recipe: Mapping[str, Any]) -> int:
    """Per iteration."""
    own = recipe["algorithm"]
    run = {**TRAINING, **facts(own["name"]).presets[own.get("preset", "scenes")].run, **recipe.get("run", {})}
    return int(run["images_per_update"]) * int(run["updates_per_iteration"])


def _models() -> Parts:
    found = tables.load(tables.PACKAGE / "models" / "families" / "table.yaml")
    rows = [(own["family"], own["pipeline"], own["example"], own.get("notes", "")) for own in found]
    few = ("scenes, few steps", "", "scenes-4step", "built in; two times (docs/few_step.md)")
    larger = ("scenes, larger", "", "scenes-64", "built in; make its weights first (docs/scenes64.md)")
    rows = [("scenes", "", "scenes", "built in; runs on a CPU"), few, larger, *rows]
    yield table(["family", "diffusers pipeline", "--model", "notes"], rows)
    yield (
        "--model takes the id of any checkpoint of these pipelines on the hub, or a folder of one. Its page there has "
        "the licence; gated models need a login. Training needs a CUDA GPU: flowward memory estimates its size. Other "
        "flow-matching pipelines of diffusers are observed and checked when they are loaded (docs/pipelines.md)."
    )


def _presets() -> Parts:
    for name in CLASSES:
        rows = []
        for key, own in facts(name).presets.items():
            run = {**TRAINING, **own.run}
            images = int(run["images_per_update"]) * int(run["updates_per_iteration"])
            rows.append((key, own.model, f"{images:,}"))
        yield table(["preset", "model", "images"], rows, name, right=("images",))
    yield "images: per iteration. flowward algorithms NAME shows how the presets of one algorithm differ."
    yield "Presets of agents: flowward agent train --help names them."


IMAGES = 1200  # of an evaluation that says nothing else
LISTS: dict[str, tuple[str, Callable[[], Parts]]] = {
    "rewards": ("what images can be scored with, and what each reward needs", _rewards),
    "prompts": ("built-in prompt sets", _prompts),
    "suites": ("named evaluations: prompts, rewards, number of images", _suites),
    "recipes": ("config files that train real models", _recipes),
    "models": ("the built-in model, and the diffusers pipelines that can be trained", _models),
    "presets": ("settings of every algorithm, tested here or published", _presets),
}
