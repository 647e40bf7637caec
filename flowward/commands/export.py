"""flowward export"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..models.loading import Loading
from ..training.record import Record
from .help import Page
from .options import parse, said

PAGE = Page(
    about="Write a run's weights for diffusers, with a model card: LoRA adapters, or the whole transformer if all "
    "weights were trained.",
    examples=(
        ("export runs/first", "write runs/first/export"),
        ("export runs/first --merged --output my-model", "write a whole pipeline with LoRA merged into it"),
    ),
    first=("output", "weights", "merged", "device"),
)


@dataclass(frozen=True)
class Export:
    """Write a run's weights for diffusers, with a model card."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """run folder"""
    output: Path | None = None
    """folder to write to (default: RUN/export)"""
    weights: Literal["policy", "ema"] = "policy"
    """weights to write: the trained `policy` or its `ema` average"""
    merged: bool = False
    """write the whole transformer too, with LoRA merged into it"""
    loading: Annotated[Loading, tyro.conf.OmitArgPrefixes] = field(default_factory=Loading)


def run(words: list[str]) -> int:
    chosen = parse(Export, words, "export", page=PAGE)
    run = Record.open(chosen.run)
    folder = chosen.output or chosen.run / "export"
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something already; name another --output")
    from ..export import card, exported  # after the flags, so that --help does not wait for torch and diffusers
    from ..export import weights as export
    from ..models.lora import LoRA
    from .policies import policy_of

    policy = policy_of(str(chosen.run), chosen.weights, chosen.loading, said=said(words))
    about = {**run.origin(), "weights": chosen.weights, "base": policy.identity["base"]}
    files = []
    with export.whole(folder):
        if isinstance(policy.weights, LoRA):
            files.append(export.lora(policy, folder, about))
        if chosen.merged or not files:
            files.append(export.merged(policy, folder, about))
            if (kept := export.stored(exported.transformers(policy)["transformer"])) != "float32":
                print(f"merged weights are in {kept}, which rounds small changes away: the adapters alone keep them")
        command = str(run.summary().get("command", ""))
        files.append(card.write(run, folder, policy, about, [path.name for path in files], command))
    for path in files:
        print(path)
    return 0
