"""flowward front"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .. import models, prompts, rewards
from ..evaluation import fronts
from ..evaluation.evaluate import Evaluation, load_rewards, settings
from ..export import grids, trained
from ..models.loading import Loading
from ..process.policy import Policy
from ..system import strict_json
from ..system.errors import between
from ..system.precision import Wish
from ..system.terminal import tell, visible
from ..training.log import counting
from ..training.record import Record, refuse_other_kinds
from . import outputs
from .help import Page
from .options import given, parse, said
from .policies import remark_on_guidance
from .tables import say, table

PAGE = Page(
    about="Measure a palette of adapters at a grid of weights, always with the same noise: which mixtures no other "
    "beats, and the hypervolume below them. --soup compares it with runs that were trained one by one.",
    examples=(
        ("front runs/palette", "five mixtures, measured with the rewards of the palette"),
        ("front runs/palette --soup runs/strict runs/balance --html front.html", "against a soup of two single runs"),
    ),
    first=("soup", "rewards", "points", "prompts", "images", "html", "json", "overwrite", "weights", "at", "floor"),
)


@dataclass(frozen=True)
class Front:
    """Measure a palette of adapters at a grid of weights."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """a run with --palette, or its export"""
    soup: tuple[str, ...] = ()
    """compare with a soup of these runs or exports, one per adapter, in the palette's order"""
    points: int = 5
    """mixtures from one corner to another, both included"""
    floor: tuple[float, ...] = ()
    """measure hypervolumes from these scores (none: lowest possible scores, or lowest measured ones)"""
    evaluation: Annotated[Evaluation, tyro.conf.OmitArgPrefixes] = field(default_factory=lambda: Evaluation(rewards=()))
    at: int | Literal["best"] | None = None
    """use the palette's checkpoint of this iteration, or with its `best` headline score (none: the newest)"""
    precision: Wish | None = None
    """precision of all models (none: that of the runs and exports)"""
    loading: Annotated[Loading, tyro.conf.OmitArgPrefixes] = field(default_factory=Loading)
    json: Path | None = None
    """write all mixtures, scores and settings to this file"""
    html: Path | None = None
    """write a page with the front as a picture to this file"""
    overwrite: bool = False
    """replace output files that exist"""

    def __post_init__(self) -> None:
        between(self, 2, 1000, "points")


def run(words: list[str]) -> int:
    command = shlex.join(["flowward", "front", *words])
    chosen = parse(Front, words, "front", page=PAGE)
    names = tuple(map(models.located, chosen.soup))
    chosen = replace(chosen, model=models.located(chosen.model), soup=names)
    for name in (chosen.model, *chosen.soup):
        refuse_other_kinds(name, "front")
    for option, file in (("--json", chosen.json), ("--html", chosen.html)):
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.is_dir() or not os.access(file.parent, os.W_OK):
                raise ValueError(f"cannot write {file}: name another file")
            outputs.refuse(file, chosen.overwrite, option)
    precision = chosen.precision or trained.common_precision([chosen.model, *chosen.soup])
    how = chosen.evaluation
    first = trained.load(chosen.model, how.weights, chosen.loading, precision, said(words), chosen.at)
    how = replace(how, weights="policy", rewards=how.rewards or first.weights.palette)
    mixtures = grids.refuse(first, how.scores, chosen.points)
    _refuse(chosen, first, how.scores)
    if models.is_pipeline(trained.base_of(chosen.model)) and not given(words, "prompts"):
        raise ValueError("name --prompts to measure on: the usual ones are for the built-in model")
    found = _measured(chosen, first, how, mixtures, precision, said(words))
    _show(found)
    about = {**found.pop("settings"), "points": chosen.points}
    if chosen.json:
        Record(chosen.json.parent).write_text(chosen.json.name, strict_json.dumps({**about, **found}, 2) + "\n")
    if chosen.html:
        from ..pages import front as page

        Record(chosen.html.parent).write_text(chosen.html.name, page.of(found, about, command))
    return 0


def _refuse(chosen: Front, policy: Policy, scores: Sequence[str]) -> None:
    """Raises ValueError for a soup or a floor that does not fit the palette."""
    palette = policy.weights.palette
    if chosen.soup and len(chosen.soup) != len(palette):
        raise ValueError(
            f"a soup needs one run for each of the {len(palette)} adapters ({', '.join(palette)}), in this order, not "
            f"{len(chosen.soup)}"
        )
    if chosen.floor and len(chosen.floor) != len(scores):
        raise ValueError(f"--floor needs a number for each of {', '.join(scores)}, not {len(chosen.floor)}")

    if not all(map(isfinite, chosen.floor)):
        raise ValueError(f"--floor needs finite numbers, not {' '.join(f'{each:g}' for each in chosen.floor)}")


def _measured(
    chosen: Front,
    policy: Policy,
    how: Evaluation,
    mixtures: Sequence[tuple[float, ...]],
    precision: Wish,
    named: set[str],
) -> dict[str, Any]:
    """The grid of the palette, and of the soup if there is one, with the settings of the evaluation."""
    texts, scored = prompts.load(how.prompts, how.prompt_column), load_rewards(how.scores, how.reward_options)
    for reward in scored.values():
        rewards.refuse(reward, texts.texts, texts.about(range(len(texts)), policy.medium.facts))
    asked, found = [texts[i] for i in dict.fromkeys(how.chosen(texts))], list[fronts.Grid]()

    def measure(policy: Policy, name: str) -> None:
        policy.refuse(list(texts))
        for remark in policy.remarks_on(asked):
            tell(f"{name}: {remark}")
        policy.prepare(asked)
        with counting(name, len(mixtures) * len(how.chosen(texts))) as advance:
            found.append(grids.measured(policy, name, mixtures, texts, how, scored, advance))

    remark_on_guidance(chosen.model, policy, how.sampler.guidance)
    palette, about = policy.weights.palette, settings(policy, texts, how, scored)
    about["model"].pop("mixture")
    soup: Policy | None = None
    if chosen.soup:  # read before anything is measured
        each = dict(zip(palette, chosen.soup, strict=True))
        soup = trained.soup(each, chosen.evaluation.weights, chosen.loading, precision, named)
        if soup.identity["base"] != policy.identity["base"]:
            raise ValueError(f"the runs of the soup were trained on another model than {chosen.model}: name others")
    measure(policy, Path(chosen.model).name)
    if soup:
        measure(soup, "soup")
        about["soup"] = [Path(name).name for name in chosen.soup]
    return {**fronts.compared(found, chosen.floor or fronts.floor_of(found)), "settings": about}


def _show(found: dict[str, Any]) -> None:
    """Print a table per model, and the hypervolumes."""
    from ..pages import front as page

    for each in found["models"]:
        made = page.table(each, found["scores"])
        say(table(made.head, made.rows, visible(each["name"]), made.head))
    for line in page.sentences(found):
        print(visible(line))
