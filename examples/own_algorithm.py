"""An algorithm of your own: a value with a loss. Hold it to its laws, then train with it.

cd examples && flowward verify --algorithm own_algorithm:Mine
python own_algorithm.py
"""

from dataclasses import dataclass, field

from torch import Tensor

import flowward
from flowward.algorithms.anchored import Anchored
from flowward.learning.credit import CentredRMS
from flowward.learning.points import Points, Renoise
from flowward.learning.snapshots import Decay
from flowward.learning.terms import matching, tether
from flowward.process.policy import Models
from flowward.process.rollout import Sampler


@dataclass(frozen=True)
class Mine(Anchored):
    """Each point: A mean((v - u)^2) + gamma mean((v - v_old)^2) + k_ref mean((v - v_ref)^2), u = eps - x0."""

    gamma: float = 1.1
    k_ref: float = 1e-3
    behaviour: str = "old"  # whose samples are scored
    rollout: Sampler = field(default_factory=Sampler)
    credit: CentredRMS = field(default_factory=CentredRMS)
    points: Renoise = field(default_factory=Renoise)
    old: Decay = field(default_factory=lambda: Decay(0.9))

    def loss(self, models: Models, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
        v_old, v_ref = models.at("old", points), self.reference(models, points)
        v = models.at("policy", points)  # last, for its gradient
        loss = points.advantage * matching(v, points.x0, points.eps) + tether(v, v_old, self.gamma)
        return loss + tether(v, v_ref, self.k_ref), self.watched(points, v, v_old, v_ref)


if __name__ == "__main__":
    run = flowward.Run(iterations=20, images_per_update=96, group_size=12, microbatch=96, learning_rate=3e-4)
    prompts = flowward.prompts.load("scenes")
    for step in flowward.train(Mine(), flowward.load("scenes"), flowward.rewards.load("scenes"), prompts, run):
        print(f"{step.index:3d}  reward {step.metrics['reward']:.3f}", *step.health)
