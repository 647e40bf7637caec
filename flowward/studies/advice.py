"""Which algorithm, settings and batches to begin with, and what each recommendation is based on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..algorithms import CLASSES
from ..algorithms.presets import PRESETS, facts
from ..learning.jumps import trained_by
from ..models.names import BUILT_IN
from ..training.counting import said
from . import fits, starts
from .cards import Card, Pace, pace
from .fits import Fit
from .ranking import Ranking, ranking
from .sizes import Size
from .starts import Counts, Start
from .subjects import Model, Wanted, by_gradient, verdicts

Lines = Iterator[tuple[str, str]]
LONG = 100.0  # hours on one card, above which a shorter recipe is named


@dataclass(frozen=True)
class Question:
    """What advice is asked for."""

    model: Model
    wanted: Wanted
    card: Card | None  # None: a computer without a GPU
    hours: float | None = None

    def __post_init__(self) -> None:
        if self.card is None and not self.model.built_in:
            raise ValueError(
                f"training {self.model.name} needs a CUDA GPU: give --gpu its name or memory, such as 24GB; without a "
                "GPU, use --model scenes"
            )


@dataclass(frozen=True)
class Choice:
    """The recommended algorithm, and the next one."""

    algorithm: str
    second: str | None
    ranking: Ranking | None  # None: nothing was compared


@dataclass(frozen=True)
class Advice:
    """What is recommended: lines with a label each, and words of `flowward train`."""

    start: Start
    choice: Choice
    lines: tuple[tuple[str, str], ...]


def suitable(model: Model) -> tuple[str, ...]:
    """The algorithms that need scores alone and suit the model: in the order of CLASSES, jumps first.

    A step-distilled model is no flow, so losses that take its velocity for E[u | x_t] are left out.
    """
    trains = {name: _trains(name) for name in CLASSES if facts(name).family in ("forward process", "reverse process")}
    jumps = [name for name, own in trains.items() if own == "jumps"] if model.two_times else []
    others = ("steps",) if model.signs else ("steps", "velocity")
    return (*jumps, *(name for name, own in trains.items() if own in others))


def _trains(name: str) -> str:
    return trained_by(next(iter(PRESETS[name].values())).algorithm.points)


def choose(found: Mapping[str, Any], model: Model, wanted: Wanted) -> Choice:
    """The best algorithm at equal time; among those that cannot be told from it, one with a recipe for this task.

    Args:
        found: a study.json, or nothing.
    """
    able = suitable(model)
    if model.two_times:  # their own algorithm, which needs a study of its own
        return Choice(able[0], None, None)
    own = ranking(found, wanted.names, wanted.passing, verdicts())
    leaders = own.leaders(able) if own else ()
    if own is None or not leaders:
        return Choice(min(able, key=lambda name: _unready(name, model, wanted)), None, None)
    first = min(leaders, key=lambda name: _unready(name, model, wanted))  # the first of equals: the best
    return Choice(first, next((name for name in own.among(able) if name != first), None), own)


def _unready(name: str, model: Model, wanted: Wanted) -> tuple[bool, bool]:
    """Sorts algorithms with a recipe for the model and the rewards first, then those with one for the model."""
    return starts.recipe(name, model, wanted) is None, starts.recipe(name, model, None) is None


def advice(asked: Question, found: Mapping[str, Any], size: Size | None) -> Advice:
    """Everything that is recommended.

    Args:
        found: the leaderboard, a study.json; may be empty.
        size: of the model (None: the built-in one, or not known).

    Raises:
        ValueError: the settings cannot be.
    """
    choice = choose(found, asked.model, asked.wanted)
    start = starts.start(choice.algorithm, asked.model, asked.wanted)
    if size and not fits.counted(start.settings, size):
        size = None
    evaluations = size.evaluations if size else _doubled
    counted = starts.counts(start.settings, evaluations)
    lines = [("Algorithm", _algorithm(choice)), *_evidence(choice, asked.model), ("Settings", _settings(start))]
    fit = next(fits.fits(start.settings, counted, size, asked.card), None) if size and asked.card else None
    if fit:
        start = _loaded(start, fit)
    lines += [("Batch", _batch(start, counted, fit)), ("Memory", _memory(asked, start, counted, size, fit))]
    lines += [("Time", _time(asked, choice, start, counted, size, fit)), *_shorter(asked, start, counted, size, fit)]
    lines += _notes(asked)
    return Advice(start, choice, tuple(lines))


def _doubled(guidance: float) -> int:
    """Network passes of a velocity where the family is not known: two with guidance."""
    return 1 if guidance == 1 else 2


def _loaded(start: Start, fit: Fit) -> Start:
    """With the options that make the model fit; those that its settings have already are not named again."""
    loading, words = start.settings.loading, list(start.words)
    if "--gradient-checkpointing" in fit.way and not loading.gradient_checkpointing:
        words.append("--gradient-checkpointing")
    if "--quantise" in fit.way and loading.quantise is None:
        words += fit.way.split()[fit.way.split().index("--quantise") :]
    return Start(start.algorithm, start.preset, start.settings, tuple(words), start.recipe)


def _algorithm(choice: Choice) -> str:
    own = facts(choice.algorithm)
    return f"{choice.algorithm} ({own.family}). {own.when}"


def _evidence(choice: Choice, model: Model) -> Lines:
    """The line of the leaderboard, and the second choice."""
    own, name = choice.ranking, choice.algorithm
    if own is None:
        what = (
            "algorithms were not compared on few-step models" if model.two_times else "this version has no leaderboard"
        )
        yield "Evidence", f"none: {what}, so this is the first that suits the model (with a recipe, if there is one)"
        return
    best = own.among(suitable(model))[0]
    place = "the best" if name == best else f"not significantly below the best, {best} {own.scores[best].percent()}"
    lost = f"; {own.collapsed[name]} of {own.seeds} seeds ended below the base model" if own.collapsed[name] else ""
    where = "" if model.built_in else ". Measured on the built-in model, not on yours"
    yield (
        "Evidence",
        (
            f"{own.score} {own.scores[name].percent()} {own.when}, {place} of {len(own.scores)} "
            f"({own.seeds} seeds, reward '{own.reward}', base model {100 * own.base:.1f} %){lost}{where}"
        ),
    )
    if choice.second:
        yield "Second choice", _second(own, name, choice.second)


def _second(own: Ranking, first: str, second: str) -> str:
    leader, other = sorted((first, second), key=lambda name: -own.scores[name].mean)
    ahead = own.difference(leader, other)
    told = "a significant difference" if ahead.low > 0 else "which is not significant"
    return f"{second} {own.scores[second].percent()}; {leader} is ahead by {ahead.percent('+')}, {told}"


def _settings(start: Start) -> str:
    if start.recipe:
        return f"recipe {start.recipe} (preset {start.preset})"
    if start.settings.model in BUILT_IN:
        return f"preset {start.preset}, tested on the built-in model"
    written = facts(start.algorithm).presets[start.preset]
    source = " ".join(written.source.split()).partition(". ")[0].rstrip(".")
    return f"preset {start.preset}, made for {written.model} ({source}). There is no recipe for your model and reward"


def _batch(start: Start, counted: Counts, fit: Fit | None) -> str:
    run = start.settings.run
    updates = f", in {run.updates_per_iteration} updates" if run.updates_per_iteration > 1 else ""
    text = f"{run.images:,} images per iteration ({run.groups:,} prompts x {run.group_size}){updates}"
    points = f"{counted.points:,} training points per update"
    if fit is None:
        return f"{text}, {points}"
    return f"{text}, {points}; at once {fit.rollout_batch} images are sampled and {fit.microbatch} points trained on"


def _memory(asked: Question, start: Start, counted: Counts, size: Size | None, fit: Fit | None) -> str:
    if asked.model.built_in:
        return "less than 1 GB, with or without a GPU"
    if size is None or asked.card is None:
        return (
            "not counted for this model and these settings. Write memory instead of train in the command below: it "
            "downloads configurations only"
        )
    card = asked.card
    if fit is None:
        least = fits.least(start.settings, counted, size)
        return (
            f"does not fit: the smallest batch needs {least:.1f} GB with all of {max(size.memory, key=len)}, and "
            f"{card.name} has {card.usable:.1f} GB to use. Try --size 256 256, several GPUs with --shard all, or a "
            "smaller model"
        )
    needs = f"with {fit.way}" if fit.way else "no options needed"
    more = any("GPU" in own for own in asked.wanted.needs.values())
    reward = " The reward's network needs more." if more else ""
    return (
        f"{fit.peak:.1f} of {card.usable:.1f} GB (nine tenths of {card.name}), {needs}; counted as by flowward memory, "
        f"at {size.side} px.{reward}"
    )


def _time(asked: Question, choice: Choice, start: Start, counted: Counts, size: Size | None, fit: Fit | None) -> str:
    """Hours to the end of the run, or how far a limit leads."""
    found = _pace(asked, choice, size, fit, counted)
    run = start.settings.run
    if found is None:
        unnamed = asked.card is not None and asked.card.device is None and not asked.model.built_in
        hint = "Name the card (such as --gpu 4090), or add" if unnamed else "Add"
        return f"not known. An image takes {counted.passes}. {hint} --dry-run to the command below to measure the time"
    images = run.iterations * run.images
    whole = f"{said(found.seconds * images)} for {run.iterations:,} iterations ({images:,} images)"
    text = f"about {whole}, without rewards and evaluations; {found.basis}"
    if asked.hours is None or found.seconds * images <= 3600 * asked.hours:
        return text
    most = int(3600 * asked.hours / (found.seconds * run.images))
    if most < 1:
        return f"{text}. {asked.hours:g} h are less than one iteration ({said(found.seconds * run.images)})"
    return f"{text}. In {asked.hours:g} h: --iterations {most} ({most * run.images:,} images)"


def _pace(asked: Question, choice: Choice, size: Size | None, fit: Fit | None, counted: Counts) -> Pace | None:
    own = choice.ranking
    if asked.model.built_in:
        return Pace(own.seconds[choice.algorithm], f"measured on one thread of {own.machine}") if own else None
    if asked.card is None or size is None or fit is None:
        return None
    return pace(asked.card, asked.model.name, size, fit.way, counted.passes)


def _shorter(asked: Question, start: Start, counted: Counts, size: Size | None, fit: Fit | None) -> Lines:
    """The recipe for the same model and rewards that ends first, if this one takes too long on one card."""
    if size is None or fit is None or asked.card is None:
        return
    limit, own = asked.hours or LONG, _hours(asked.card, asked.model, start, counted, size, fit)
    if own is None or own <= limit:
        return
    found = []
    for name in suitable(asked.model):
        if starts.recipe(name, asked.model, asked.wanted) is None:
            continue
        other = starts.start(name, asked.model, asked.wanted)
        if fits.counted(other.settings, size):
            many = starts.counts(other.settings, size.evaluations)
            room = next(fits.fits(other.settings, many, size, asked.card), None)
            hours = _hours(asked.card, asked.model, other, many, size, room) if room else None
            found += [] if hours is None else [(hours, other)]
    hours, least = min(found, key=lambda each: each[0], default=(own, start))
    if hours < own:
        images = least.settings.run.iterations * least.settings.run.images
        yield (
            "Shorter",
            (
                f"--config {least.recipe}: about {said(3600 * hours)} for {images:,} images, the least of the recipes "
                "for this model and reward. Published batches are often made for many GPUs"
            ),
        )


def _hours(card: Card, model: Model, start: Start, counted: Counts, size: Size, fit: Fit) -> float | None:
    """Of the whole run on one card."""
    found = pace(card, model.name, size, fit.way, counted.passes)
    run = start.settings.run
    return None if found is None else found.seconds * run.iterations * run.images / 3600


def _notes(asked: Question) -> Lines:
    model, wanted = asked.model, asked.wanted
    if wanted.gradient:
        yield "Faster, riskier", _gradient(model, wanted)
    if model.signs and not model.two_times:
        sure = "is" if model.distilled else "may be"
        yield (
            "Few steps",
            (
                f"the model {sure} step-distilled ({model.signs[0]}): only algorithms that train the sampler's own "
                "steps were considered, since others would blur its images (docs/few_step.md)"
            ),
        )
    if len(wanted.names) > 1:
        yield (
            "Several rewards",
            (
                "--mix advantages makes their scales equal; with --palette you choose their weights after training "
                "(docs/howto/several_rewards.md)"
            ),
        )
    if model.edits:
        yield "Editing", "every prompt needs a source image (docs/prompts.md)"


def _gradient(model: Model, wanted: Wanted) -> str:
    names = by_gradient()
    ready = next((own.name for name in names if (own := starts.recipe(name, model, wanted))), None)
    how = f"--config {ready}" if ready else f"--algorithm {names[0]}"
    return (
        f"the reward has a gradient, which {', '.join(names)} use ({how}): fewer images, but the reward is exploited "
        "sooner. Watch a second reward (docs/howto/differentiable_rewards.md)"
    )
