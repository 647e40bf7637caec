"""AdamW (Loshchilov and Hutter, 2017, arXiv:1711.05101) with 32-bit or 8-bit moments, and undoing failed steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor

OptimiserName = Literal["adamw", "adamw8bit"]
MOMENTS = ("exp_avg", "exp_avg_sq")  # of a parameter, in the state of torch's AdamW


def adamw8bit(parameters: Sequence[Tensor], rate: float, **options: Any) -> torch.optim.Optimizer:
    """AdamW by bitsandbytes with block-wise 8-bit moments (Dettmers et al., 2021, arXiv:2110.02861).

    It needs 2 bytes per weight instead of 8. Tensors with fewer than 4,096 numbers keep 32-bit moments.

    Raises:
        ValueError: bitsandbytes is missing.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(f"adamw8bit needs bitsandbytes: pip install 'flowward[quantise]' ({error})") from error
    made: torch.optim.Optimizer = AdamW8bit(parameters, rate, **options)
    return made


OPTIMISERS: dict[OptimiserName, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adamw8bit": adamw8bit,
}


@contextmanager
def undone_if_it_fails(parameters: Sequence[Tensor], optimiser: torch.optim.Optimizer) -> Iterator[None]:
    """If an exception is raised inside, undo all steps on these parameters and clear gradients.

    Costs nothing without parameters.
    """
    weights = [tensor.detach().clone() for tensor in parameters]
    state = _copied(optimiser.state_dict()) if weights else {}
    try:
        yield
    except BaseException:
        optimiser.zero_grad()
        if weights:
            with torch.no_grad():
                for now, then in zip(parameters, weights, strict=True):
                    now.copy_(then)
            optimiser.load_state_dict(state)
        raise


def _copied(value: Any) -> Any:
    """A copy of nested state; `copy.deepcopy` of tensors takes five times as long."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list) else deepcopy(value)


def load_moments(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a `state_dict`, but keep the optimiser's own settings: a run may be resumed with other ones.

    Raises:
        ValueError: it is of other parameters.
        TypeError, KeyError: a moment is missing or has another kind or shape.
    """
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimiser.param_groups]
    optimiser.load_state_dict(state)
    for group, settings in zip(optimiser.param_groups, own, strict=True):
        group.update(settings)
    if type(optimiser) is not torch.optim.AdamW:  # other ones pack their moments
        return
    for parameter, moments in optimiser.state.items():
        shapes = {"step": torch.Size(), **dict.fromkeys(MOMENTS, parameter.shape)}
        for name, shape in shapes.items():
            found = moments[name]
            if not isinstance(found, torch.Tensor) or found.shape != shape:
                raise TypeError(f"{name} of the optimiser is no tensor of shape {list(shape)}")
