"""The training loop for agents: questions, episodes in step, one outcome per episode, turns as training points."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..evaluation.outcome import NOUNS
from ..learning.mixing import APART, MIXES, each_reward
from ..prompts import PromptSet, refuse_others
from ..rewards import RewardError
from ..rewards.scoring import agreed
from ..system import distributed
from ..system.errors import at_least_one, between
from ..training.curriculum import Choice, Curriculum, InTurn, Order
from ..training.folder import RunFolder
from ..training.health import Health
from ..training.loop import Gathered, Loop
from ..training.metrics import Clock, Step, scored
from ..training.run import MOST_BATCH, Training
from . import episodes as episode_file
from .algorithm import AgentFlow
from .episode import Episode
from .evaluation import AgentEvaluator
from .figures import counts, shares
from .health import AgentHealth
from .language import Language
from .points import Decisions, Trace, Turns
from .rewards import Term
from .rollout import Player
from .serving import gap, truncated_weight

MOST_EPISODES = 1_000_000  # per iteration


@dataclass(frozen=True)
class AgentRun(Training):
    """Training-loop settings of agents. Gradient accumulation is derived from them."""

    noun: ClassVar[str] = "episodes"

    output: Path | None = None
    """run folder (none: nothing is kept in Python, and `flowward agent train` makes one in runs/)"""
    memory: float | Literal["auto"] | None = None
    """not for agents: set microbatch and rollout_batch"""
    curriculum: int = 0
    """skip a question N times if all its episodes got equal rewards twice (0: off)"""
    group_size: int = 8
    """episodes per question, which are compared with each other"""
    questions_per_update: int = 8
    """questions per optimiser step"""
    microbatch: int = 64
    """turns per forward and backward pass"""
    rollout_batch: int = 128
    """episodes that are played in step"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size < 2:
            raise ValueError(
                f"group_size is {self.group_size}, but advantages compare episodes of one question: use at least 2"
            )
        at_least_one(self, "questions_per_update")
        between(self, 1, MOST_BATCH, "rollout_batch")
        if self.mix in APART:
            raise ValueError(f"mix {self.mix} keeps rewards apart, which only runs over images can do: choose another")
        if self.memory is not None:
            raise ValueError("memory chooses batches of images; for agents set microbatch and rollout_batch")
        if self.samples > MOST_EPISODES:
            raise ValueError(f"an iteration can have at most {MOST_EPISODES:,} episodes, not {self.samples:,}")

    @property
    def samples(self) -> int:
        """Episodes per iteration."""
        return self.questions_per_update * self.updates_per_iteration * self.group_size


class EpisodesLost(RewardError):
    """No episode of an iteration could be finished, because servers did not answer."""


@dataclass(frozen=True)
class LogProbs:
    """The log-probabilities that a loss may ask for, at the temperature that was sampled."""

    language: Language
    temperature: float

    def at(self, name: str, points: Decisions) -> Tensor:
        """[B, L]: recorded ones if there are some, otherwise computed now. `policy` alone carries gradients."""
        if name in points.known:
            return points.known[name]
        return self.language.log_probs(name, points, self.temperature)


@dataclass(frozen=True)
class Played:
    """The episodes of a process, as tensors."""

    trace: Trace
    failed: Tensor  # [n] long: 1 if a server's failure ended it


@dataclass(frozen=True)
class Scored(Played):
    """The N episodes of all processes, with their rewards."""

    reward: Tensor  # [N, R] float64; 0 for failed episodes


class AgentTrainer(Loop[AgentEvaluator]):
    """The training loop for the planner of an agent."""

    run: AgentRun
    algorithm: AgentFlow

    def __init__(
        self,
        algorithm: AgentFlow,
        language: Language,
        player: Player,
        terms: Sequence[Term],
        questions: PromptSet,
        run: AgentRun,
        temperature: float = 1.0,
        correct: float | None = None,
    ):
        """`correct`: for a planner that is sampled elsewhere, the largest weight of a token (serving.truncated_weight).

        Raises:
            ValueError: `questions` has another type, or the planner is sampled elsewhere and processes share the run.
        """
        if player.sampler.elsewhere and distributed.count() > 1:
            raise ValueError("a planner on a server is trained by one process: leave out --processes")
        refuse_others(questions)
        super().__init__(algorithm, language, run)
        self.language, self.player, self.terms, self.questions = language, player, list(terms), questions
        self.models, self.correct = LogProbs(language, temperature), correct
        self.order: Order = InTurn(questions, run.seed)
        if run.curriculum:
            self.order = Curriculum(questions, run.seed, rest=run.curriculum)

    def rules(self) -> Health:
        return AgentHealth(NOUNS["episodes"])

    @property
    def block(self) -> int:  # type: ignore[override]
        """Turns per forward pass without gradient."""
        return 4 * self.run.microbatch

    @property
    def size(self) -> str:
        """Batch sizes, and the options that reduce memory."""
        return (
            f"with {self.run.rollout_batch} episodes in step and {self.microbatch} turns per forward and backward "
            "pass: lower --rollout-batch, --microbatch or --max-tokens"
        )

    def gather(self, index: int, clock: Clock) -> Gathered:
        """Play a group of episodes for each question, score them, and make the training points.

        Raises:
            RewardError: a reward failed, or no episode could be finished.
        """
        run = self.run
        choice = self.order.choose(index, run.groups)
        mine = distributed.share(torch.arange(run.samples)).tolist()
        started = time.perf_counter()
        episodes, seconds = self.player.play(
            [self.questions.texts[choice.indices[number // run.group_size]] for number in mine],
            self.algorithm.behaviour,
            [("planner", run.seed, index, number // run.group_size, number % run.group_size) for number in mine],
        )
        elapsed = time.perf_counter() - started
        seconds.pop("planner", None)
        clock.seconds |= seconds | {"rollout": elapsed - sum(seconds.values())}
        trace, metrics = Trace.of(episodes, mine, self.algorithm.turns), dict[str, float]()
        if self.player.sampler.elsewhere:
            with clock("recompute"):
                trace, metrics = self._recomputed(trace)
        with clock("reward"):
            found = self._scored(episodes, trace, choice, mine)
        with clock("train"):
            gathered = self._gathered(choice, found, episodes)
            return replace(gathered, metrics=gathered.metrics | metrics)

    @torch.no_grad()
    def _recomputed(self, trace: Trace) -> tuple[Trace, dict[str, float]]:
        """The trace with log-probabilities as training computes them, and how far those of the server are from them."""
        if not len(trace):
            return trace, {}  # all episodes were lost
        turns = Turns(trace, torch.zeros(len(trace), dtype=torch.float64))
        parts = [turns.take(numbers) for numbers in torch.arange(len(trace)).split(self.block)]
        own = [self.language.log_probs("policy", part, self.models.temperature).float().cpu() for part in parts]
        there = [part.answer >= 0 for part in parts]
        flat = torch.cat([values[mask] for values, mask in zip(own, there, strict=True)])
        every = torch.ones_like(flat, dtype=torch.bool)
        found = {f"server_gap_{name}": value for name, value in gap(flat, trace.log_prob, every).items()}
        if self.correct is not None:
            trace = replace(trace, correction=truncated_weight(flat, trace.log_prob, every, self.correct).float())
        return replace(trace, log_prob=flat), found

    def _scored(self, episodes: Sequence[Episode], trace: Trace, choice: Choice, numbers: Sequence[int]) -> Scored:
        """The episodes of all processes, scored by the process that played them."""
        indices = [choice.indices[number // self.run.group_size] for number in numbers]
        texts, about = [self.questions.texts[i] for i in indices], self.questions.about(indices) or [{}] * len(indices)
        answers = [episode.answer for episode in episodes]
        reward = agreed(lambda: torch.stack([term.score(answers, texts, about) for term in self.terms], 1), slow=True)
        failed = torch.tensor([int(episode.failed) for episode in episodes], dtype=torch.long)
        every = distributed.everyone(Played(trace, failed))
        if all(bool(each.failed.all()) for each in every):
            whys = distributed.messages(next((episode.why for episode in episodes if episode.failed), None))
            raise EpisodesLost(f"no episode of this iteration could be finished: {whys[0] if whys else 'no reason'}")
        failed = torch.cat([each.failed for each in every])
        return Scored(Trace.cat([each.trace for each in every]), failed, reward * (1 - failed)[:, None])

    def _gathered(self, choice: Choice, found: Scored, episodes: Sequence[Episode]) -> Gathered:
        run, group = self.run, torch.arange(self.run.samples) // self.run.group_size
        kept, weights = found.failed == 0, torch.tensor([term.weight for term in self.terms], dtype=torch.float64)
        advantage = self.credit(found, group)
        summed = (found.reward * weights).sum(1)
        own = torch.zeros(run.samples, dtype=torch.float64).index_put((found.trace.episode,), advantage)
        metrics = scored(summed[kept], own[kept], group[kept])
        metrics |= each_reward([term.name for term in self.terms], found.reward[kept], group[kept])
        metrics |= shares(distributed.merged(counts(episodes)))
        texts = [self.questions.texts[i] for i in choice.indices]
        metrics["duplicate_prompts"] = len(texts) - len(set(texts))
        points = replace(self.algorithm.points(found.trace, advantage), group_size=run.group_size)
        seen = torch.where(kept[:, None], found.reward, torch.nan)  # a lost episode says nothing about its question

        def keep() -> dict[str, float]:
            self.order.see(choice, seen, group)
            return self.order.told(choice)

        return Gathered(points if advantage.any() else None, metrics, keep)

    def credit(self, found: Scored, group: Tensor) -> Tensor:
        """The advantage of each turn, float64 [T]. Failed episodes are left out of their groups."""
        weights = torch.tensor([term.weight for term in self.terms], dtype=torch.float64)
        return self.algorithm.advantages(
            found.trace, found.reward, group, found.failed == 0, weights, MIXES[self.run.mix]
        )

    def measured(self, step: Step, evaluator: AgentEvaluator, folder: RunFolder | None) -> Step:
        """The step with an evaluation of the current weights. Some episodes are kept in the folder."""
        started = time.perf_counter()
        measured = evaluator.measure()
        if folder:
            episode_file.keep(folder, step.index, measured.shown)
        seconds = {**step.seconds, "evaluate": time.perf_counter() - started}
        return replace(step, evaluation=measured.summary(), seconds=seconds)

    def _step(self) -> Step:
        step = super()._step()
        spent = sum(step.seconds.values())
        turns = step.metrics["turns"] * self.run.samples
        speed = {
            "episodes_per_second": self.run.samples / spent,
            "tokens_per_second": turns * step.metrics["answer_tokens"] / spent,
        }
        return replace(step, speed=speed)

    def state_dict(self) -> dict[str, Any]:
        """The state that the rest of the run depends on."""
        curriculum = self.order.state_dict()
        return super().state_dict() | ({"curriculum": curriculum} if curriculum else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            ValueError: it belongs to another model.
        """
        super().load_state_dict(state)
        if "curriculum" in state:
            self.order.load_state_dict(state["curriculum"])
