"""What the glossary says about one key of metrics.jsonl."""

from __future__ import annotations

from dataclasses import dataclass

SHARES = "share, 0 to 1"  # the unit of shares


@dataclass(frozen=True)
class Metric:
    """One key of metrics.jsonl."""

    title: str  # of its chart
    line: str  # one sentence, without its full stop
    healthy: str
    unit: str = ""
    by_step: bool = False  # also recorded as KEY@STEP, for each rollout step alone
