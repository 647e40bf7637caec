"""Whether a run compiles the blocks of its model, if nobody says so: `--compile-blocks auto`.

It is decided once, before the run begins, and written into its settings. So a run that goes on computes as before.
Compiled code may differ from the plain one in the last bits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..system import distributed
from ..system.errors import named
from ..system.terminal import tell
from . import fit
from .counting import counts, said, timed
from .trainer import Trainer

GAIN = 0.1  # of the time of network evaluations that compiled blocks save on a processor (docs/benchmarks.md)
COMPILING = 100.0  # seconds, on a processor
FEWEST = 1000  # network evaluations of a run that might pay for it
BACKWARD = 3  # a pass forward and backward takes as long as so many forward
ROWS = 16  # of a timed pass, at most
FASTER = 0.97  # of the time: otherwise it is no gain
REPEATS = 3


def decided(made: Any) -> Any:
    """A new run (Ready) whose blocks are compiled if that pays; its settings and notes say so.

    It pays if the run makes at least a thousand network evaluations, if a tenth of their time is more than twice the
    time of compilation, and if a compiled pass is faster than a plain one. Else the blocks run as they are.
    """
    loading = getattr(made.settings, "loading", None)
    policy: Any = getattr(made.trainer, "policy", None)
    if loading is None or loading.compile_blocks != "auto" or getattr(policy, "family", None) is None:
        return made  # no model of diffusers
    elsewhere = made.settings.drawing.rollouts != "here" or policy.weights.collective
    compiled, note = (False, None) if elsewhere else _tried(made, made.trainer)
    loading = replace(loading, compile_blocks="always" if compiled else "never")
    policy.loading = loading
    notes = (*made.notes, *([note] if note else []))
    return replace(made, settings=replace(made.settings, loading=loading), notes=notes)


def _tried(made: Any, trainer: Trainer) -> tuple[bool, str | None]:
    """Whether the blocks are compiled now, and a sentence about it."""
    from ..models import compiling  # and with it diffusers, for which a help text does not wait

    run, one, weights = made.settings.run, counts(made), trainer.policy.weights
    iteration = one.sampling + BACKWARD * one.training + one.frozen
    evaluations = run.iterations * iteration + (1 + run.evaluations(0)) * one.evaluation
    if evaluations < FEWEST:
        return False, None
    plain = _seconds(trainer)
    total = plain * evaluations / distributed.teams()
    if GAIN * total < 2 * COMPILING:
        return False, None
    if why := _of_any(compiling.uncompilable(trainer.policy.device)):
        return False, f"compiled blocks may save about {said(GAIN * total)} of {said(total)}, but {why}"
    tell("trying compiled blocks, which takes a minute or more; --compile-blocks never leaves this out")
    ratio, error = float("inf"), None
    compiling.compile_all(weights)
    try:
        ratio = _seconds(trainer) / plain
    except Exception as failure:  # torch's compiler raises many kinds
        error = named(failure)
    if error := _of_any(error):
        compiling.undo(weights)
        return False, f"torch cannot compile the blocks of this model, so they run as they are ({error})"
    ratio = distributed.merged({"ratio": ratio}, max)["ratio"]
    if ratio > FASTER:
        compiling.undo(weights)
        return False, f"compiled blocks were tried and are not faster here ({ratio:.2f} of the time): not used"
    return True, (
        f"blocks are compiled: a network evaluation takes {ratio:.2f} of the time, which saves about "
        f"{said((1 - ratio) * total)} of {said(total)} in all; --compile-blocks never switches it off"
    )


def _of_any(reason: str | None) -> str | None:
    """The reason of a process that has one, so that all decide alike."""
    return next(iter(distributed.messages(reason)), None)


@torch.no_grad()
def _seconds(trainer: Trainer) -> float:
    """Of one network evaluation, per sample: the fastest of a few passes; the slowest process counts."""
    policy, many = trainer.policy, max(1, min(ROWS, trainer.block))
    condition = trainer.encode([fit.longest(trainer.prompts)])[torch.zeros(many, dtype=torch.long)]
    x = torch.zeros(many, *policy.latent_shape, device=policy.device)
    t, behaviour = torch.full((many,), 0.5, device=policy.device), trainer.algorithm.behaviour
    with policy.weights.still(behaviour):
        fastest = timed(lambda: policy.velocity(x, t, condition, behaviour), REPEATS)
    return distributed.merged({"seconds": fastest}, max)["seconds"] / many
