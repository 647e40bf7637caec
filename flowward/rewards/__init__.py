"""Rewards: reward(images, prompts, metadata=None) -> one number per image. Any callable like this is a reward.

The score of a video is the mean over its frames, unless the reward has `takes_videos = True`.
"""

from __future__ import annotations

from .code import code_of
from .loading import REWARDS, Sum, load, located_option, make, owner, terms, weighted
from .reward import Explains, Metadata, Reads, Reward, RewardError, bounds_of, gives_verdicts, refuse, score

__all__ = [
    "REWARDS",
    "Explains",
    "Metadata",
    "Reads",
    "Reward",
    "RewardError",
    "Sum",
    "bounds_of",
    "code_of",
    "gives_verdicts",
    "load",
    "located_option",
    "make",
    "owner",
    "refuse",
    "score",
    "terms",
    "weighted",
]
