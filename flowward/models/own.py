"""Models that a function of the user's file makes: `path/to/file.py:make`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from ..process.policy import Policy
from ..system import user_code
from ..system.errors import named
from ..system.precision import Wish
from .adapters import Adapters
from .lora import LoRA


def made(name: str, adapters: Adapters | None, precision: Wish, seed: int, chosen: Sequence[str]) -> Policy:
    """The policy that a user's function returns.

    It is called without arguments, or with those of `lora_rank`, `precision` and `seed` that it has.

    Args:
        chosen: names of other options that were given, none of which it supports.

    Raises:
        ValueError: there is no such function, it fails or returns something else, or it does not support an option.
    """
    make = user_code.find("model", name)
    if adapters and (adapters.start or adapters.alpha or adapters.targets):
        chosen = [*chosen, "LoRA settings other than lora_rank"]
    if adapters and adapters.palette:
        chosen = [*chosen, "palette"]
    if chosen:
        raise ValueError(f"the model {name} does not support {' and '.join(chosen)}; leave out the option")
    rank = adapters.rank if adapters else None
    given: dict[str, Any] = {"lora_rank": rank, "precision": precision, "seed": seed}
    try:
        known = inspect.signature(make).parameters
        policy = make(**{key: value for key, value in given.items() if key in known and value not in (None, "auto")})
    except Exception as error:  # a user's function may raise anything
        raise ValueError(f"{name} cannot make a model: {named(error)}") from error
    if not isinstance(policy, Policy):
        raise ValueError(f"{name} must return a policy, such as flowward.policies.of(...), not {type(policy).__name__}")
    own = policy.weights.adapters.rank if isinstance(policy.weights, LoRA) else None
    if rank is not None and rank != own:
        what = "trains all weights" if own is None else f"has LoRA adapters of rank {own}"
        raise ValueError(f"{name} {what}, not of rank {rank}: give it an argument lora_rank, or leave out the option")
    if precision not in ("auto", policy.precision):
        raise ValueError(f"{name} runs in {policy.precision}, not {precision}: give it an argument precision")
    policy.name = name
    return policy
