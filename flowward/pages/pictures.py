"""Images of several models side by side, from the same prompts and noise; next to their source image for edits."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from ..evaluation.images import thumbnails
from ..evaluation.measurement import Measurement
from ..prompts.pictures import picture

SHOWN = 6  # prompts in each group


def pictures(found: Sequence[Measurement]) -> str:
    """The images that changed most, the best and the worst, with all scores. Every image needs a thumbnail."""
    first, last = found[0], found[-1]
    legend = "".join(f"<span><i class=part-{min(k, 4)}></i>{escape(each.name)}</span>" for k, each in enumerate(found))
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
    parts = []
    for title, chosen in groups.items():
        if len(chosen):
            cells, many = "".join(_pair(found, k) for k in chosen), len(found) + bool(first.sources)
            parts.append(f"<h3>{escape(title)}</h3><div class=pairs style='--models: {many}'>{cells}</div>")
    note = (
        f"Ranked by {first.headline}, and by the other scores if it is equal. "
        "Images side by side have the same prompt and the same noise."
    )
    return f"<h2>Images</h2><p class=quiet>{escape(note)}</p><div class=legend>{legend}</div>{''.join(parts)}"


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


def _pair(found: Sequence[Measurement], k: int) -> str:
    shots = []
    if found[0].sources and (source := found[0].sources[k]):
        height, width = found[0].settings["image_size"]
        (data,) = thumbnails(picture(source, (height, width))[None])
        shots.append(f"<figure class=shot>{_image(data, 'source')}<table><tr><td>source</td></tr></table></figure>")
    for number, each in enumerate(found):
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td class=number>{_said(own[k].item(), name in each.verdicts)}</td></tr>"
            for name, own in each.scores.items()
        )
        shots.append(
            f"<figure class=shot>{_image(each.pictures[k], each.name)}"
            f"<i class=part-{min(number, 4)}></i><table>{rows}</table></figure>"
        )
    said = f"<p>{escape(found[0].texts[k])}</p><p class=quiet>{escape(found[0].categories[k])}, image {k}</p>"
    return f"<div class=pair>{said}<div class=shots>{''.join(shots)}</div></div>"


def _image(data: bytes, name: str) -> str:
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return f"<img class={kind} alt='{escape(name, quote=True)}' src='{source}'>"


def _said(score: float, verdict: bool) -> str:
    if verdict and score in (0, 1):
        return "<b class=right>✓</b>" if score else "<b class=wrong>✗</b>"
    return f"{score:.3f}" if abs(score) < 10 else f"{score:.2f}"
