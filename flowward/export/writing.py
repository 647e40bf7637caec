"""Everything that an export has: weights, a model card, and images of the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .. import __version__
from ..models.lora import LoRA
from ..process.policy import Policy
from ..system import strict_json
from ..training.record import Record
from . import card, exported
from . import weights as export


def write(
    run: Record,
    policy: Policy,
    folder: Path,
    weights: str = "policy",
    merged: bool = False,
    at: int | None = None,
    say: Callable[[str], object] = print,
) -> list[Path]:
    """Write the `policy` weights of a model for diffusers, with a card that says how `run` made them.

    A model with a format of its own (`Policy.written`) is written in that, without a card. The folder is empty or
    missing.

    Args:
        weights: their name for the card: `policy` or `ema`.
        merged: write the whole transformer too, with LoRA merged into it. The policy cannot be trained afterwards.
        at: the iteration of the weights, if it is not the last one.
        say: prints a warning.

    Raises:
        ValueError: the run's config.yaml is damaged.
        OSError: a file cannot be written; none is left.
    """
    about = {**run.origin(), "weights": weights, "base": policy.identity["base"]}
    if at is not None:
        about["iterations"] = at
    with export.whole(folder):
        if own := policy.written(folder, {"flowward": strict_json.dumps({"version": __version__, **about})}):
            return own
        files = []
        if isinstance(policy.weights, LoRA):
            files.append(export.lora(policy, folder, about))
        if merged or not files:
            files.append(export.merged(policy, folder, about))
            if (kept := export.stored(exported.transformers(policy)["transformer"])) != "float32":
                say(f"merged weights are in {kept}, which rounds small changes away: the adapters alone keep them")
        command = str(run.summary().get("command", ""))
        files.append(card.write(run, folder, policy, about, [path.name for path in files], command))
    return files
