"""Overhead of a loop of episodes: time of an iteration compared with its network calls alone."""

from __future__ import annotations

import copy
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..training.bench import Overhead, peak_memory, seconds
from . import config
from .assembly import assembled
from .trainer import AgentTrainer

SLOW = 1e-12  # learning rate: the episodes of all iterations stay alike


@dataclass(frozen=True)
class Call:
    """One call of the network, with a function that repeats it."""

    what: str  # "sampling", "forward", or "forward+backward"
    rows: int
    again: Callable[[], object]


class Recorder:
    """Wraps the forward of a network and records its calls."""

    def __init__(self, network: Any, calls: list[Call]):
        self.calls = calls
        self._network, self._forward = network, network.forward
        network.forward = self._recorded

    def _recorded(self, **given: Any) -> Any:
        cache, rows = given.get("past_key_values"), len(given["input_ids"])
        backward = torch.is_grad_enabled()
        kept = {name: value for name, value in given.items() if name != "past_key_values"}
        if cache is None:
            self.calls.append(
                Call("forward+backward" if backward else "forward", rows, lambda: self._trained(kept, backward))
            )
        else:
            before, length = copy.deepcopy(cache), cache.get_seq_length()
            self.calls.append(Call("sampling", rows, lambda: self._sampled(kept, before, length)))
        return self._forward(**given)

    def _trained(self, given: dict[str, Any], backward: bool) -> None:
        with torch.set_grad_enabled(backward):
            logits = self._forward(**given).logits
            if backward:
                logits.sum().backward()

    @torch.no_grad()
    def _sampled(self, given: dict[str, Any], cache: Any, length: int) -> None:
        if added := cache.get_seq_length() - length if length else 0:
            cache.crop(-added)  # by the last repetition
        self._forward(**given, past_key_values=cache if length else type(cache)())

    def restore(self) -> None:
        del self._network.forward  # the method of the class is visible again


def overhead(repeats: int = 5, settings: config.Settings | None = None) -> Overhead:
    """Time of an iteration of the built-in world, divided by that of its network calls, interleaved in one process.

    The second iteration is recorded; after each timed one, every recorded call of the network (sampling steps with
    their caches, forward and backward passes) is repeated alone. The rest is overhead: prompts, tokens, random
    numbers, tools, rewards, the loss beside the network, the optimiser and the loop.
    """
    chosen = settings or config.starting(None, None)
    run = replace(chosen.run, iterations=10_000, output=None, learning_rate=SLOW)
    trainer: AgentTrainer = assembled(replace(chosen, run=run)).trainer
    trainer.step()
    calls, weights = list[Call](), trainer.model.weights
    with weights.network("policy") as network, weights.network("reference") as reference:
        recorders = [Recorder(each, calls) for each in {id(each): each for each in (network, reference)}.values()]
        trainer.step()
        for recorder in recorders:
            recorder.restore()
    whole, bare = [], []
    for _ in range(repeats):
        whole.append(seconds(trainer.step))
        bare.append(seconds(lambda: [call.again() for call in calls]))
        trainer.optimiser.zero_grad()
    counts: Counter[str] = Counter()
    for call in calls:
        counts[call.what] += call.rows
    ratio = statistics.median(one / other for one, other in zip(whole, bare, strict=True))  # of neighbours in time
    return Overhead(ratio, statistics.median(whole), statistics.median(bare), dict(counts), peak_memory())
