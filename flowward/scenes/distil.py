"""Distil the built-in few-step model: jumps of a two-time network along the trajectories of the base model.

The base model (the teacher) goes from noise to data in small steps of its ODE. A jump from a state x_t to a later state
x_s of the same trajectory has the average velocity (x_t - x_s) / (t - s), and the network is fitted to it. The ODE is a
function, so this regression has no noise and does not blur. A jump of length 0 is fitted to the teacher's velocity.

Every batch depends on (seed, step) alone, so an interrupted and resumed run ends with the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..prompts.scenes import CATEGORIES, split
from ..system import checkpoint, strict_json
from ..system.precision import Precision, autocast, resolve
from ..system.streams import generator
from .design import LATENT_CHANNELS, SMALL
from .network import LATENT_SIZE, Networks
from .pretrain import fit, muon_and_adam
from .recipe import SHARD, Distil
from .two_times import TwoTimeTransformer

STAGE = "jumps"
SETTLED, SETTLED_EMA = 0.5, 0.98  # of the last stage: share of the learning rates, decay of the average
JUMPS = 4  # of the finished model, from noise to data
_WORD = "distil"  # of the keys of random streams
SHARES = (0.2, 0.2, 0.4)  # of jumps of length 0, to data, and of the length that the finished model makes


def captions(count: int, dropout: float, rng: np.random.Generator) -> list[str]:
    """So many training prompts, equally many per category; a share `dropout` of them is empty."""
    found = []
    for index in range(count):
        choices = split(False, CATEGORIES[index % len(CATEGORIES)])
        text = choices[int(rng.integers(len(choices)))]
        found.append("" if rng.random() < dropout else text)
    return found


def times(count: int, points: int, stream: torch.Generator) -> Tensor:
    """`points` steps from 1 to 0 for each of so many trajectories, shaken, [count, points + 1]."""
    even = torch.arange(points, -1, -1) / points
    shaken = even + (torch.rand(count, points + 1, generator=stream) - 0.5) / points
    shaken[:, 0], shaken[:, -1] = 1.0, 0.0
    return shaken


@torch.no_grad()
def trajectory(teacher: Networks, words: Tensor, pooled: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """States and velocities of the teacher, [B, points + 1, ...] each, from noise x [B, ...] along times t [B, ...].

    Two-step Adams-Bashforth: second order for one evaluation per step. The last velocity is not used.
    """
    states, velocities = [x], list[Tensor]()
    for number in range(t.shape[1] - 1):
        v = _velocity(teacher, x, words, pooled, t[:, number])
        step = (t[:, number + 1] - t[:, number]).view(-1, 1, 1, 1)
        ahead = v
        if velocities:
            before = (t[:, number] - t[:, number - 1]).view(-1, 1, 1, 1)
            ahead = v + step / before / 2 * (v - velocities[-1])
        x = x + step * ahead
        states.append(x)
        velocities.append(v)
    return torch.stack(states, 1), torch.stack([*velocities, velocities[-1]], 1)


def _velocity(networks: Networks, x: Tensor, words: Tensor, pooled: Tensor, t: Tensor) -> Tensor:
    """Of one time [B], or of two [B, 2]."""
    with sdpa_kernel(SDPBackend.MATH):
        v: Tensor = networks.transformer(x, words, pooled, 1000 * t, return_dict=False)[0]
    return v.float()


def jumps(count: int, points: int, stream: torch.Generator) -> tuple[Tensor, Tensor]:
    """Where so many jumps start and end, as numbers of states, [count] each."""
    kind, length = torch.rand(count, generator=stream), points // JUMPS
    start = (torch.rand(count, generator=stream) * points).long()
    end = start + 1 + (torch.rand(count, generator=stream) * (points - start)).long()
    grid = torch.randint(JUMPS, (count,), generator=stream) * length
    same, data, whole = (sum(SHARES[: number + 1]) for number in range(3))
    regular = (kind >= data) & (kind < whole)
    start = torch.where(regular, grid, start)
    end = torch.where(regular, (grid + length).clamp_max(points), end)
    end = torch.where((kind >= same) & (kind < data), points, end)
    return start, torch.where(kind < same, start, end)


@dataclass
class Jumps:
    """Endless batches of jumps, from trajectories that are drawn in shards."""

    teacher: Networks
    config: Distil
    shard: int = -1
    drawn: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Words, pooled text, x_t [B, ...], t and s [B], and the average velocity [B, ...] of a training step."""
        config, shard = self.config, step // SHARD
        if shard != self.shard:
            self.drawn, self.shard = self._draw(shard), shard
        words, pooled, t, states, velocities = self.drawn
        stream = generator(_WORD, config.seed, shard, step)
        row = torch.randint(len(t), (config.batch,), generator=stream)
        start, end = jumps(config.batch, config.points, stream)
        x, length = states[row, start], (t[row, start] - t[row, end]).view(-1, 1, 1, 1)
        still = (start == end).view(-1, 1, 1, 1)
        average = torch.where(still, velocities[row, start], (x - states[row, end]) / length.clamp_min(1e-8))
        return words[row], pooled[row], x, t[row, start], t[row, end], average

    def _draw(self, shard: int) -> tuple[Tensor, ...]:
        config, encoder = self.config, self.teacher.text_encoder
        count = max(1, SHARD * config.batch // config.views)
        texts = captions(count, config.caption_dropout, np.random.default_rng((config.seed, shard)))
        stream = generator(_WORD, config.seed, shard)
        t = times(count, config.points, stream)
        noise = torch.randn(count, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE, generator=stream)
        words, pooled = encoder(encoder.tokenize(texts))
        with autocast(resolve(config.precision)):
            parts = [
                trajectory(self.teacher, words[rows], pooled[rows], noise[rows], t[rows])
                for rows in torch.arange(count).split(256)
            ]
        states, velocities = (torch.cat(each) for each in zip(*parts, strict=True))
        return words, pooled, t, states, velocities


def loss(student: Networks, data: Jumps, step: int) -> tuple[Tensor, dict[str, float]]:
    """The squared error of average velocities of one batch, and no metrics."""
    words, pooled, x, t, s, average = data.batch(step)
    with autocast(resolve(data.config.precision)):
        found = _velocity(student, x, words, pooled, torch.stack([t, s], 1))
    return (found - average).square().mean(), {}


def _of_run(config: Distil) -> Precision:
    """The precision that a stopped run began with; of a new one, the asked one."""
    path = config.output / f"{STAGE}.safetensors"
    begun: Precision | None = checkpoint.load(path)["precision"] if path.exists() else None
    if begun and config.precision not in ("auto", begun):
        raise ValueError(f"{config.output} was begun with --precision {begun}, not {config.precision}: leave it out")
    return begun or resolve(config.precision)


def distil(config: Distil, teacher: Networks) -> Iterator[dict[str, Any]]:
    """Train, yielding log lines; they are also written to log.jsonl, and the model to `output`/model.

    Raises:
        ValueError: another precision than that of the stopped run is asked for, or the teacher jumps itself.
    """
    if teacher.autoencoder.config.sample_size != SMALL.size:
        raise ValueError(f"{config.teacher} draws other pictures: distil a model of `scenes`")
    if isinstance(teacher.transformer, TwoTimeTransformer):
        raise ValueError(f"{config.teacher} has two times already: distil a model with one, such as `scenes`")
    config = replace(config, precision=_of_run(config))
    config.output.mkdir(parents=True, exist_ok=True)
    for network in (teacher.transformer, teacher.autoencoder, teacher.text_encoder):
        network.requires_grad_(False)
    made = TwoTimeTransformer.of(teacher.transformer).requires_grad_(True)
    student = Networks(made, teacher.autoencoder, teacher.text_encoder)
    data = Jumps(teacher, config)
    last = replace(
        config, learning_rate=SETTLED * config.learning_rate, matrix_learning_rate=SETTLED * config.matrix_learning_rate
    )

    def stages() -> Iterator[dict[str, Any]]:
        task = lambda step: loss(student, data, step)  # noqa: E731
        yield from fit(STAGE, made, task, config, config.steps, config.stop, muon_and_adam(made, config), config.ema)
        task = lambda step: loss(student, data, config.stop + step)  # noqa: E731
        adam, stop = muon_and_adam(made, last), config.settle_stop
        yield from fit("settle", made, task, last, config.settle, stop, adam, SETTLED_EMA)

    with open(config.output / "log.jsonl", "a", encoding="utf-8") as log:
        for line in stages():
            log.write(strict_json.dumps(line) + "\n")
            log.flush()
            yield line
    student.save(config.output / "model")
