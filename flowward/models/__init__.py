"""Models: `load` the built-in model, a folder or a hub id as a Policy."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from .adapters import Adapters
from .layout import Layout
from .loading import Loading
from .names import BUILT_IN, LORA_FILE, is_code, is_pipeline, located, lora_file, refusal, world_of

if TYPE_CHECKING:
    from ..process.policy import Policy
    from ..system.precision import Wish


def load(
    name_or_path: str,
    lora_rank: int | None = None,
    precision: Wish = "auto",
    seed: int = 0,
    loading: Loading | None = None,
    adapters: Adapters | None = None,
    layout: Layout | None = None,
) -> Policy:
    """Load a model, ready to sample and to train.

    Args:
        name_or_path: `scenes` (the built-in model), `scenes-4step` (the same for 4 jumps), a folder made by `flowward
            pretrain` (of `scenes-64` too), the folder of a diffusers pipeline, or its id on the hub (owner/name). `~`,
            the URL of its page on the hub, its folder in the cache of the hub, and the path of model_index.json work
            too. Or `path/to/file.py:make`, a function that returns a policy (of `flowward.policies.of`).
        lora_rank: train LoRA adapters of this rank; None trains all weights.
        precision: of the networks (`auto`: bf16 if the device supports it). Solver states and losses are float32.
        seed: for the initial weights of the adapters.
        loading: options for diffusers models, such as size and device.
        adapters: in place of a rank: also the scale and layers of the adapters, or a LoRA to start from.
        layout: how several processes share a diffusers model; each of them calls this.

    Raises:
        ValueError: the model does not exist, does not support an option, or torch would compute wrong numbers here
            (OMP_DYNAMIC, OMP_THREAD_LIMIT).
    """
    from ..system.threads import refuse_fewer

    refuse_fewer()
    if adapters and lora_rank is not None:
        raise ValueError("give lora_rank or adapters, not both")
    trained = Adapters(lora_rank) if lora_rank is not None else adapters
    loading, layout, name = loading or Loading(), layout or Layout(), located(name_or_path)
    if is_code(name):
        from .own import made

        return made(name, trained, precision, seed, _chosen(loading, layout))
    if is_pipeline(name):
        from . import pipelines

        return pipelines.load(name, trained, precision, seed, loading, layout)
    built_in, folder = name in BUILT_IN, Path(name)
    if not built_in and not (folder / "text_encoder" / "config.json").is_file():
        raise ValueError(refusal(name))
    if chosen := _chosen(loading, layout):
        raise ValueError(f"the built-in model does not support {' and '.join(chosen)}; leave out the option")
    from ..system.precision import resolve
    from .scenes import ScenesPolicy, folder_of

    return ScenesPolicy(name, folder_of(name), trained, resolve(precision), seed)


def _chosen(loading: Loading, layout: Layout) -> list[str]:
    """Names of the options for diffusers models that ask for something; older runs say `never` of some."""
    options = [(each, loading) for each in fields(Loading)] + [(each, layout) for each in fields(Layout)]
    return [each.name for each, given in options if getattr(given, each.name) not in (each.default, "never")]


__all__ = [
    "BUILT_IN",
    "LORA_FILE",
    "Adapters",
    "Layout",
    "Loading",
    "is_code",
    "is_pipeline",
    "load",
    "located",
    "lora_file",
    "world_of",
]
