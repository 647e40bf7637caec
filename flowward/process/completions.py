"""Trajectories of which every state is completed by the ODE and scored (TurningPoint-GRPO)."""

from __future__ import annotations

from dataclasses import dataclass

from .laws import LAWS
from .plans import Chain, noise_remarks
from .trees import Segment, Tree


@dataclass(frozen=True)
class CompletedChain(Chain):
    """A `Chain` with n random steps that gives n + 1 samples: the ODE completes its first state and every later one.

    Sample j of a root (from 0) follows j random steps and then the ODE. So sample 0 follows the ODE alone, and sample n
    is that of the chain. What step j changes is the difference of the rewards of samples j and j - 1.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tail is not None or self.share < 1 or self.window.order == "per-prompt":
            raise ValueError(
                "rewards of completions are only comparable on one grid and for all steps of a window: leave tail at "
                "none, share at 1, and window.order at anything but per-prompt"
            )

    @property
    def leaves(self) -> int:  # type: ignore[override]
        """Samples per root: one more than random steps."""
        return self.window.positions(self.steps)[1] + 1

    def remarks(self) -> list[str]:
        """How many images a chain costs, and how much noise the random steps leave."""
        many = self.leaves
        said = f"every chain of {many - 1} random steps is completed {many} times: {many} images per chain are scored"
        return [said, *noise_remarks(self)]

    def tree(self, seed: int, iteration: int) -> Tree:
        """The tree of an iteration: one segment per random step, and one per completion."""
        random = self.window.steps(self.steps, seed, iteration)
        times, law, here = self.times, LAWS[self.law](self.noise), -1
        segments = list[Segment]()
        if random.start:
            segments.append(Segment(-1, times[: random.start + 1]))
            here = 0
        segments.append(Segment(here, times[random.start :], random.start, leaf=True))
        for step in random:
            segments.append(Segment(here, times[step : step + 2], step, law=law))
            here = len(segments) - 1
            segments.append(Segment(here, times[step + 1 :], step + 1, leaf=True))
        return Tree(tuple(segments), self.shared_start, guidance=self.guidance)
