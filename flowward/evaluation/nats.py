"""How far a trained model is from the model that it began as, in nats per image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..learning.terms import EARLIEST, nats
from ..process.flow import interpolate
from ..process.noise import Noise, normal
from ..process.policy import Condition, Policy
from ..process.rollout import Sampler, bound_to
from ..prompts import Prompt
from ..system.streams import Key
from .drawing import at_once
from .measurement import numbered

STREAM = "nats"


@torch.no_grad()
def from_reference(
    policy: Policy, prompts: Sequence[Prompt], sampler: Sampler, seed: int, points: int = 8
) -> Tensor | None:
    """An estimate for each image [N] whose mean is KL(policy || reference) in nats; None with guidance.

    The integral of `learning.terms.nats` over times, by the mid-point rule with `points` times in [0.05, 1], at samples
    of the policy with new noise: 2 `points` network evaluations per image beside those of the sampler. Velocities with
    guidance are not those of any samples, so there is no such KL then.

    Args:
        prompts: N, one per image; image k has the noise of the evaluation of this seed.
        policy: its weights have a `reference` (of a model with all weights trained: `weights.add`, before training).
    """
    if sampler.guidance != 1:
        return None
    sampler, unique = bound_to(policy, sampler), list(dict.fromkeys(prompts))
    condition, row = policy.encode(unique), torch.from_numpy(numbered(prompts))
    found = list[Tensor]()
    for part in torch.arange(len(prompts)).split(at_once(policy)):
        own = condition[row[part]]
        keys = tuple(("evaluation", seed, number) for number in part.tolist())
        x0 = sampler(policy.under("policy", 1.0), own, Noise(policy.latent_shape, keys, policy.device)).x0
        found.append(_kl(policy, x0, own, [(STREAM, seed, number) for number in part.tolist()], points))
    return torch.cat(found)


def _kl(policy: Policy, x0: Tensor, condition: Condition, keys: Sequence[Key], points: int) -> Tensor:
    """[B], from samples x0 [B, ...]."""
    total, span = torch.zeros(len(x0), dtype=torch.float64), 1 - EARLIEST
    for number in range(points):
        eps = normal(x0.shape[1:], [(*key, number) for key in keys]).to(x0.device)
        t = torch.full((len(x0),), EARLIEST + span * (number + 0.5) / points, device=x0.device)
        x = interpolate(x0, eps, t)
        v, base = (policy.velocity(x, t, condition, name) for name in ("policy", "reference"))
        total += nats(v, base, t, torch.full_like(t, span)).double().cpu() / points
    return total
