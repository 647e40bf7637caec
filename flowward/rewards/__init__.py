"""Rewards: reward(images, prompts, metadata=None) -> one number per image. Anything with that call will do.

A video gets the mean of what its frames get, unless the reward says that it takes videos (`takes_videos = True`).
"""

from __future__ import annotations

from .loading import REWARDS, Sum, load, make, owner, terms, weighted
from .reward import Explains, Metadata, Reads, Reward, RewardError, gives_verdicts, refuse, score

__all__ = [
    "REWARDS",
    "Explains",
    "Metadata",
    "Reads",
    "Reward",
    "RewardError",
    "Sum",
    "gives_verdicts",
    "load",
    "make",
    "owner",
    "refuse",
    "score",
    "terms",
    "weighted",
]
