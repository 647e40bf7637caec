"""Playing episodes: an agent with everything that answers its requests."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..system.asking import ServiceError
from ..system.seeds import entropy
from ..system.streams import Key, generator
from .episode import Ask, Episode, Said
from .language import Language
from .serving import ServedPlanner
from .system import Answerer, Caller, Driver, System, Watcher, unwatched


class Sampler(Protocol):
    """Samples the planner's answers. Equal keys give equal answers; None in place of keys: the likeliest tokens."""

    elsewhere: bool  # by another program: its log-probabilities are not those that training computes

    def __call__(
        self, weights: str, asks: Sequence[Ask], keys: Sequence[Key] | None
    ) -> Sequence[Said | ServiceError]: ...


@dataclass(frozen=True)
class InProcess:
    """Samples from the network that is trained."""

    language: Language
    temperature: float
    max_tokens: int

    elsewhere = False

    def __call__(self, weights: str, asks: Sequence[Ask], keys: Sequence[Key] | None) -> list[Said]:
        prompts = [ask.ids for ask in asks]
        if keys is None:
            return self.language.sample(weights, prompts, None, 0.0, self.max_tokens)
        return self.language.sample(
            weights, prompts, [uniforms(key, self.max_tokens) for key in keys], self.temperature, self.max_tokens
        )


@dataclass
class OnServer:
    """Samples on a vLLM or SGLang server, which gets the adapter whenever its weights have changed."""

    language: Language
    server: ServedPlanner
    folder: Path  # of the adapters; the server reads them there
    loaded: dict[str, Tensor] = field(default_factory=dict, init=False)
    count: int = field(default=0, init=False)

    elsewhere = True

    def __call__(self, weights: str, asks: Sequence[Ask], keys: Sequence[Key] | None) -> Sequence[Said | ServiceError]:
        self._bring(weights)
        temperature = 0.0 if keys is None else None
        return self.server.draw(asks, [0] * len(asks) if keys is None else [_seed(key) for key in keys], temperature)

    def _bring(self, weights: str) -> None:
        """Load the adapter with these weights, if the server has others."""
        mine = self.language.weights.tensors(weights)
        if self.loaded and all(torch.equal(tensor, mine[name]) for name, tensor in self.loaded.items()):
            return
        self.count += 1
        name = f"flowward-{self.count}"
        self.language.save(self.folder / name, weights)
        self.server.use(self.folder / name, name)
        self.loaded = {name: tensor.detach().clone() for name, tensor in mine.items()}
        old = self.folder / f"flowward-{self.count - 2}"
        shutil.rmtree(old, ignore_errors=True)  # the one before the last is unloaded by now


def _seed(key: Key) -> int:
    """A number from 0 to 2^31 - 1 for a request."""
    return int(np.random.SeedSequence(entropy(key)).generate_state(1)[0] >> 1)


def uniforms(key: Key, count: int) -> Tensor:
    """Numbers in [0, 1), float64 [count], one for each token of the answer with this key."""
    return torch.rand(count, dtype=torch.float64, generator=generator(*key))


@dataclass(frozen=True)
class Before:
    """The planner's model as it was before training, as the model of another module (`same`). It is greedy."""

    language: Language
    max_tokens: int

    def __call__(self, asks: Sequence[Ask]) -> list[Said]:
        prompts = [self.language.encode(ask.messages) for ask in asks]
        return self.language.sample("reference", prompts, None, 0.0, self.max_tokens)


@dataclass(frozen=True)
class Player:
    """Plays episodes, many in step."""

    system: System
    sampler: Sampler
    tools: Caller
    models: Mapping[str, Answerer] = field(default_factory=dict)  # by the name in Ask.model
    at_once: int = 128  # episodes in step

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop what tools have started, such as servers."""
        if close := getattr(self.tools, "close", None):
            close()

    def play(
        self,
        questions: Sequence[str],
        weights: str = "policy",
        keys: Sequence[Key] | None = None,
        seen: Watcher = unwatched,
    ) -> tuple[list[Episode], dict[str, float]]:
        """One episode of each question, and the seconds spent by module.

        Args:
            weights: of the planner.
            keys: of the random numbers of each episode; the turn is added at the end. None: the likeliest tokens.
            seen: is told what happens, of all episodes.
        """
        found, seconds = list[Episode](), defaultdict[str, float](float)
        for start in range(0, len(questions), self.at_once):
            own = None if keys is None else keys[start : start + self.at_once]

            def planner(
                numbers: Sequence[int], asks: Sequence[Ask], own: Sequence[Key] | None = own
            ) -> Sequence[Said | ServiceError]:
                if own is None:
                    return self.sampler(weights, asks, None)
                return self.sampler(weights, asks, [(*own[n], ask.turn) for n, ask in zip(numbers, asks, strict=True)])

            driver = Driver(planner, self.tools, self.models)
            found += driver.run([self.system.episode(each, seen) for each in questions[start : start + self.at_once]])
            for name, spent in driver.seconds.items():
                seconds[name] += spent
        return found, dict(seconds)
