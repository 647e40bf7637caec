"""One sentence for a name that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """'unknown reward 'scens'; did you mean 'scenes'?', or the list where nothing is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"unknown {kind} '{name}'; " + (f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}")
