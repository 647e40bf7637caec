"""A vision-language model as a reward, on any OpenAI-compatible chat server (vLLM, SGLang, hosted).

The judge gets images as 8-bit PNG, and sounds as 16-bit WAV. Scores are in [0, 1].
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...process import sound
from ...prompts.pictures import picture
from ...system.asking import Server, ServiceError
from ...system.chat_servers import chosen, first_choice, served_models
from ...system.errors import not_negative, positive
from ...system.jobs import work
from ..reward import Metadata, RewardError, served, subjects
from ..service.wire import not_finite, png, to_uint8
from ..sound.waveforms import Listening
from . import template as templates
from .answers import Answers
from .missing import AGAIN, Missing, filled
from .reading import Unreadable, YesNo

HOT = 0.7  # temperature of a retry: at 0 the answer would be the same


@dataclass(frozen=True)
class _Question:
    prompt: str
    messages: list[tuple[str, list[str | None]]]  # None: the next image
    images: tuple[Tensor, ...]  # [3, H, W] or [C, T]; one, or two to compare, and sometimes the source image
    rate: int  # of sounds, in Hz
    key: str  # hash of everything that the answer depends on


@dataclass
class Judge:
    """Let a vision-language model score each image, or compare two images of the same prompt.

    With a template that has {sound} in the place of {image}, a model that hears scores sounds.
    With a template that compares, the score is the win rate against the other images of the prompt in the call. A tie
    counts as half a win, and so do equal images (Pref-GRPO, arXiv:2508.20751). Hashes decide which image of a pair is
    shown first, so position bias averages out and scores do not depend on the order of images.

    An answer that is unreadable or not finished is requested again. If it stays so, the image gets the mean score of
    the other images of its prompt. This is printed and counted (`missing`), and the call fails if it happens often
    (`max_missing`). An unavailable server is tried again; after `patience` seconds the call fails. Safe to call from
    several threads.

    Raises:
        ValueError: no judge answers, it refuses the key, it does not have the model, or an option is invalid.
    """

    in_background: ClassVar[bool] = True

    model: str = ""
    """ask this model of the server (empty: its only one)"""
    server: str = "http://127.0.0.1:8000/v1"
    """use the OpenAI-compatible server at this base address"""
    template: str = "yes-no"
    """use template unified-reward(-pairwise), yes-no, sound-yes-no, json-score, edit, edit-several, or your file"""
    key_variable: str = "OPENAI_API_KEY"
    """read the API key from this environment variable, if the server needs one"""
    concurrency: int = 16
    """send this many questions at once"""
    timeout: float = 120.0
    """wait this many seconds for one answer"""
    patience: float = 600.0
    """fail after this many seconds without any answer"""
    max_retries: int = 3
    """repeat a question this often if the answer cannot be parsed"""
    max_missing: float = 0.02
    """fail if more than this share of answers cannot be parsed after that (0: fail at the first)"""
    cache: str | Path | None = None
    """store answers in this folder, to avoid paying twice (None: do not)"""

    def __post_init__(self) -> None:
        positive(self, "concurrency", "timeout", "patience")
        not_negative(self, "max_retries", "max_missing")
        self._missing = Missing(self.max_missing)
        self._template = templates.load(self.template)
        self._answers = Answers(Path(self.cache)) if self.cache else None
        key = os.environ.get(self.key_variable) or None
        self._server = Server(self.server, self.timeout, key, again=AGAIN)
        self._model = self._meet()

    def _meet(self) -> str:
        """The model to ask, checked against the models of the server."""
        listed = [each["id"] for each in served_models(self._server, "judge", self.key_variable)]
        return chosen(self.model, listed, "judge", self.server)

    @property
    def compares(self) -> bool:
        """Whether a score depends on the other images of the prompt in the call."""
        return self._template.images == 2

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Of probabilities and win rates; a template that reads numbers does not say their range."""
        return (0.0, 1.0) if self.compares or isinstance(self._template.read, YesNo) else None

    @property
    def identity(self) -> dict[str, str]:
        """The model in use (also if it was not named), and a hash of the template."""
        return {"model": self._model, "template_sha256": self._template.identity[:16]}

    @property
    def missing(self) -> int:
        """The number of answers so far that could not be read."""
        return self._missing.count

    def refuse(self, prompts: Sequence[str], metadata: Metadata = None) -> None:
        """Raise ValueError that names the first prompt with too little metadata for the template."""
        if self._template.hears:
            Listening(f"the template {self.template}").refuse(prompts, metadata)
        for prompt, about in zip(prompts, metadata or [{}] * len(prompts), strict=True):
            try:
                messages = self._template.filled(prompt, about)
            except RewardError as error:
                raise ValueError(str(error)) from error
            for source in (part for _, parts in messages for part in parts if isinstance(part, Path)):
                if not source.is_file():
                    raise ValueError(
                        f"the prompt '{prompt}' has its source image at {source}, but there is no such file"
                    )

    @served()
    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Metadata = None) -> Tensor:
        """Scores [B] in [0, 1] of images [B, 3, H, W], or of waveforms [B, C, T] if the template asks about sounds.

        Raises:
            RewardError: an image has NaN or infinity, a comparison has only one image, too many answers are still
                unreadable after `max_retries`, or the server did not answer for `patience` seconds.
        """
        if bad := not_finite(images):
            raise RewardError(f"an image for '{prompts[bad[0]]}' has NaN or infinity, so the judge cannot score it")
        rate = self._rate(images, prompts, metadata)
        shown, about = to_int16(images) if rate else to_uint8(images), metadata or [{}] * len(images)
        digests = [_digest(image) for image in shown]
        own = subjects(prompts, about)
        if self.compares:
            return filled(self._win_rates(shown, digests, prompts, about, own), own, self._missing.last)
        rows = range(len(images))
        scores = self._asked([self._question(shown, digests, prompts, about, (i,)) for i in rows])
        return filled(torch.tensor(scores), own, self._missing.last)

    def _rate(self, images: Tensor, prompts: Sequence[str], metadata: Metadata) -> int:
        """The rate of sounds in Hz; 0 of images.

        Raises:
            RewardError: the template is for the other kind, or sounds have no rate.
        """
        if self._template.hears:
            return Listening(f"the template {self.template}").rate(images, prompts, metadata)
        if images.ndim == 3:
            raise RewardError(f"the template {self.template} asks about images: use one with {{sound}} for sounds")
        return 0

    def _win_rates(
        self,
        images: Tensor,
        digests: list[str],
        prompts: Sequence[str],
        about: Sequence[Mapping[str, Any]],
        own: Sequence[str],
    ) -> Tensor:
        """Wins per comparison [B]; NaN if no comparison of an image could be read."""
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for index, subject in enumerate(own):
            groups[subject].append(index)
        for members in groups.values():
            if len(members) == 1:
                raise RewardError(
                    f"'{prompts[members[0]]}' has only one image in this call; a win rate needs at least two"
                )
        pairs = [pair for members in groups.values() for pair in combinations(members, 2)]
        unlike = [(i, j) if digests[i] < digests[j] else (j, i) for i, j in pairs if digests[i] != digests[j]]
        answers = self._asked([self._question(images, digests, prompts, about, pair) for pair in unlike])
        won = dict(zip(unlike, answers, strict=True))
        wins, rivals = torch.zeros(2, len(images), dtype=torch.float64)
        for first, second in pairs:
            score = won.get((first, second), 0.5) if (second, first) not in won else 1 - won[second, first]
            if math.isnan(score):
                continue
            wins[first] += score
            wins[second] += 1 - score
            rivals[[first, second]] += 1
        return (wins / rivals).float()

    def _question(
        self,
        images: Tensor,
        digests: list[str],
        prompts: Sequence[str],
        about: Sequence[Mapping[str, Any]],
        rows: tuple[int, ...],
    ) -> _Question:
        prompt = prompts[rows[0]]
        filled = self._template.filled(prompt, about[rows[0]])
        messages = [(role, [part if isinstance(part, str) else None for part in parts]) for role, parts in filled]
        shown, judged = [], iter(rows)
        for part in (each for _, parts in filled for each in parts if not isinstance(each, str)):
            size = images.shape[-2], images.shape[-1]
            shown.append(to_uint8(picture(part, size)) if isinstance(part, Path) else images[next(judged)])
        seen = [digests[row] for row in rows] if len(shown) == len(rows) else [_digest(image) for image in shown]
        rate = int(about[rows[0]]["rate"]) if self._template.hears else 0
        depends = [self._model, self._template.identity, messages, seen, *([rate] if rate else [])]
        key = hashlib.sha256(json.dumps(depends).encode()).hexdigest()
        return _Question(prompt, messages, tuple(shown), rate, key)

    def _asked(self, questions: list[_Question]) -> list[float]:
        doers = [self._answer] * self.concurrency
        return work(doers, questions, self.patience, lambda question: f"judging '{question.prompt}'")

    def _answer(self, question: _Question) -> float:
        """The score, or NaN if the answer cannot be parsed.

        Raises:
            Unavailable: the server does not answer.
            RewardError: the server refuses the question, or too many answers cannot be parsed.
        """
        if self._answers and (known := self._answers.get(question.key)) is not None:
            return known
        body = self._body(question)
        why = ""
        for attempt in range(1 + self.max_retries):
            if attempt:
                body |= {"temperature": max(HOT, body.get("temperature", 1.0)), "seed": attempt}
            try:
                answer = self._server.ask("POST", "/chat/completions", json=body)
                score = self._template.read.read(choice := _choice(answer))
            except Unreadable as error:
                why = str(error)
            except (RewardError, ServiceError) as error:
                raise RewardError(f"judging '{question.prompt}': {error}") from error
            else:
                self._keep(question.key, score, choice)
                return score
        self._missing.unread(
            f"judging '{question.prompt}': cannot parse the answer of {self._model} in {1 + self.max_retries} tries; "
            f"the last: {why}"
        )
        return math.nan

    def _keep(self, key: str, score: float, choice: Mapping[str, Any]) -> None:
        self._missing.read()
        if self._answers:
            self._answers.put(key, score, choice.get("message"))

    def _body(self, question: _Question) -> dict[str, Any]:
        media = iter([_medium(image, question.rate) for image in question.images])
        messages = []
        for role, parts in question.messages:  # chat templates of some models accept a list only if it has images
            content = [_part(part, media) for part in parts] if None in parts else "\n".join(map(str, parts))
            messages.append({"role": role, "content": content})
        return {"model": self._model, "messages": messages, **self._template.read.request(), **self._template.request}


def _part(part: str | None, media: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "text", "text": part} if part is not None else next(media)
    return found


def _medium(image: Tensor, rate: int) -> dict[str, Any]:
    """An image [3, H, W], or a waveform [C, T] with its rate, as a part of a message."""
    if rate:
        data = base64.b64encode(sound.wav(image.float() / sound.FULL, rate)).decode()
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(png(image)).decode()}}


def to_int16(waveforms: Tensor) -> Tensor:
    """[-1, 1] to -32767..32767, clamped, on the CPU."""
    return (waveforms.detach().cpu().float().clamp(-1, 1) * sound.FULL).round().to(torch.int16)


def _digest(image: Tensor) -> str:
    """Hash of the pixels that the judge sees, independent of their encoding."""
    return hashlib.sha256(json.dumps(list(image.shape)).encode() + image.contiguous().numpy().tobytes()).hexdigest()


def _choice(answer: Any) -> Mapping[str, Any]:
    try:
        return first_choice(answer)
    except ValueError as error:
        raise Unreadable(str(error)) from error
