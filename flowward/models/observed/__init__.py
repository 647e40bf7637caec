"""Families found by observing a pipeline, for those that have no written family.

calls.py records what a run of the pipeline does. observer.py has the arguments of such runs. observe.py finds the
convention from them, with maps.py (where numbers come from), times.py, guidance.py and rows.py (how rows are joined).
findings.py makes the network's arguments again, leaf by leaf (leaves.py). pictures.py is the way to pictures.
agreement.py is the check before a run, family.py the Family, and refusals.py what is known before anything is loaded.
"""

from __future__ import annotations

from .family import Observed, family_of
from .refusals import refusal

__all__ = ["Observed", "family_of", "refusal"]
