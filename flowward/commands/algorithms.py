"""flowward algorithms: what there is, when to use it, and its presets side by side. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Any, get_args

import tyro
from rich.console import RenderableType

from ..algorithms import CLASSES
from ..algorithms.presets import FOLDER, TRAINING, Facts, Family, Written, facts
from ..system.nested import flat
from .help import WIDEST, Page, example
from .options import parse
from .tables import GAP, say, short, table, width

WIDE = 100  # columns from which presets have a column of their own
Column = tuple[list[str], Mapping[str, str]]  # names of equal presets, and their options
FAMILIES = {
    "forward process": "Forward process: train on noised copies of finished images; any sampler will do",
    "differentiated reward": "Differentiated reward: the reward's own gradient, through the decoder; no advantages",
    "reverse process": "Reverse process: policy gradient on the random steps of the sampler",
    "distillation": "Distillation: learn from trained models, without rewards",
}
PAGE = Page(
    about="List the algorithms: when to use each, what it costs, its presets. With a name: its paper and its presets "
    "side by side.",
    examples=(
        ("algorithms", "the table of all algorithms"),
        ("algorithms flow_grpo", "one algorithm, and how its presets differ"),
        ("train --algorithm flow_grpo --preset ocr --model owner/name --reward ocr", "train with a preset"),
    ),
)


@dataclass(frozen=True)
class Algorithms:
    """List the algorithms, or show one."""

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[NAME]")] = None
    """an algorithm of the table"""


def run(words: list[str]) -> int:
    name = parse(Algorithms, words, "algorithms", page=PAGE).name
    say(*(_all() if name is None else _one(name, facts(name))))
    return 0


def _all() -> Iterator[RenderableType]:
    """One table per family."""
    yield (
        "Cost in network passes per image, with the preset scenes: forward passes to sample; forward and backward "
        "passes to train; forward passes of frozen copies (old policy, reference).\n"
    )
    wide = width() >= WIDE
    columns = ["algorithm", "sample", "train", "frozen", "when to use it", *["presets"] * wide]
    for family in get_args(Family):
        rows = []
        for name in CLASSES:
            if (own := facts(name)).family == family:
                presets = ", ".join(own.presets)
                when = [own.when, presets] if wide else [f"{own.when}\nPresets: {presets}"]
                rows.append([name, *map(_number, (own.cost.sampling, own.cost.training, own.cost.copies)), *when])
        yield table(columns, rows, FAMILIES[family], right=("sample", "train", "frozen"))
    yield "flowward algorithms NAME shows one of them; flowward train --algorithm NAME trains with it."
    yield "Language agents are trained with AgentFlow: flowward agent train."


def _one(name: str, own: Facts) -> Iterator[RenderableType]:
    cost, room = own.cost, min(width(), WIDEST)
    preset = next(key for key in own.presets if key != "scenes")
    yield f"{own.title}, {own.family}"
    yield f"{own.paper}, arXiv:{own.arxiv}\n"
    yield f"{own.when}\n"
    yield (
        f"Cost per image with the preset scenes: {_number(cost.sampling)} network passes to sample, "
        f"{_number(cost.training)} to train (forward and backward), {_number(cost.copies)} of frozen copies.\n"
    )
    yield example(f"train --algorithm {name}", "on the built-in model", room)
    real = f"train --algorithm {name} --preset {preset} --model owner/name --reward NAME"
    yield example(real, "on a real model, with a published preset", room)
    yield example(f"train --algorithm {name} --help-all", "every setting", room)
    yield f"  # its equation\n  {short(FOLDER.parent / name)}.py\n"
    yield from _side_by_side(own)
    for (source, model), group in groupby(own.presets, key=lambda key: _where(own.presets[key])):
        yield f"{', '.join(group)}: {model}. {source}"


def _where(preset: Written) -> tuple[str, str]:
    return preset.source, preset.model


def _side_by_side(own: Facts) -> Iterator[RenderableType]:
    """What differs between presets: options as rows, presets (equal ones together) as columns, in tables that fit."""
    every = {key: _settings(own, preset) for key, preset in own.presets.items()}
    columns: list[Column] = []
    for key, values in every.items():
        equal = next((names for names, known in columns if known == values), None)
        if equal:
            equal.append(key)
        else:
            columns.append(([key], values))
    rows = [row for row in columns[0][1] if len({values[row] for _, values in columns}) > 1]
    left = max(map(len, rows))
    for number, part in enumerate(_fitting(columns, width() - 2 - left)):
        cells = [[row, *(values[row] for _, values in part)] for row in rows]
        heads = ["option", *("\n".join(names) for names, _ in part)]
        yield table(heads, cells, "" if number else "Presets, where they differ")


def _fitting(columns: Sequence[Column], room: int) -> Iterator[list[Column]]:
    """As many columns at a time as fit into so many characters, at least one."""
    part, left = list[Column](), room
    for names, values in columns:
        needed = GAP + max(map(len, (*names, *values.values())))
        if part and needed > left:
            yield part
            part, left = [], room
        part.append((names, values))
        left -= needed
    yield part


def _settings(own: Facts, preset: Written) -> dict[str, str]:
    """Every option that some preset sets, as this preset has it; '-' where its kind of sampler has no such option."""
    trained = {key for each in own.presets.values() for key in (*each.run, *each.settings)}
    changed = dict.fromkeys(path for each in own.presets.values() for path, _ in flat(each.algorithm))
    mine, defaults = dict(flat(preset.algorithm)), dict(flat(own.defaults))
    values: dict[str, Any] = {**TRAINING, **preset.run, **preset.settings}
    return {
        **{_flag(key): _value(values[key]) for key in TRAINING if key in trained},
        **{_flag(f"algorithm.{path}"): _value(mine.get(path, defaults.get(path, "-"))) for path in defaults | changed},
    }


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " ".join(map(_value, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "on", False: "off"}[value]
    return _number(value) if isinstance(value, float | int) else str(value)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
