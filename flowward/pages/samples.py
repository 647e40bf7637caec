"""The sample pictures of a run as values: each prompt before and after training, and training groups by reward.

samples/NNNNNN.json has the pictures of an evaluation (see evaluation/saved.py). Older runs have PNG grids alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..evaluation.outcome import when
from ..evaluation.saved import Group, Saved, Shown
from ..training.record import Record
from .parts import Card, Fact, Gallery, Shot, embedded

MOST = 60  # evaluations that a page shows, evenly spaced
MOST_GRIDS = 25  # the same of older runs, whose grids are larger
ROOM = 2_000_000  # bytes of pictures in a page; more evaluations leave room for fewer prompts
SOUND_ROOM = 12_000_000  # bytes of sounds in a page; of more, those before and after training can be played
FEWEST = 6  # prompts that are shown anyway


def of(folder: Path) -> dict[str, Any]:
    """The values of samples.html.j2."""
    paths = Record(folder).records()
    found = [each for path in spread(paths, MOST) if (each := read(path)) is not None and each.samples]
    return _cards(found) if found else _grids(Record(folder).samples())


def read(path: Path) -> Saved | None:
    """The pictures of an evaluation; None if the file is damaged."""
    with suppress(OSError, ValueError, ValidationError, RecursionError):
        return Saved.model_validate_json(path.read_text("utf-8"))
    return None


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """All, or evenly spaced ones with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


def _cards(found: Sequence[Saved]) -> dict[str, Any]:
    first, last, later = found[0], found[-1], found[1:]
    prompts = _prompts(found)
    known = [{each.number: each for each in saved.samples} for saved in later]
    playable = sum(len(each.sound) for saved in found for each in saved.samples) <= SOUND_ROOM
    cards, frames = [], []
    for sample in prompts:
        shots = [_shot(sample, first.iteration, later=False)]
        if later:
            own = [at.get(sample.number) for at in known]
            end = own[-1] or next(each for each in reversed([sample, *own]) if each is not None)
            shots.append(_shot(end, last.iteration, later=True))
            frames.append([_frame(each, saved.iteration, each is own[-1], playable)
                           for each, saved in zip(own, later, strict=True)])  # fmt: skip
        cards.append(Card(sample.prompt, shots, sample.category))
    note = "Pictures side by side have the same prompt and the same noise. "
    note += f"{len(prompts)} of {len(first.samples)} prompts are shown. " if len(prompts) < len(first.samples) else ""
    note += "Select a picture to enlarge it; the arrow keys move on, Escape closes."
    groups = next((saved for saved in reversed(found) if saved.groups), None)
    return {
        "grids": [],
        "note": note,
        "before": Gallery(cards, columns=2 if later else 1),
        "moments": [_moment(saved.iteration) for saved in later],
        "frames": {"moments": [_moment(saved.iteration) for saved in later], "frames": frames},
        "groups_title": f"Training groups of iteration {groups.iteration:,}" if groups else "",
        "groups": [_group(each) for each in groups.groups] if groups else [],
    }


def _prompts(found: Sequence[Saved]) -> list[Shown]:
    """The samples of the first evaluation whose pictures over all evaluations fit into a page."""
    first = found[0].samples
    whole = sum(len(each.image) for saved in found for each in saved.samples)
    many = len(first) if whole <= ROOM else max(FEWEST, int(len(first) * ROOM / whole))
    return spread(first, many)


def _moment(iteration: int) -> str:
    return when(iteration).capitalize()


def _shot(sample: Shown, iteration: int, later: bool) -> Shot:
    return Shot(
        sample.address,
        f"{sample.prompt}, {when(iteration)}",
        _moment(iteration),
        facts(sample),
        small=sample.address.startswith("data:image/png"),
        later=later,
        sound=sample.heard,
    )


def facts(sample: Shown) -> list[Fact]:
    scores = [Fact(name, _number(value)) for name, value in sample.scores.items()]
    if sample.mark is None:
        return scores
    return [Fact("", sample.mark or "right", "wrong" if sample.mark else "right"), *scores]


def _frame(sample: Shown | None, iteration: int, shown: bool, playable: bool = True) -> dict[str, Any]:
    """What the slider shows at an iteration; the page has the picture of the last one already."""
    if sample is None:
        return {"image": "data:,", "alt": f"no picture {when(iteration)}", "facts": []}
    said = [[fact.name, fact.value, fact.verdict] for fact in facts(sample)]
    sound = {"sound": sample.heard} if sample.sound and playable else {}
    image = {} if shown else {"image": sample.address, **sound}
    return {**image, "alt": f"{sample.prompt}, {when(iteration)}", "facts": said}


def _group(group: Group) -> Gallery:
    """One prompt: its training images, the best first."""
    shots = []
    for rank, each in enumerate(sorted(group.samples, key=lambda each: -each.reward), 1):
        facts = [Fact("reward", _number(each.reward)), Fact("advantage", _signed(each.advantage))]
        alt = f"{group.prompt}, {rank} of {len(group.samples)} by reward"
        shots.append(Shot(each.address, alt, "", facts, small=each.address.startswith("data:image/png")))
    return Gallery([Card(group.prompt, shots)], columns=8)


def _signed(value: float) -> str:
    """An advantage with its sign; 0.00 has none."""
    said = f"{value:+.2f}".replace("-", "−")
    return "0.00" if said[1:] == "0.00" else said


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def _grids(paths: Sequence[Path]) -> dict[str, Any]:
    """Grids of whole evaluations; their prompts are part of the image."""
    shots = []
    for path in spread(paths, MOST_GRIDS):
        with suppress(OSError):
            label = _moment(int(path.stem))
            shots.append(Shot(embedded(path.read_bytes()), f"samples: {label}", label))
    moments = [shot.label for shot in shots[1:]]
    frames = [{"alt": shot.alt, **({} if shot is shots[-1] else {"image": shot.image})} for shot in shots[1:]]
    return {"grids": shots, "before": None, "moments": moments, "frames": {"moments": moments, "frames": [frames]}}
