"""Every algorithm is a value of four parts: rollout, credit, points and one equation."""

from .advantageflow import AdvantageFlow

ALGORITHMS = {"advantageflow": AdvantageFlow}

__all__ = ["ALGORITHMS", "AdvantageFlow"]
