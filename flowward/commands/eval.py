"""flowward eval"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .. import models, prompts, rewards
from ..evaluation import comparison, measurement, suites
from ..evaluation.evaluate import Evaluation, load_rewards, measure, settings
from ..evaluation.measurement import Measurement
from ..export import exported
from ..export.trained import common_precision
from ..models.loading import Loading
from ..system.precision import Wish
from ..system.terminal import tell, visible
from ..training.log import counting, table
from ..training.record import Record, refuse_other_kinds
from . import outputs
from .help import Option, Page
from .options import given, parse, said, take
from .policies import mix, policy_of, remark_on_guidance, warn_of_guidance

DEFAULT = "scenes"  # suite
PAGE = Page(
    about="Measure models and runs, all in the same way: mean scores per category with 95 % intervals, and differences "
    "between models. A suite sets prompts, rewards and the number of images; `flowward list suites` lists them.",
    examples=(
        ("eval scenes runs/first", "the built-in model before and after training"),
        ("eval owner/name --suite ocr --size 512 512 --json numbers.json", "a diffusers pipeline, on text in images"),
        ("eval --compare before.json after.json", "compare two files of --json; no model is run"),
    ),
    first=(
        *("suite", "prompts", "rewards", "images", "images-per-prompt", "steps", "guidance", "seed", "weights", "at"),
        *("json", "html", "overwrite", "compare", "size", "batch", "device", "precision"),
    ),
    beside=(Option("suite", "NAME|FILE", "named evaluation, or a file of prompts (default: scenes)"),),
)


@dataclass(frozen=True)
class Evaluate:
    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[MODEL ...]")] = ()
    """`scenes`, run folders, exports, or diffusers pipelines"""
    compare: tuple[Path, ...] = ()
    """compare files written by --json, in pairs; no model is run"""
    evaluation: Annotated[Evaluation, tyro.conf.OmitArgPrefixes] = field(default_factory=Evaluation)
    at: int | Literal["best"] | None = None
    """use a run's checkpoint of this iteration, or with its `best` headline score (none: the newest)"""
    mixture: tuple[str, ...] = ()
    """weights of a palette's adapters, e.g. scenes-strict=0.7 balance=0.3 (none: equal ones)"""
    precision: Wish | None = None
    """precision of all models (none: that of the runs and exports, else auto)"""
    loading: Annotated[Loading, tyro.conf.OmitArgPrefixes] = field(default_factory=Loading)
    json: Path | None = None
    """write scores of every image and all settings to this file"""
    html: Path | None = None
    """write a page with charts and images side by side to this file"""
    overwrite: bool = False
    """replace output files that exist"""


def run(words: list[str]) -> int:
    command = shlex.join(["flowward", "eval", *words])
    suite, words = take(words, "suite")
    default = Evaluate(evaluation=suites.load(suite or DEFAULT).of(Evaluation()))
    chosen = parse(Evaluate, words, "eval", default, PAGE)
    chosen = replace(chosen, models=tuple(map(models.located, chosen.models)))
    for name in chosen.models:
        refuse_other_kinds(name, "eval")
    _refuse(chosen, named=bool(suite or given(words, "rewards") or given(words, "prompts")))
    found = _read(chosen.compare) if chosen.compare else _measured(chosen, said(words))
    if chosen.mixture and not any("mixture" in each.settings["model"] for each in found):
        tell("--mixture changed nothing, since none of these models is a palette")
    changes = comparison.differences(found)
    table({each.name: each.summary() for each in found}, changes)
    for line in [*comparison.warnings(found), *comparison.hacking(found, changes)]:
        tell(line)
    _write(chosen.json, found)
    if chosen.html:
        from ..pages import evaluation as evaluation_page

        Record(chosen.html.parent).write_text(chosen.html.name, evaluation_page.of(found, changes, command))
    return 0


def _refuse(chosen: Evaluate, named: bool) -> None:
    """Raises ValueError for what cannot be asked, or written: now, not after an hour of drawing."""
    if chosen.compare and chosen.models:
        raise ValueError("--compare reads files of --json, and runs no models: leave one of the two out")
    if not (chosen.compare or chosen.models):
        raise ValueError("name at least one model or run to measure, or files to --compare")
    if not named and (pipelines := [name for name in chosen.models if models.is_pipeline(name)]):
        what = "name a --suite, or --prompts and --rewards"
        raise ValueError(f"{what}, to measure {pipelines[0]}: the suite {DEFAULT} is for the built-in model")
    if chosen.at is not None and not any((Path(name) / "config.yaml").is_file() for name in chosen.models):
        raise ValueError("--at chooses a checkpoint of a run, but no run is measured: leave it out")
    for option, file in (("--json", chosen.json), ("--html", chosen.html)):
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.is_dir() or not os.access(file.parent, os.W_OK):
                raise ValueError(f"cannot write {file}: name another file")
            outputs.refuse(file, chosen.overwrite, option)


def _write(file: Path | None, found: Sequence[Measurement]) -> None:
    if file:
        changes = [each.to_dict() for each in comparison.differences(found)]
        Record(file.parent).write_text(file.name, measurement.to_json(found, changes))


def _read(files: Sequence[Path]) -> list[Measurement]:
    """Raises ValueError where there is nothing to compare, or a file is not one of ours."""
    found = measurement.told_apart([(file.stem, each) for file in files for each in measurement.read(file)])
    if len(found) < 2:
        raise ValueError("to compare takes two models: name two files, or one with several models")
    return found


def _measured(chosen: Evaluate, named: Collection[str]) -> list[Measurement]:
    """Every model, one at a time; `named` are the flags. What is measured is written before the next is loaded.

    Raises:
        ValueError: a model, the prompts or a reward is missing, a model would be measured with other settings, or runs
            were trained in different precisions and none is chosen.
    """
    how, found = chosen.evaluation, list[Measurement]()
    precision = chosen.precision or common_precision(chosen.models)
    texts = prompts.load(how.prompts, how.prompt_column)
    if not how.rewards:
        raise ValueError("name at least one reward with --rewards, the headline first")
    scored = load_rewards(how.scores, how.reward_options)
    for name in dict.fromkeys(chosen.models):
        warn_of_guidance(name, how.sampler.guidance)
        at = chosen.at if (Path(name) / "config.yaml").is_file() else None  # other models have no checkpoints
        policy = policy_of(name, how.weights, chosen.loading, precision, named, at)
        if policy.weights.palette or len(chosen.models) == 1:  # beside other models, it is for the palettes
            mix(policy, chosen.mixture)
        precision = policy.precision  # what `auto` was for the first model, it is for all
        remark_on_guidance(name, policy, how.sampler.guidance)
        policy.refuse(list(texts))
        for reward in scored.values():
            rewards.refuse(reward, texts.texts, texts.about(range(len(texts)), policy.medium.facts))
        own = replace(how, weights="policy")
        if found:
            try:
                comparison.refuse_unequal(found[0].settings, settings(policy, texts, own, scored))
            except ValueError as error:
                raise ValueError(f"{error}{_kept(chosen.json)}") from error
        asked = [texts[i] for i in dict.fromkeys(how.chosen(texts))]
        for remark in policy.remarks_on(asked):
            tell(f"{policy.name}: {remark}")
        policy.prepare(asked)
        started = time.perf_counter()
        with counting(policy.name, len(how.chosen(texts))) as advance:
            measured = measure(policy, texts, own, scored, chosen.html is not None, advance)
        if made_from := exported.facts(name):
            print(visible(f"{policy.name}: {exported.sentence(made_from)}"), file=sys.stderr)
            about = {**measured.settings["model"], "made_from": made_from}
            measured = replace(measured, settings={**measured.settings, "model": about})
        if (Path(name) / "config.yaml").is_file():  # other models have but one kind of weights
            measured = replace(measured, settings={**measured.settings, "weights": how.weights})
        print(
            visible(f"{policy.name}: {len(measured):,} images in {time.perf_counter() - started:.1f} s"),
            file=sys.stderr,
        )
        found.append(measured)
        with suppress(OSError):  # the scores are not lost: the table is printed, then writing is tried again
            _write(chosen.json, found)
    return found


def _kept(file: Path | None) -> str:
    return f"; what was measured before is in {file}" if file else ""
