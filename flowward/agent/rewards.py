"""Rewards on answers: `reward(answers, questions, metadata) -> [B]`, higher is better.

The right answer stands in the metadata of a question, under `answer`: a text, or a list of texts that are all right.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..rewards import RewardError, weighted
from ..rewards.reward import guarded
from ..system.asking import ServiceError
from ..system.errors import unknown
from ..system.user_code import find
from .chat import ChatModel
from .episode import Ask, Said
from .modules import last_choice
from .templates import Templates

ANSWER = "answer"  # key of the right answer in the metadata of a question


class AnswerReward(Protocol):
    """Scores answers. `verdicts` (default False) says that scores of 0 and 1 mean wrong and right."""

    def __call__(
        self, answers: Sequence[str], questions: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> Tensor:
        """B answers, B questions, B mappings -> scores [B]."""
        ...


@dataclass(frozen=True)
class Term:
    """A reward with its name and weight."""

    name: str
    weight: float
    reward: AnswerReward

    @property
    def verdicts(self) -> bool:
        return bool(getattr(self.reward, "verdicts", False))

    def score(self, answers: Sequence[str], questions: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> Tensor:
        """Scores, float64 [B].

        Raises:
            RewardError: the reward failed, or did not return one finite number per answer.
        """
        if not answers:
            return torch.empty(0, dtype=torch.float64)
        with guarded(f"reward '{self.name}'"):
            found = self.reward(answers, questions, metadata)
        try:
            scores = torch.as_tensor(found).detach().double().cpu()
        except Exception as error:
            raise RewardError(f"reward '{self.name}' must return one number per answer ({error})") from error
        if scores.shape != (len(answers),):
            raise RewardError(
                f"reward '{self.name}' must return shape [{len(answers)}], but returned {list(scores.shape)}"
            )
        if len(bad := (~scores.isfinite()).nonzero().flatten()):
            raise RewardError(
                f"reward '{self.name}' returned {scores[bad[0]].item()} for the question '{questions[int(bad[0])]}'"
            )
        return scores


def expected(about: Mapping[str, Any]) -> list[str]:
    """The right answers of a question."""
    found = about.get(ANSWER)
    every = found if isinstance(found, list | tuple) else [found]
    return [str(each) for each in every if each is not None]


def refuse(questions: Sequence[str], metadata: Sequence[Mapping[str, Any]], name: str) -> None:
    """Raise ValueError for the first question without a right answer, or that comes twice.

    `name` is that of the set of questions.
    """
    seen: dict[str, int] = {}
    for number, (question, about) in enumerate(zip(questions, metadata, strict=True), 1):
        if not any(each.strip() for each in expected(about)):
            raise ValueError(f"{name}: question {number}, '{question[:60]}', has no '{ANSWER}' to compare with")
        if question in seen:
            raise ValueError(f"{name}: question {number}, '{question[:60]}', is question {seen[question]} again")
        seen[question] = number


def normal(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces (as SQuAD compares answers, arXiv:1606.05250).

    Unlike there, the sign of a number counts, and a text of articles alone stays (the answer may be choice A).
    """
    text = re.sub(r"(?<![\w.])[-\u2212](?=\.?\d)", "minus ", unicodedata.normalize("NFKC", text).lower())
    words = "".join(" " if each in string.punctuation else each for each in text).split()
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)


DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?"


def number(text: str) -> float | None:
    """The last number in a text, with thousands separators, a percent sign or a fraction a/b; None if there is none."""
    found = re.findall(rf"(?:(?<!\w)-)?{DIGITS}(?:\s*/\s*\d+)?", text.replace("\u2212", "-"))
    if not found:
        return None
    top, _, bottom = found[-1].replace(",", "").replace(" ", "").partition("/")
    try:
        value = float(top) / float(bottom) if bottom else float(top)
    except (ZeroDivisionError, OverflowError):
        return None
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Exact:
    """1 if the answer equals a right one after normalisation, else 0; numbers are equal if their values are."""

    verdicts = True

    def __call__(
        self, answers: Sequence[str], questions: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> Tensor:
        return torch.tensor(
            [float(any(_equal(answer, each) for each in expected(about)))
             for answer, about in zip(answers, metadata, strict=True)], dtype=torch.float64
        )  # fmt: skip


def _equal(answer: str, right: str) -> bool:
    if is_number(answer) and is_number(right):
        return number(right) is not None and number(answer) == number(right)
    return bool(normal(right)) and normal(answer) == normal(right)


def is_number(text: str) -> bool:
    """Whether a text is one number and nothing else."""
    return re.fullmatch(rf"\s*[-\u2212+]?{DIGITS}\s*", text) is not None


@dataclass(frozen=True)
class Number:
    """1 if the last number of the answer is that of a right one, up to a relative error, else 0."""

    tolerance: float = 1e-6
    """largest relative error"""

    verdicts = True

    def __call__(
        self, answers: Sequence[str], questions: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> Tensor:
        return torch.tensor(
            [float(any(self._near(number(answer), number(each)) for each in expected(about)))
             for answer, about in zip(answers, metadata, strict=True)], dtype=torch.float64
        )  # fmt: skip

    def _near(self, found: float | None, right: float | None) -> bool:
        if found is None or right is None:
            return False
        return abs(found - right) <= self.tolerance * max(abs(right), abs(found))


@dataclass(frozen=True)
class F1:
    """F1 of the words that answer and right answer share, in [0, 1]; the best of several right answers."""

    def __call__(
        self, answers: Sequence[str], questions: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> Tensor:
        return torch.tensor(
            [max((_f1(answer, each) for each in expected(about)), default=0.0)
             for answer, about in zip(answers, metadata, strict=True)], dtype=torch.float64
        )  # fmt: skip


def _f1(answer: str, right: str) -> float:
    found, wanted = Counter(normal(answer).split()), Counter(normal(right).split())
    if not (shared := (found & wanted).total()):
        return 0.0
    return 2 * shared / (found.total() + wanted.total())


@dataclass
class Judge:
    """1 if a chat model says that the answer means the same as the right one, else 0.

    An answer of the judge without a verdict is asked for once more; then the score is 0, and `unread` counts it.
    """

    model: ChatModel
    templates: Templates = field(default_factory=Templates)
    unread: int = 0

    verdicts = True
    bounds = (0.0, 1.0)

    @property
    def identity(self) -> dict[str, str]:
        """The model, and the text of its prompt."""
        return {"model": self.model.model, "template": self.templates.source("judge").read_text("utf-8")}

    def __call__(
        self, answers: Sequence[str], questions: Sequence[str], metadata: Sequence[Mapping[str, Any]]
    ) -> Tensor:
        """Raises RewardError if the server refuses, or does not answer for too long."""
        asks = [
            Ask("judge", self.model.model, self.templates.filled(
                "judge", question=question, expected=expected(about), answer=answer
            ))
            for answer, question, about in zip(answers, questions, metadata, strict=True)
        ]  # fmt: skip
        found = [self._read(said) for said in self.model(asks)]
        again = [number for number, verdict in enumerate(found) if verdict is None]
        for number, said in zip(again, self.model([asks[number] for number in again]) if again else [], strict=True):
            found[number] = self._read(said)
        self.unread += sum(verdict is None for verdict in found)
        return torch.tensor([float(verdict or 0.0) for verdict in found], dtype=torch.float64)

    @staticmethod
    def _read(said: Said | ServiceError) -> float | None:
        if isinstance(said, ServiceError):
            raise RewardError(f"judging an answer: {said}") from said
        chosen = last_choice(said.text, "verdict", ("right", "wrong"))
        return float(chosen == "right") if chosen else None


REWARDS: Mapping[str, type] = {"exact": Exact, "number": Number, "f1": F1}
JUDGE = "judge:"


def load(names: Sequence[str], judge: Callable[[str], AnswerReward] | None = None) -> list[Term]:
    """Rewards by name, `name=weight`, `judge:URL#MODEL`, or `file.py:function`.

    Args:
        judge: makes the reward of a judge at an address (None: with default settings).

    Raises:
        ValueError: a name is unknown or comes twice, a file has no such function, or no judge answers.
    """
    found: list[Term] = []
    for item in names:
        name, weight = weighted(item)
        if any(each.name == name for each in found):
            raise ValueError(f"reward '{name}' is named twice: name it once, with its weight")
        if name in REWARDS:
            found.append(Term(name, weight, REWARDS[name]()))
        elif name.startswith(JUDGE):
            address = name.removeprefix(JUDGE)
            found.append(Term(name, weight, judge(address) if judge else Judge(ChatModel(address))))
        elif ":" in name:
            made = find("reward", name)
            found.append(Term(name, weight, made() if isinstance(made, type) else made))
        else:
            raise ValueError(unknown("reward of answers", name, REWARDS) + " (or judge:URL#MODEL, or file.py:function)")
    if not found:
        raise ValueError("name at least one reward")
    return found
