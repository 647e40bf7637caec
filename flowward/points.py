"""What a loss is evaluated on: noised samples, with everything that the equation needs beside them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .flow import TimeLaw, Uniform, interpolate
from .models.policy import Condition
from .rollout import Rollout
from .streams import Key, generator


@dataclass(frozen=True)
class Points:
    """A minibatch of B training points."""

    x0: Tensor  # [B, ...] finished sample
    eps: Tensor  # [B, ...] fresh noise
    t: Tensor  # [B] in [0, 1]
    advantage: Tensor  # [B] float32
    condition: Condition  # B rows

    @property
    def x_t(self) -> Tensor:
        return interpolate(self.x0, self.eps, self.t)


@dataclass(frozen=True)
class Renoised:
    """Points that exist only when asked for: number i is sample i // per_image, noised for the (i % per_image)th time.

    Time and noise of a point depend on its number alone, so it is the same point in whichever minibatch it lands.
    """

    rollout: Rollout
    per_image: int
    times: TimeLaw
    key: Key

    def __len__(self) -> int:
        return len(self.rollout) * self.per_image

    def of_images(self, images: Tensor) -> Tensor:
        """The numbers of all points of these images, [len(images) * per_image]."""
        return (images[:, None] * self.per_image + torch.arange(self.per_image)).flatten()

    def take(self, numbers: Tensor) -> Points:
        """The points with these numbers [B]."""
        times, noises = [], []
        for number in numbers.tolist():
            stream = generator(*self.key, number)
            times.append(self.times(1, stream))
            noises.append(torch.randn(self.rollout.x0.shape[1:], generator=stream))
        image = numbers // self.per_image
        return Points(
            x0=self.rollout.x0[image],
            eps=torch.stack(noises),
            t=torch.cat(times),
            advantage=self.rollout.advantage[image].float(),
            condition=self.rollout.condition[self.rollout.group[image]],
        )


@dataclass(frozen=True)
class Renoise:
    """Forward-process points: re-noise each finished sample at fresh times with fresh noise."""

    per_image: int = 2
    """points per image and update"""
    times: Uniform = field(default_factory=Uniform)

    def __post_init__(self) -> None:
        if self.per_image < 1:
            raise ValueError(f"every image needs at least 1 training point, not {self.per_image}")

    def __call__(self, rollout: Rollout, key: Key) -> Renoised:
        return Renoised(rollout, self.per_image, self.times, key)
