"""The pictures of an evaluation on disk, samples/NNNNNN.json: each an image of its own, with its whole prompt.

samples.py writes them; no torch is needed to read them.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints


class Picture(BaseModel):
    """An image file as text."""

    model_config = ConfigDict(allow_inf_nan=False)
    image: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]+=*$")]  # base64
    kind: Annotated[str, StringConstraints(pattern=r"^(png|jpeg|webp)$")] = "png"
    sound: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]*=*$")] = (
        ""  # a WAV file in base64, if there is one
    )

    @property
    def address(self) -> str:
        """As a data: address."""
        return f"data:image/{self.kind};base64,{self.image}"

    @property
    def heard(self) -> str:
        """The sound as a data: address; empty if there is none."""
        return f"data:audio/wav;base64,{self.sound}" if self.sound else ""


class Shown(Picture):
    """A picture of the evaluation."""

    number: int  # of its prompt
    prompt: str
    category: str = ""
    mark: str | None = None  # its verdict: None if there is none, "" if the image is right, otherwise the error
    scores: dict[str, float] = {}


class Member(Picture):
    """A training image."""

    reward: float
    advantage: float


class Group(BaseModel):
    """The training images of a prompt."""

    prompt: str
    samples: list[Member] = []


class Saved(BaseModel):
    """The file of an evaluation, as `samples.Samples.record` writes it. Other keys may come beside these."""

    model_config = ConfigDict(allow_inf_nan=False)
    iteration: int
    samples: list[Shown] = []
    groups: list[Group] = []
