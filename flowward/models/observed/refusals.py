"""Pipelines that cannot be observed, as far as their parts say: known before anything is loaded."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler

from .observer import Refused


def refusal(kind: str, index: Mapping[str, Any], scheduler: Mapping[str, Any] | None) -> str | None:
    """Why a pipeline cannot be observed; None: it can be tried.

    Args:
        index: its model_index.json.
        scheduler: its scheduler_config.json, if it is at hand.
    """
    try:
        refuse_parts([name for name, part in index.items() if isinstance(part, list) and part[0]])
        known = getattr(diffusers, str(index.get("scheduler", ["", ""])[1]), None)
        if known is not None:
            refuse_scheduler(known, scheduler)
    except Refused as why:
        return f"{kind} has no written family, and it {why}"
    return None


def refuse_parts(names: Collection[str]) -> None:
    """Raise Refused if a pipeline with these parts does not have one transformer."""
    if "transformer" not in names:
        others = [name for name in names if re.match("unet|prior|decoder", name)]
        raise Refused("has no `transformer`" + (f"; its network is `{others[0]}`" if others else ""))
    if others := [name for name in names if re.fullmatch(r"(transformer|unet)_\d", name)]:
        raise Refused(f"calls two transformers (transformer and {others[0]})")


def refuse_scheduler(kind: type, settings: Mapping[str, Any] | None) -> None:
    """Raise Refused if the scheduler, with these settings (None: not known yet), does not follow a flow."""
    if issubclass(kind, FlowMatchEulerDiscreteScheduler):
        return
    able = "use_flow_sigmas" in inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    asked = settings is None or settings.get("use_flow_sigmas") or settings.get("prediction_type") == "flow_prediction"
    if not able or not asked:
        raise Refused(f"predicts noise or jumps, and does not follow a flow: its scheduler is {kind.__name__}")
