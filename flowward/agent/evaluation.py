"""Measuring an agent: success of sampled and of greedy episodes, by category, and how it behaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..evaluation.measurement import Measurement
from ..prompts import PromptSet
from ..rewards.scoring import agreement
from ..system import distributed
from ..system.errors import between, not_negative
from .episode import Episode
from .figures import behaviour
from .rewards import Term, expected
from .rollout import Player

MOST = 1_000_000  # episodes
SHOWN = 20  # episodes that are kept of each evaluation


@dataclass(frozen=True)
class AgentEvaluation:
    """What is measured, and how."""

    questions: str = "world-held-out"
    """measure on these questions: a built-in set, a file, or hf:owner/name; held-out:FILE takes 5 % of a file"""
    question_column: str | None = None
    """read questions from this column or key (none: question, prompt, text)"""
    episodes: int = 200
    """play this many sampled episodes, spread evenly over the categories, and as many greedy ones"""
    seed: int = 1234
    """random seed of the sampled episodes"""
    weights: Literal["policy", "ema"] = "policy"
    """measure the trained `policy` or its `ema` average"""

    def __post_init__(self) -> None:
        between(self, 1, MOST, "episodes")
        not_negative(self, "seed")


@dataclass(frozen=True)
class Measured:
    """One evaluation."""

    measurement: Measurement
    behaviour: Mapping[str, Any]  # of the sampled episodes
    greedy: Mapping[str, Any]  # of the greedy ones
    shown: Sequence[Mapping[str, Any]]  # some sampled episodes, for episodes.jsonl

    def summary(self) -> dict[str, Any]:
        """For metrics.jsonl: settings, scores with intervals, behaviour."""
        return {**self.measurement.summary(), "behaviour": {"sampled": self.behaviour, "greedy": self.greedy}}


@dataclass(frozen=True)
class AgentEvaluator:
    """Measures the agent's current weights."""

    player: Player
    questions: PromptSet
    terms: Sequence[Term]
    how: AgentEvaluation
    settings: Mapping[str, Any]  # what scores depend on: model, modules, limits

    @property
    def chosen(self) -> list[int]:
        return self.questions.spread(self.how.episodes)

    def measure(self) -> Measured:
        """Play a sampled and a greedy episode of each chosen question, shared among processes.

        Raises:
            RewardError: a reward failed.
        """
        chosen = self.chosen
        keys = [("evaluation", self.how.seed, number) for number in range(len(chosen))]
        scores: dict[str, Tensor] = {}
        told, shown = list[Mapping[str, Any]](), list[dict[str, Any]]()
        for greedy in (False, True):
            mine = distributed.share(torch.arange(len(chosen))).tolist()
            asked = [chosen[number] for number in mine]
            own = None if greedy else [keys[number] for number in mine]
            texts = [self.questions.texts[index] for index in asked]
            episodes, _ = self.player.play(texts, self.how.weights, own)
            with agreement(slow=True):
                found = self.scores(episodes, asked)
            everyone = torch.cat(distributed.everyone(found))
            names = [f"{term.name} (greedy)" if greedy else term.name for term in self.terms]
            scores |= dict(zip(names, everyone.float().unbind(1), strict=True))
            told.append(behaviour(episodes))
            if not greedy and mine[:1] in ([0], []):
                shown = [
                    self._shown(episode, index, row) for episode, index, row in zip(episodes, asked, found, strict=True)
                ][:SHOWN]
        verdicts = {name for term in self.terms if term.verdicts for name in (term.name, f"{term.name} (greedy)")}
        every = tuple(self.questions.texts[index] for index in chosen)
        categories = tuple(self.questions.categories[index] for index in chosen)
        settings = {**self.settings, "prompts": self.questions.name, "samples": "episodes", "weights": self.how.weights,
                    "seed": self.how.seed, "episodes": len(chosen)}  # fmt: skip
        measurement = Measurement("agent", settings, every, categories, scores, frozenset(verdicts))
        return Measured(measurement, told[0], told[1], shown)

    def scores(self, episodes: Sequence[Episode], indices: Sequence[int]) -> Tensor:
        """Scores [n, R] of episodes of these questions; 0 for failed ones, which are counted in `behaviour`."""
        texts = [self.questions.texts[index] for index in indices]
        about = self.questions.about(indices) or [{}] * len(indices)
        answers = [episode.answer for episode in episodes]
        found = torch.stack([term.score(answers, texts, about) for term in self.terms], 1)
        return found * torch.tensor([[float(not episode.failed)] for episode in episodes]).view(-1, 1)

    def _shown(self, episode: Episode, index: int, scores: Tensor) -> dict[str, Any]:
        about = (self.questions.about([index]) or [{}])[0]
        return {
            "question": episode.question,
            "category": self.questions.categories[index],
            "expected": expected(about),
            "scores": dict(zip((term.name for term in self.terms), scores.tolist(), strict=True)),
            **recorded(episode),
        }


def recorded(episode: Episode) -> dict[str, Any]:
    """An episode as plain data: answer, end, and each turn with plan, arguments, result and verdict."""
    return {
        "answer": episode.answer,
        "end": episode.end,
        **({"why": episode.why} if episode.why else {}),
        "turns": [
            {
                "said": turn.said.text,
                "tool": turn.plan.tool if turn.plan else None,
                "goal": turn.plan.goal if turn.plan else "",
                "context": turn.plan.context if turn.plan else "",
                "arguments": turn.arguments,
                "result": turn.result,
                "trouble": turn.trouble,
                "stop": turn.verdict.stop if turn.verdict else None,
                "verdict": turn.verdict.why if turn.verdict else "",
            }
            for turn in episode.turns
        ],
    }
