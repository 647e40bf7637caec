"""GenEval metadata, written briefly."""

from __future__ import annotations

from typing import Any


def clause(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


CAT = {"include": [clause("cat")]}
