"""Rewards: reward(images, prompts, metadata=None) -> one number per image. Any callable like this is a reward.

The score of a video is the mean over its frames, unless the reward has `takes_videos = True`.
"""

from __future__ import annotations

from .code import code_of
from .gradients import Differentiable, Smooth, differentiable
from .loading import REWARDS, Sum, load, located_option, make, owner, refuse_kind, terms, weighted
from .reward import Explains, Metadata, Reads, Reward, RewardError, bounds_of, gives_verdicts, refuse, score
from .slopes import gradient, has_gradient, refuse_without

__all__ = [
    "REWARDS",
    "Differentiable",
    "Explains",
    "Metadata",
    "Reads",
    "Reward",
    "RewardError",
    "Smooth",
    "Sum",
    "bounds_of",
    "code_of",
    "differentiable",
    "gives_verdicts",
    "gradient",
    "has_gradient",
    "load",
    "located_option",
    "make",
    "owner",
    "refuse",
    "refuse_kind",
    "refuse_without",
    "score",
    "terms",
    "weighted",
]
