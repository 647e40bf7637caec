"""The planner's decisions as training points: number i is turn i, with the advantage of its episode.

The turns of an episode go into the same optimiser step. What the sum of losses is divided by, and what a token counts
inside it, are two numbers, so that the three ways of averaging are one equation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..learning.rows import Rows
from ..system import distributed
from .episode import Episode

Weighting = Literal["paper", "episode", "token"]
Chosen = Literal["all", "first", "last"]


@dataclass(frozen=True)
class Trace:
    """The planner's tokens in T turns of several episodes, one after the other. Ragged parts are flat."""

    prompt: Tensor  # all prompts, token ids
    answer: Tensor  # all answers, token ids
    log_prob: Tensor  # of each token of the answers, float32
    prompts: Tensor  # [T] length of each prompt
    answers: Tensor  # [T] length of each answer
    episode: Tensor  # [T] number of the episode
    correction: Tensor  # of each token of the answers, float32: what its loss is multiplied with; usually 1

    @classmethod
    def of(cls, episodes: Sequence[Episode], numbers: Sequence[int], chosen: Chosen = "all") -> Trace:
        """The turns of these episodes with these numbers; failed episodes have none.

        A turn without tokens holds no decision, so it is left out.
        """
        keep = {"all": slice(None), "first": slice(0, 1), "last": slice(-1, None)}[chosen]
        turns = [
            (number, turn)
            for number, episode in zip(numbers, episodes, strict=True)
            for turn in (() if episode.failed else episode.turns[keep])
            if turn.said.ids
        ]
        return cls(
            torch.tensor([token for _, turn in turns for token in turn.prompt], dtype=torch.long),
            torch.tensor([token for _, turn in turns for token in turn.said.ids], dtype=torch.long),
            torch.tensor([value for _, turn in turns for value in turn.said.log_probs], dtype=torch.float32),
            torch.tensor([len(turn.prompt) for _, turn in turns], dtype=torch.long),
            torch.tensor([len(turn.said.ids) for _, turn in turns], dtype=torch.long),
            torch.tensor([number for number, _ in turns], dtype=torch.long),
            torch.ones(sum(len(turn.said.ids) for _, turn in turns)),
        )

    @classmethod
    def cat(cls, traces: Sequence[Trace]) -> Trace:
        """The turns of all of them, in order."""
        return cls(*(torch.cat([getattr(each, name.name) for each in traces]) for name in fields(cls)))

    def __len__(self) -> int:
        return len(self.episode)


@dataclass(frozen=True)
class Decisions(Rows):
    """A minibatch of B turns."""

    prompt: Tensor  # [B, P] token ids, padded on the left with -1
    answer: Tensor  # [B, L] token ids, padded on the right with -1
    advantage: Tensor  # [B] float64
    weight: Tensor  # [B, L] float64, of each token in the sum of losses; 0 at padding


@dataclass(frozen=True)
class Turns:
    """The turns of an iteration with their advantages."""

    trace: Trace
    advantage: Tensor  # [T] float64
    weighting: Weighting = "paper"
    group_size: int = 1  # episodes per question, consecutive ones

    indivisible = 1
    in_order = False

    def __len__(self) -> int:
        return len(self.trace)

    def units(self) -> list[Tensor]:
        """The turns of each episode."""
        _, index = self.trace.episode.unique(return_inverse=True)
        return list(index.argsort(stable=True).split(torch.bincount(index).tolist()))

    def prompts(self) -> Tensor:
        """The question of each episode that has turns."""
        return self.trace.episode.unique() // self.group_size

    def here(self, numbers: Tensor) -> Tensor:
        """A share of them: every process has all turns, which are small."""
        return distributed.share(numbers)

    def total(self, numbers: Tensor) -> float:
        """Episodes among these turns, or with `token` their tokens."""
        if self.weighting == "token":
            return float(self.trace.answers[numbers].sum())
        return len(self.trace.episode[numbers].unique())

    def take(self, numbers: Tensor) -> Decisions:
        prompts, answers, recorded, corrections = self._parts
        rows = numbers.tolist()
        answer = pad_sequence([answers[row] for row in rows], batch_first=True, padding_value=-1)
        return Decisions(
            pad_sequence([prompts[row] for row in rows], batch_first=True, padding_value=-1, padding_side="left"),
            answer,
            self.advantage[numbers],
            pad_sequence([corrections[row] for row in rows], batch_first=True).double()
            * self._weights[numbers][:, None],
            known={"old": pad_sequence([recorded[row] for row in rows], batch_first=True)},
        )

    @cached_property
    def _parts(self) -> tuple[Sequence[Tensor], ...]:
        """Prompts, answers, log-probabilities and corrections of each turn."""
        trace, lengths = self.trace, self.trace.answers.tolist()
        own = (trace.answer, trace.log_prob, trace.correction)
        return trace.prompt.split(trace.prompts.tolist()), *(each.split(lengths) for each in own)

    @cached_property
    def _weights(self) -> Tensor:
        return self.token_weights()

    def token_weights(self) -> Tensor:
        """[T] what each token of a turn counts in the sum of losses, float64.

        `paper`: 1 / (turns of the episode * tokens of the turn) (AgentFlow, arXiv:2510.05592, Eq. 5); `episode`: 1 /
        tokens of the episode; `token`: 1, the mean over all tokens (the released code).
        """
        _, index, turns = self.trace.episode.unique(return_inverse=True, return_counts=True)
        tokens = self.trace.answers.double()
        if self.weighting == "paper":
            return 1 / (turns[index] * tokens)
        if self.weighting == "episode":
            return 1 / torch.zeros(len(turns), dtype=torch.float64).index_add_(0, index, tokens)[index]
        return torch.ones(len(tokens), dtype=torch.float64)
