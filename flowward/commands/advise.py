"""flowward advise"""

from __future__ import annotations

import shlex
import textwrap
from dataclasses import dataclass
from typing import Any

from ..system.errors import positive
from ..system.terminal import tell, visible
from .help import WIDEST, Page, example
from .options import parse
from .tables import width

PAGE = Page(
    about="Recommend an algorithm, settings and batch sizes for a model, a reward and a GPU, and estimate the hours. "
    "Each line says what it is based on. Nothing is downloaded, and no GPU is needed.",
    examples=(
        ("advise --model scenes --reward scenes --gpu none", "the built-in model on a laptop"),
        ("advise --model stabilityai/stable-diffusion-3.5-medium --reward ocr --gpu 4090", "a real model"),
        (
            "advise --model black-forest-labs/FLUX.1-dev --reward pickscore --gpu 24GB --hours 12",
            "how far 12 hours lead",
        ),
    ),
)
LEFT = 17  # columns of labels


@dataclass(frozen=True)
class Advise:
    """Recommend an algorithm, settings and batch sizes."""

    reward: tuple[str, ...]
    """what you want to optimise, as for flowward train"""
    gpu: str
    """your GPU: a name (H100, 4090), its memory (24GB), or none"""
    model: str = "scenes"
    """built-in model, folder of a diffusers pipeline, or owner/name"""
    hours: float | None = None
    """longest training time (none: no limit)"""

    def __post_init__(self) -> None:
        if self.hours is not None:
            positive(self, "hours")


def run(words: list[str]) -> int:
    chosen = parse(Advise, words, "advise", page=PAGE)
    from ..studies import cards, subjects
    from ..studies.advice import Question, advice
    from ..studies.shipped import leaderboard

    card, wanted = cards.named(chosen.gpu), subjects.wanted(chosen.reward)
    asked = Question(subjects.model(chosen.model), wanted, card, chosen.hours)
    found, room = advice(asked, leaderboard(), _size(asked.model)), min(width(), WIDEST)
    for label, text in found.lines:
        print(visible(_line(label, text, room)))
    print(visible(f"\n{example(f'train {shlex.join(found.start.words)}', 'start it', room)}"))
    return 0


def _size(model: Any) -> Any:
    """Counted before, or now from the configuration in its folder."""
    from ..studies import sizes

    if model.built_in or model.videos or model.sounds:
        return None
    if known := sizes.known(model.name):
        return known
    if model.folder is None:
        return None
    tell(f"counting the memory of {model.name} from its configuration: about two minutes")
    return sizes.counted(str(model.folder))


def _line(label: str, text: str, room: int) -> str:
    """A label and its text beside it, with lines of at most `room` columns; words are not broken."""
    return textwrap.fill(
        text, max(room, LEFT + 20), initial_indent=f"{label:<{LEFT}}", subsequent_indent=" " * LEFT,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
