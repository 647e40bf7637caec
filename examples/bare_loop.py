"""The trainer's parts in a loop of your own, ten lines long: no run folder, no resume, nothing hidden."""

from dataclasses import replace

import torch

import flowward
from flowward.algorithms import AdvantageFlow
from flowward.process.noise import Noise
from flowward.process.policy import Models
from flowward.process.rollout import Rollout

algorithm, policy = AdvantageFlow(), flowward.load("scenes")
reward, prompts = flowward.rewards.load(["scenes"]), flowward.prompts.load("scenes")
for name in ("old", "reference"):
    policy.weights.add(name)
models = Models.of(policy)
optimiser = torch.optim.AdamW(policy.weights.tensors("policy").values(), lr=3e-4)
group = torch.arange(12).repeat_interleave(8)  # 12 prompts, 8 images each


def sample(texts: list[str], step: int) -> Rollout:
    """8 images for each of 12 texts, without their rewards yet."""
    condition = policy.encode(texts)
    noise = Noise(policy.latent_shape, tuple(("noise", step, k) for k in range(len(group))))
    drawn = algorithm.rollout(policy.under("old"), condition[group], noise)
    return Rollout.of([drawn], condition, group, algorithm.rollout.levels)


for step in range(30):
    texts = [prompts.texts[i] for i in prompts.draw(0, step, 12)]
    rollout = sample(texts, step)
    scores = reward(policy.decode(rollout.x0), [texts[g] for g in group])
    points = algorithm.points(replace(rollout, advantage=algorithm.credit(scores, group)), ("points", step))
    loss, metrics = algorithm.loss(models, points.take(torch.arange(len(points))))
    optimiser.zero_grad()
    loss.mean().backward()
    optimiser.step()
    policy.weights.follow("old", 0.9)
    print(f"{step:3d}  reward {scores.mean():.3f}")
