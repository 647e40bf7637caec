"""AnyFlow (2026, arXiv:2605.13724): Wan 2.1 with a second time, text to video in few jumps."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor

from ...process.policy import UNTIL
from .wan import Wan


class AnyFlow(Wan):
    """Its network has the average velocity of a jump. Guidance is part of the released weights: leave it at 1."""

    pipelines = ("AnyFlowPipeline",)
    two_times = True

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        """The network takes frames before channels, and both times of every frame."""
        start, end = (1000 * each[:, None].expand(-1, x.shape[2]) for each in (t, condition.get(UNTIL, t)))
        words = condition["words"].to(network.dtype)  # as the pipeline does; the embedding of the times follows it
        v: Tensor = network(x.transpose(1, 2), start, end, encoder_hidden_states=words, return_dict=False)[0]
        return v.transpose(1, 2)

    def scheduler(self) -> Any:
        return deepcopy(self.pipe.scheduler)

    def times(self, steps: int) -> tuple[float, ...]:
        scheduler = self.scheduler()
        scheduler.set_timesteps(steps)
        return tuple(scheduler.sigmas.double().tolist())
