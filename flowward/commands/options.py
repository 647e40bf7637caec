"""What several commands share: options, and the meaning of a model's name."""

from __future__ import annotations

import difflib
import io
import sys
from collections.abc import Collection, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch
import tyro

from .. import config, exported, models
from ..folder import RunFolder
from ..models.loading import Loading
from ..models.policy import Policy
from ..precision import Wish

PLAIN = (tyro.conf.AvoidSubcommands,)  # flags are of the kind of value that a setting has: another preset has another


def take(words: list[str], name: str) -> tuple[str | None, list[str]]:
    """The value of `--name value` or `--name=value`, and the other words."""
    rest, value = [], None
    pending = iter(words)
    for word in pending:
        if word == f"--{name}":
            value = next(pending, None)
            if value is None:
                raise ValueError(f"--{name} needs a value")
        elif word.startswith(f"--{name}="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    return value, rest


def given(words: list[str], name: str) -> str | None:
    """The value of a flag, which stays among the words."""
    return take(words, name)[0] if any(word.partition("=")[0] == f"--{name}" for word in words) else None


def parse(
    kind: Any,
    words: list[str],
    command: str,
    default: Any = None,
    description: str | None = None,
    beside: Sequence[str] = (),
) -> Any:
    """Flags to a dataclass, by tyro (which explains a bad flag itself, and exits with code 2).

    `beside` are options that the command has taken out of the words before, so tyro does not know them.

    Raises:
        ValueError: the flags are well formed, and one of our dataclasses refuses their values; or a flag is nearly one
            of `beside`.
    """
    extra = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(
                kind, args=words, prog=f"flowward {command}", description=description, config=PLAIN, **extra
            )
    except SystemExit as end:
        if refusal := _refusal(end):
            raise refusal from None
        _refuse_misspelt(words, beside)
        print(said.getvalue(), end="", file=sys.stderr)
        raise


def _refuse_misspelt(words: list[str], known: Sequence[str]) -> None:
    """Raises ValueError where a flag is nearly one of these names."""
    for flag in (word.partition("=")[0] for word in words):
        if not flag.startswith("--") or "." in flag:  # --algorithm.lam is there, though it looks like --algorithm
            continue
        if near := difflib.get_close_matches(flag[2:], known, n=1, cutoff=0.8):
            raise ValueError(f"unknown option '{flag}'; did you mean '--{near[0]}'?")


def _refusal(end: SystemExit) -> ValueError | None:
    """The ValueError of our own code that made tyro exit, if that was why."""
    error = end.__context__
    while error and error.__context__:
        error = error.__context__
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return None
    *_, (frame, _) = walk_tb(error.__traceback__)
    return error if frame.f_globals["__name__"].startswith("flowward.") else None


def said(words: Sequence[str]) -> set[str]:
    """The names of the settings that flags name: what is said may be what nobody would have to say."""
    flags = (word.partition("=")[0].removeprefix("--") for word in words if word.startswith("--"))
    return {flag.removeprefix("no-").replace("-", "_") for flag in flags}


def set_threads(number: int | None) -> None:
    """Raises ValueError where a number of CPU threads was given that cannot be."""
    if number is None:
        return
    if number < 1:
        raise ValueError(f"threads must be at least 1, not {number}")
    torch.set_num_threads(number)


def warn_of_guidance(name: str, guidance: float) -> None:
    """Say so where a run is sampled with another guidance than its samples had in training."""
    trained = _trained_with(name)
    if trained is not None and trained != guidance:
        print(
            f"flowward: {name} was trained on samples with guidance {trained:g}, and is sampled with {guidance:g} now "
            f"(--guidance {trained:g} for the same)",
            file=sys.stderr,
        )


def remark_on_guidance(name: str, policy: Policy, guidance: float) -> None:
    """Say so where a model that was not trained here is sampled with another guidance than it was made for."""
    if _trained_with(name) is None and (remark := policy.remark(guidance)):
        print(f"flowward: {remark} (--guidance)", file=sys.stderr)


def _trained_with(name: str) -> float | None:
    """The guidance of the samples that a run or an export was trained on."""
    path = Path(name)
    about = RunFolder.open(path).origin() if (path / "config.yaml").is_file() else exported.facts(name)
    return about.get("guidance")


def policy_of(
    name: str,
    weights: str,
    loading: Loading | None = None,
    precision: Wish | None = None,
    said: Collection[str] = (),
) -> Policy:
    """A model by name, an export on its base, or a run's newest checkpoint with the named weights as its policy.

    A run's model is loaded as it was trained, but on the device, in the precision and with the savings of memory that
    are asked for; `said` are the names of the settings of `loading` that a flag named.

    Raises:
        ValueError: there is no such model, run, checkpoint, adapters or weights, or a run is asked for at another size.
    """
    path = Path(name)
    if found := exported.load(name, precision or "auto", loading):
        return found
    if not (path / "config.yaml").is_file():
        return models.load(name, precision=precision or "auto", loading=loading)
    folder = RunFolder.open(path)
    given = folder.config()  # of which no more is asked: a run from Python may hold an algorithm of one's own
    settings = config.from_dict(
        {key: given[key] for key in ("model", "loading", "lora_rank", "precision") if key in given}
    )
    state = folder.state("identity", "iteration", "weights")
    if state is None:
        raise ValueError(f"{path} holds no checkpoint yet")
    how = loading.of_run(name, settings.loading, said) if loading else settings.loading
    policy = models.load(settings.model, settings.lora_rank, precision or settings.precision, loading=how)
    if other := policy.unlike(state["identity"]):
        said = (
            f"the checkpoint of {path} belongs to another model than '{settings.model}': its {', '.join(other)} differs"
        )
        raise ValueError(said)
    if weights not in state["weights"]:
        raise ValueError(f"{path} has no weights called '{weights}', only {', '.join(state['weights'])}")
    policy.weights.load("policy", state["weights"][weights])
    policy.name = f"{name} ({weights}, iteration {state['iteration']})"
    return policy
