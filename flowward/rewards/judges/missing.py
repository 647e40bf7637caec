"""Images that a judge gave no readable answer for: how many are allowed, and which score stands in for theirs.

One strange answer should not end a run of days. An image without a score gets the mean of the other images of its
prompt in the call, so in a group its advantage is 0 and the mean of the group stays. This is printed and counted, and
the run stops if it happens often.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from ...system.terminal import tell
from ..reward import RewardError

RECENT = 1000  # answers that the share is counted over
AGAIN = 60.0  # seconds between two messages


class Missing:
    """Counts answers and those that could not be read. Safe to use from several threads."""

    def __init__(self, share: float):
        """`share`: largest share of missing answers among the last 1000. One is allowed early, unless this is 0."""
        self.share = share
        self.count = 0
        self.last = ""  # why the last one could not be read
        self._recent: deque[bool] = deque(maxlen=RECENT)  # whether each was missing
        self._said = -float("inf")
        self._lock = threading.Lock()

    def read(self) -> None:
        """Count an answer that was read."""
        with self._lock:
            self._recent.append(False)

    def unread(self, why: str) -> None:
        """Count a missing answer, and report it on stderr, at most once a minute.

        Raises:
            RewardError: too many are missing; the message ends with `why`.
        """
        with self._lock:
            self._recent.append(True)
            self.last = why
            missing, asked = sum(self._recent), len(self._recent)
            if not self.share or missing > max(1.0, self.share * asked):
                some = f" ({missing} of the last {asked} answers; max_missing is {self.share:g})" if self.share else ""
                raise RewardError(f"{why}{some}")
            self.count += 1
            if time.monotonic() - self._said < AGAIN:
                return
            self._said = time.monotonic()
        tell(
            f"{' '.join(why.split())}; the image gets the mean score of the other images of its prompt "
            f"({missing} of the last {asked} answers are missing; above {self.share:.0%} the run stops)"
        )


def filled(scores: Tensor, subjects: Sequence[str], why: str) -> Tensor:
    """Scores [B] where NaN is replaced by the mean of the other images of the prompt, or else by that of all images.

    Args:
        scores: [B]; NaN where there is none.
        subjects: B keys; images with equal keys belong to one prompt.
        why: what went wrong last, for the error.

    Raises:
        RewardError: no image has a score.
    """
    known = scores.isfinite()
    if known.all():
        return scores
    if not known.any():
        raise RewardError(f"{why} (no image of this call has a score)")
    number = {subject: at for at, subject in enumerate(dict.fromkeys(subjects))}
    of = torch.tensor([number[subject] for subject in subjects])
    whole = scores.clone()
    for row in (~known).nonzero().flatten().tolist():
        others = known & (of == of[row])
        whole[row] = scores[others if others.any() else known].mean()
    return whole
