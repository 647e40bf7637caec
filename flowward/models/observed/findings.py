"""What was found of a pipeline by observing it, and the network's arguments made from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from . import rows
from .calls import Answer, Call
from .guidance import Rule
from .leaves import BYTE, LENGTHS, FromPrompt, FromSample, Leaf, Row, Stored
from .maps import Map


@dataclass
class Findings:
    """A pipeline's convention. Samples are as its scheduler gets them, [1, *step_shape] for one row."""

    step_shape: tuple[int, ...]
    dtype: torch.dtype  # of samples in the pipeline
    leaves: list[Leaf]  # of the arguments for one row
    names: list[str]
    spec: Any  # puts leaves together to arguments
    one: Call  # of one row
    answer: Any  # what the network returned to it
    half: bool  # whether the pipeline computes in half precision
    rule: rows.Rule | None  # how rows are joined; None: the network is called once for every row
    answer_rule: rows.Rule | None
    answer_place: int  # of the velocity among the leaves of what the network returns
    velocity: Map  # from what the network returns to what the scheduler gets
    stored: list[Stored] = field(default_factory=list)
    rule_of_guidance: Rule | None = None
    empties: list[dict[str, Any]] = field(default_factory=list)  # what may be the empty prompt, the surest first
    alone: bool = False  # whether rows are evaluated one by one

    @property
    def empty(self) -> dict[str, Any] | None:
        """The arguments of the row without a prompt that would follow it."""
        return self.empties[0] if self.empties else None

    @property
    def near(self) -> float:
        """The relative precision of what is observed."""
        return 1e-2 if self.half else 1e-5

    def following(self, leaves: Sequence[Any]) -> dict[str, Any]:
        """Those of the arguments for a row that follow the prompt, by name."""
        kept = [
            isinstance(each, FromPrompt) or (isinstance(each, FromSample) and bool(each.beside)) for each in self.leaves
        ]
        return {name: value for name, value, own in zip(self.names, leaves, kept, strict=True) if own}

    def many(self, call: Call) -> int:
        """How many rows a call has."""
        return 1 if self.rule is None else max(1, rows.count(list(call), list(self.one), self.rule))

    def answers(self, each: Sequence[Any]) -> Answer:
        """The network's answers to one call after another, or to the rows of one call."""

        def answer(number: int, call: Call) -> Any:
            part = each[number : number + self.many(call)]
            return part[0] if len(part) == 1 else rows.joined(list(part), self.answer_rule)

        return answer

    def written(self, words: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The arguments that follow the prompt, of several prompts, as tensors [N, ...] of a condition."""
        found: dict[str, Tensor] = {}
        lengths = torch.zeros(len(words), len(self.stored), dtype=torch.long)
        for number, each in enumerate(self.stored):
            parts = [each.write(own[each.name]) for own in words]
            lengths[:, number] = torch.tensor([each.length(part) for part in parts])
            found[each.name] = _padded(parts)
        device = next(iter(found.values())).device
        return {**found, LENGTHS: torch.stack([lengths // BYTE, lengths % BYTE], -1).float().to(device)}

    def read(self, condition: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """The inverse of `written`, row by row."""
        pairs = condition[LENGTHS].round().long()
        lengths = (pairs[..., 0] * BYTE + pairs[..., 1]).tolist()
        return [
            {each.name: each.read(condition[each.name][row], own[k]) for k, each in enumerate(self.stored)}
            for row, own in enumerate(lengths)
        ]

    def groups(self, words: Sequence[Mapping[str, Any]]) -> list[list[int]]:
        """Rows that can be evaluated together: those whose arguments have the same shapes."""
        if self.alone or self.rule is None:
            return [[row] for row in range(len(words))]
        found: dict[Any, list[int]] = {}
        for row, own in enumerate(words):
            found.setdefault(tuple(_form(value) for value in own.values()), []).append(row)
        return list(found.values())

    def evaluated(self, network: Any, x: Tensor, t: Tensor, words: Sequence[Mapping[str, Any]], g: float) -> Tensor:
        """What the scheduler gets [B, ...] at samples x [B, *step_shape], t [B]; one call for each form of rows."""
        groups = self.groups(words)
        if len(groups) == 1:
            return self._together(network, x, t, words, g)
        parts = [self._together(network, x[own], t[own], [words[row] for row in own], g) for own in groups]
        order = torch.tensor([row for own in groups for row in own], device=x.device)
        return torch.cat(parts)[order.argsort()]

    def _together(self, network: Any, x: Tensor, t: Tensor, words: Sequence[Mapping[str, Any]], g: float) -> Tensor:
        every = [self.arguments(Row(x[row : row + 1], t[row], words[row], g)) for row in range(len(x))]
        args, named = every[0] if len(every) == 1 else rows.joined(every, self.rule)
        answer = network(*args, **named)
        each = [answer] if len(x) == 1 else rows.split(answer, self.answer_rule, len(x))
        return torch.cat([self.velocity(pytree.tree_leaves(one)[self.answer_place][None])[0] for one in each])

    def arguments(self, row: Row) -> Any:
        """The network's arguments for one row."""
        return pytree.tree_unflatten([leaf.value(row) for leaf in self.leaves], self.spec)


def _form(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else value


def _padded(parts: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True) if parts[0].ndim else torch.stack(list(parts))
