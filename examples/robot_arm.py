"""Improve a robot policy by its own trials: a flow over chunks of actions, cloned from a scripted expert.

pip install gymnasium
python robot_arm.py                      # about a minute on one core
python robot_arm.py flow_grpo 1          # another algorithm, another seed
"""

import os
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import flowward

SHORT = bool(os.environ.get("FLOWWARD_SHORT"))
CHUNK, REACH, NEAR = 8, 0.3, 0.05  # actions in a chunk; radians that an action can turn a joint; what is near the goal
FRICTION = 0.85  # joints turn by this share of the command, of which the expert knows nothing
Array = NDArray[Any]


def tip(joints: Array) -> Array:
    """Where the hand is, [n, 2], from the angles [n, 2] of two links of half a metre."""
    angles = np.cumsum(joints, -1)
    return 0.5 * np.stack([np.cos(angles).sum(-1), np.sin(angles).sum(-1)], -1)


class Arm(gymnasium.vector.VectorEnv):
    """N two-link arms in a plane. An observation is [n, 4]: both angles, and the goal."""

    def __init__(self, many: int):
        self.num_envs = many
        self.single_observation_space = gymnasium.spaces.Box(-10, 10, (4,), np.float64)
        self.single_action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float64)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, many)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, many)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Array, dict[str, Any]]:
        """Options name the first observation: `start` [n, 4]."""
        self.state, self.steps = np.array(options["start"], np.float64), 0
        return self.state.copy(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        self.state[:, :2] += FRICTION * REACH * np.clip(actions, -1, 1)
        self.steps += 1
        away = np.linalg.norm(tip(self.state[:, :2]) - self.state[:, 2:], axis=-1)
        over = np.full(self.num_envs, self.steps == CHUNK)
        return self.state.copy(), -away, over, np.zeros_like(over), {}


def tasks(count: int, seed: int) -> tuple[Array, Array]:
    """First observations [n, 4], and the turns of both joints [n, 2] that lead to their goals."""
    draw = np.random.default_rng(seed)
    joints, turns = draw.uniform([-1.5, 0.4], [1.5, 2.2], (count, 2)), draw.uniform(-1.2, 1.2, (count, 2))
    start = np.concatenate([joints, tip(joints + turns)], 1).round(3)
    return start, turns


def expert(turns: Array, draw: np.random.Generator) -> Array:
    """Action chunks [n, CHUNK, 2] of a scripted expert: it starts and stops gently, and its hand shakes."""
    ramp = np.sin(np.linspace(0, np.pi, CHUNK + 2)[1:-1])
    smooth = turns[:, None] * (ramp / ramp.sum())[:, None] / REACH
    return smooth + 0.1 * draw.standard_normal(smooth.shape)


def text(start: Array) -> str:
    return "from angles {:.3f} {:.3f} to the point {:.3f} {:.3f}".format(*start)


def start_of(prompts: Sequence[str]) -> Tensor:
    """The numbers in prompts, [n, 4]: what the policy is told, and where its trials start."""
    return torch.tensor([[float(number) for number in re.findall(r"-?\d+\.\d+", each)] for each in prompts])


class Flow(nn.Module):
    """A velocity over chunks, as many robot policies have it: t = 0 is noise, and it predicts data - noise."""

    def __init__(self, width: int = 256):
        super().__init__()
        sizes = [2 * CHUNK + 4 + 3, width, width, width]
        layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.SiLU())]
        self.net = nn.Sequential(*layers, nn.Linear(width, 2 * CHUNK))

    def forward(self, x: Tensor, t: Tensor, start: Tensor) -> Tensor:
        time = torch.stack([t, torch.sin(3 * t), torch.cos(3 * t)], 1)
        return self.net(torch.cat([x.flatten(1), start, time], 1)).view_as(x)


def cloned(steps: int) -> Flow:
    """The flow after training on chunks of the expert."""
    torch.manual_seed(0)
    draw, flow = np.random.default_rng(0), Flow()
    start, turns = tasks(20_000, seed=0)
    given = torch.from_numpy(start).float()
    optimiser = torch.optim.AdamW(flow.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = draw.integers(len(start), size=256)
        data = torch.from_numpy(expert(turns[rows], draw)).float()
        noise, t = torch.randn_like(data), torch.rand(len(rows))
        x = torch.lerp(noise, data, t[:, None, None])
        loss = (flow(x, t, given[rows]) - (data - noise)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return flow


def make(lora_rank: int | None = None) -> Any:
    """The policy; `flowward train --model robot_arm.py:make` calls this too."""
    flow = cloned(1000 if SHORT else 4000)
    return flowward.policies.of(flow, (CHUNK, 2), lambda prompts: {"start": start_of(prompts)}, time=(0, 1),
                                predicts="data - noise", lora_rank=lora_rank, name="arm")  # fmt: skip


def away(chunks: Tensor, prompts: Sequence[str]) -> Tensor:
    """How far from its goal each trial ends, [n], in metres: chunks [n, CHUNK, 2] are carried out one action a step."""
    arm = Arm(len(chunks))
    arm.reset(options={"start": start_of(prompts).numpy()})
    for actions in chunks.double().numpy().swapaxes(0, 1):
        _, reward, *_ = arm.step(actions)
    return torch.from_numpy(-reward)


def reach(chunks: Tensor, prompts: Sequence[str]) -> Tensor:
    """The reward of training: 1 at the goal, less with distance."""
    return torch.exp(-away(chunks, prompts) / 0.1)


def success(chunks: Tensor, prompts: Sequence[str]) -> Tensor:
    return (away(chunks, prompts) < NEAR).float()


success.verdicts = True  # type: ignore[attr-defined]


def main(algorithm: str = "advantageflow", seed: int = 0, output: str | None = None) -> Any:
    train = flowward.prompts.of("training tasks", [text(start) for start in tasks(2000, seed=1)[0]])
    held_out = flowward.prompts.of("held-out tasks", [text(start) for start in tasks(200 if SHORT else 400, seed=2)[0]])
    rate = {"advantageflow": 1e-3, "flow_grpo": 1e-4}[algorithm]
    run = flowward.fit(
        algorithm, make(), reach, train, seed=seed, output=output, iterations=25 if SHORT else 80,
        images_per_update=256 if SHORT else 512, rollout_batch=256, microbatch=256, group_size=16,
        learning_rate=rate, warmup=2, schedule="constant" if SHORT else "cosine",
        evaluation={"prompts": held_out, "rewards": [success, reach], "images": len(held_out)}, evaluate_every=40,
    )  # fmt: skip
    print(run.evaluate().sentence)
    return run


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]), *sys.argv[3:4])
