"""flowward export"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..models.loading import Loading
from ..system import strict_json
from ..training.record import Record
from . import options


@dataclass(frozen=True)
class Export:
    """Write a run's weights for diffusers, with a model card: LoRA adapters, or the whole transformer."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """run folder"""
    output: Path | None = None
    """(default: RUN/export)"""
    weights: Literal["policy", "ema"] = "policy"
    """`ema` is the running average of the policy"""
    merged: bool = False
    """write the whole transformer too, adapters merged into it"""
    loading: Annotated[Loading, tyro.conf.OmitArgPrefixes] = field(default_factory=Loading)


def run(words: list[str]) -> int:
    chosen = options.parse(Export, words, "export")
    run = Record.open(chosen.run)
    folder = chosen.output or chosen.run / "export"
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds something already; name another --output")
    named = options.said(words)
    from ..export import card, exported  # after the flags, so that --help does not wait for torch and diffusers
    from ..export import weights as export
    from ..models.lora import LoRA
    from . import policies

    policy = policies.policy_of(str(chosen.run), chosen.weights, chosen.loading, said=named)
    said = {**run.origin(), "weights": chosen.weights, "base": policy.identity["base"]}
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    if isinstance(policy.weights, LoRA):
        files.append(export.lora(policy, folder, said))
    if chosen.merged or not files:
        files.append(export.merged(policy, folder, said))
        if (kept := export.stored(exported.transformers(policy)["transformer"])) != "float32":
            print(f"merged weights are in {kept}, which rounds small changes away: the adapters alone keep them")
    summary = run.path / "summary.json"
    command = strict_json.loads(summary.read_text("utf-8"))["command"] if summary.is_file() else ""
    for path in [*files, card.write(run, folder, policy, said, [path.name for path in files], command)]:
        print(path)
    return 0
