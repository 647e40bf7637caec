"""Images of several models side by side, from the same prompts and noise; next to their source images for edits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..evaluation.images import thumbnails
from ..evaluation.measurement import Measurement
from ..evaluation.outcome import nouns
from ..prompts.pictures import collage
from .parts import Card, Fact, Gallery, Shot, embedded

SHOWN = 6  # prompts in each gallery


def galleries(found: Sequence[Measurement]) -> list[Gallery]:
    """The images that changed most, the best and the worst, with all scores. Every image needs a thumbnail."""
    first, last = found[0], found[-1]
    mean = sum(_ranked(each, first.headline) for each in found)
    groups: dict[str, NDArray[np.int64]] = {}
    if len(found) > 1:
        change = _ranked(last, first.headline) - _ranked(first, first.headline)
        pair = f" from {first.name} to {last.name}" if len(found) > 2 else ""
        moved = (last.scores[first.headline] - first.scores[first.headline]).numpy()
        groups[f"Largest gains{pair}"] = _distinct(first, np.argsort(-change, kind="stable"), moved > 0)
        groups[f"Largest losses{pair}"] = _distinct(first, np.argsort(change, kind="stable"), moved < 0)
    groups["Best"] = _distinct(first, np.argsort(-mean, kind="stable"))
    groups["Worst"] = _distinct(first, np.argsort(mean, kind="stable"))
    many = len(found) + bool(first.sources)
    return [Gallery([_card(found, k) for k in own], title, many) for title, own in groups.items() if len(own)]


def ranking(found: Sequence[Measurement]) -> str:
    """How the galleries are chosen, in words."""
    return (
        f"Ranked by {found[0].headline}, and by the other scores if it is equal. Images side by side have the same "
        "prompt and the same noise. Select a picture to enlarge it; the arrow keys move on, Escape closes."
    )


def _ranked(measured: Measurement, headline: str) -> NDArray[np.float64]:
    """[N] the headline, plus a tiny share of the standardised other scores to break ties."""
    values = measured.scores[headline].double().numpy()
    others = [own.double().numpy() for name, own in measured.scores.items() if name != headline]
    little = sum((np.tanh((own - own.mean()) / (own.std() or 1.0)) for own in others), np.zeros(len(values)))
    return np.asarray(values + 1e-6 * (values.std() or 1.0) * little)


def _distinct(
    measured: Measurement, order: NDArray[np.int64], among: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """The first images in an order, at most one per prompt."""
    own = order if among is None else order[among[order]]
    _, first = np.unique(measured.prompt[own], return_index=True)
    return np.asarray(own[np.sort(first)][:SHOWN])


def _card(found: Sequence[Measurement], k: int) -> Card:
    """Image k of every model."""
    text, shots = found[0].texts[k], []
    if found[0].sources and (sources := found[0].sources[k]):
        height, width = found[0].settings["image_size"]
        (data,) = thumbnails(collage(sources, (height, width))[None])
        label = "source image" if len(sources) == 1 else f"{len(sources)} source images"
        shots.append(_shot(data, f"{text}, {label}", label))
    for number, each in enumerate(found):
        facts = [_fact(name, own[k].item(), name in each.verdicts) for name, own in each.scores.items()]
        sound = embedded(each.sounds[k]) if each.sounds else ""
        shots.append(_shot(each.pictures[k], f"{text}, by {each.name}", each.name, facts, number, sound))
    return Card(text, shots, f"{found[0].categories[k]}, {nouns(found[0].settings).sample} {k}")


def _shot(
    data: bytes, alt: str, label: str, facts: Sequence[Fact] = (), mark: int | None = None, sound: str = ""
) -> Shot:
    return Shot(embedded(data), alt, label, facts, mark, small=data.startswith(b"\x89PNG"), sound=sound)


def _fact(name: str, score: float, verdict: bool) -> Fact:
    if verdict and score in (0, 1):
        return Fact(name, "", "right" if score else "wrong")
    return Fact(name, f"{score:.3f}" if abs(score) < 10 else f"{score:.2f}")
