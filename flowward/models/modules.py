"""Policies of any torch module that predicts a velocity: samples of any shape, no decoder, no text encoder.

`flowward.policies` is this module.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import isclose, isfinite
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ..process import medium
from ..process.policy import Condition, Policy, graphed
from ..prompts import Prompt, text_of
from ..system import whole_files
from ..system.errors import named, one_of, unknown
from ..system.precision import Wish, autocast, resolve
from . import plots, targets
from .adapters import Adapters
from .lora import LoRA, trainable
from .weights import Full

Values = Any  # a tensor (or what torch.as_tensor takes), or a mapping of names to tensors
Given = Callable[[list[str]], Values] | Mapping[str, Values] | None
Predicts = Literal["noise - data", "data - noise"]

OWN = "given"  # names in a Condition: "given" for one tensor, "given.NAME" for several
PROBES = 2  # samples that a module is tried on
UNFIT = (TypeError, ValueError, RuntimeError, KeyError)  # what torch raises for values that are no tensors
SLOPE = -0.5  # of velocity over noise at pure noise; 1 for a trained flow, and -1 with a wrong sign or time
FILE = "module.safetensors"


def of(
    module: nn.Module,
    shape: Sequence[int],
    condition: Given = None,
    *,
    time: tuple[float, float] = (1.0, 0.0),
    predicts: Predicts = "noise - data",
    lora_rank: int | None = None,
    draw: Callable[[Tensor, str], Any] | None = None,
    name: str | None = None,
    precision: Wish = "float32",
    seed: int = 0,
    rate: int | None = None,
) -> ModulePolicy:
    """Make a Policy of a torch module, for `flowward.fit` and `flowward.train`.

    The module is called as `module(x, t)` without a condition, as `module(x, t, c)` if the condition of a prompt is one
    tensor, and as `module(x, t, **c)` if it is a dict of tensors. x is [B, *shape], t is [B], and c has B rows. It
    returns a velocity [B, *shape]: the change of x over the whole way between noise and data, whatever numbers its time
    has. It is trained in place, in eval mode (no dropout); weights that require no gradient stay as they are.

    Rewards are called with samples [B, *shape] in the place of images.

    Args:
        module: predicts a velocity. Its weights define the base model, which a checkpoint has to match.
        shape: of one sample, such as (8, 2) for chunks of 8 actions with 2 numbers each.
        condition: what the module is told of a prompt: a mapping from each prompt to its tensor (or dict of tensors),
            or a function from a list of N prompts to a tensor [N, ...] or a dict of them. None: nothing.
        time: the module's own time at pure noise, and at data. flowward's convention is (1, 0); many robot policies
            have (0, 1), and (1000, 0) is a scale of 1000.
        predicts: what the velocity is: "noise - data" (flowward's convention), or "data - noise".
        lora_rank: train LoRA adapters of this rank on its nn.Linear layers (None: train all weights).
        draw: makes a picture of (sample, prompt) for reports, a PIL image or an array [H, W, 3] of bytes, always of the
            same size (None: a plot of curves, or a heat map).
        name: of the model in reports (None: the name of the module's class).
        precision: of the network; `bf16` runs it under autocast.
        seed: for the initial weights of the adapters.
        rate: samples are waveforms [channels, time] in [-1, 1] with so many values per second (Hz): pages play them and
            show spectrograms, and rewards on sound can score them.

    Raises:
        ValueError: the module has no trainable weights, another output shape, or an output or gradient that is NaN
            at one end of its time. With a function as `condition` the output is checked when the prompts are known.
    """
    return ModulePolicy(module, shape, condition, time, predicts, lora_rank, draw, name, precision, seed, rate)


class Partly(Full):
    """All weights of a module that require a gradient; the others stay as they are."""

    def __init__(self, network: nn.Module, *args: Any):
        frozen = [each for each in network.parameters() if not each.requires_grad]
        super().__init__(network, *args)
        for each in frozen:
            each.requires_grad_(False)
        self._trained = [name for name, each in network.named_parameters() if each.requires_grad]

    def tensors(self, name: str) -> dict[str, Tensor]:
        every = super().tensors(name)
        return {key: every[key] for key in self._trained}


class Unshaped(ValueError):
    """The output of a module has another shape than its samples."""


class ModulePolicy(Policy):
    """A torch module as a Policy; see `of`. Its samples are not decoded."""

    def __init__(
        self,
        module: nn.Module,
        shape: Sequence[int],
        condition: Given,
        time: tuple[float, float],
        predicts: Predicts,
        lora_rank: int | None,
        draw: Callable[[Tensor, str], Any] | None,
        name: str | None,
        precision: Wish,
        seed: int,
        rate: int | None = None,
    ):
        _refuse(module, shape, condition, time, predicts)
        self.name, self.latent_shape = name or type(module).__name__, tuple(int(side) for side in shape)
        self._condition, self._time = condition, (float(time[0]), float(time[1]))
        self._sign = 1.0 if predicts == "noise - data" else -1.0
        first = next(each for each in module.parameters() if each.is_floating_point())
        self.device, self._dtype = first.device, first.dtype
        self.precision = resolve(precision, self.device.type)
        self.identity = {**_identity(module), "shape": list(shape), "time": list(self._time), "predicts": predicts}
        self.weights = _weights(module.eval(), lora_rank, seed)
        self.identity |= self.weights.identity()
        self._medium = _medium(self.latent_shape, plots.by(draw) if draw else None, rate)
        if condition is None or isinstance(condition, Mapping):
            self._check([""] if condition is None else list(condition)[:PROBES])

    @property
    def medium(self) -> medium.Medium:
        return self._medium

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt]) -> Condition:
        texts = [text_of(prompt) for prompt in prompts]
        if self._condition is None:
            return Condition({"unconditional": torch.zeros(len(texts), 1, device=self.device)})
        found = self._asked(texts)
        given = {f"{OWN}.{key}": value for key, value in found.items()} if isinstance(found, Mapping) else {OWN: found}
        tensors = {key: self._tensor(value) for key, value in given.items()}
        if not tensors:
            raise ValueError("condition returned an empty dict: leave out `condition`, or return at least one tensor")
        for key, tensor in tensors.items():
            if tensor.ndim == 0 or len(tensor) != len(texts):
                what = f"'{key.removeprefix(f'{OWN}.')}'" if key != OWN else "a tensor"
                raise ValueError(
                    f"condition returned {what} of shape {list(tensor.shape)} for {len(texts)} prompts: return one row "
                    "for each prompt"
                )
        return Condition(tensors)

    def _asked(self, texts: list[str]) -> Values:
        """What the user's condition says about these prompts.

        Raises:
            ValueError: a prompt has none, or the function fails.
        """
        if callable(self._condition):
            try:
                return self._condition(texts)
            except Exception as error:  # a user's function may raise anything
                raise ValueError(f"condition cannot encode the prompts {texts[:2]}: {named(error)}") from error
        assert self._condition is not None
        for text in texts:
            if text not in self._condition:
                raise ValueError(unknown("prompt", text, self._condition) + " (in `condition`)")
        rows = [self._condition[text] for text in texts]
        try:
            if isinstance(rows[0], Mapping):
                return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}
            return torch.stack([torch.as_tensor(row) for row in rows])
        except UNFIT as error:
            raise ValueError(
                f"the values of `condition` for {texts[:2]} do not make tensors of equal shape: {named(error)}"
            ) from error

    def _tensor(self, value: Any) -> Tensor:
        """On the device of the module, and of its type if these are no whole numbers."""
        try:
            found = torch.as_tensor(value, device=self.device)
        except UNFIT as error:
            raise ValueError(
                f"condition must return a tensor or a dict of tensors, not {type(value).__name__}: {named(error)}"
            ) from error
        return found.to(self._dtype) if found.is_floating_point() else found

    def empty(self) -> Condition:
        try:
            return super().empty()
        except ValueError as error:
            raise ValueError(
                f"guidance needs the condition of the empty prompt '': let `condition` have it, or use guidance 1 "
                f"({error})"
            ) from error

    def refuse(self, prompts: Sequence[Prompt]) -> None:
        super().refuse(prompts)
        self.encode(prompts)
        self._check(list(prompts)[:PROBES])

    def velocity(self, x: Tensor, t: Tensor, condition: Condition, weights: str = "policy") -> Tensor:
        gradients = graphed(x, weights)
        noise, data = self._time
        own = data + (noise - data) * t
        with torch.set_grad_enabled(gradients), self._cast(), _one_path(), self.weights.network(weights) as network:
            v = _called(network, x.to(self._dtype), own.to(self._dtype), condition)
        if not isinstance(v, Tensor) or v.shape != x.shape:
            found = list(v.shape) if isinstance(v, Tensor) else type(v).__name__
            raise Unshaped(
                f"{self.name} returned {found} for samples {list(x.shape)}: a velocity has the shape of its samples"
            )
        return self._sign * v.float()

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def decoded(self, x0: Tensor) -> Tensor:
        return x0

    def encode_images(self, images: Tensor) -> Tensor:
        raise ValueError(f"{self.name} makes samples that are no images, so it cannot encode images")

    def remarks_on(self, prompts: Sequence[Prompt]) -> list[str]:
        """A warning if the velocity at pure noise points the wrong way. In a trained flow it is noise minus a mean."""
        few = [prompts[k % len(prompts)] for k in range(64)]
        x = _noise(64, self.latent_shape).to(self.device)
        with torch.no_grad():
            v = self.velocity(x, torch.ones(64, device=self.device), self.encode(few))
        slope = ((v - v.mean(0)) * (x - x.mean(0))).sum().item() / (x - x.mean(0)).square().sum().item()
        if not slope < SLOPE:
            return []
        return [
            f"at pure noise the velocity of {self.name} points away from the noise (slope {slope:.2f}; a trained flow "
            "has about 1): check `time` and `predicts`"
        ]

    def written(self, folder: Path, about: Mapping[str, str]) -> list[Path]:
        """Write the trained module's state dict, with adapters added to its weights, as module.safetensors."""
        with self.weights.network("policy") as network:
            tensors = merged(network)
        whole_files.write(folder / FILE, save(tensors, dict(about)))
        return [folder / FILE]

    def _check(self, prompts: Sequence[Prompt]) -> None:
        """Try the module at both ends of its time.

        Raises:
            ValueError: it cannot be called, or its output or gradient is NaN or infinite.
        """
        asked = [prompts[k % len(prompts)] for k in range(PROBES)]
        condition, x = self.encode(asked), _noise(PROBES, self.latent_shape).to(self.device)
        for end, own in zip((1.0, 0.0), self._time, strict=True):
            where = f"t = {end:g}" + (f" (its own time {own:g})" if not isclose(end, own) else "")
            t = torch.full((PROBES,), end, device=self.device)
            try:
                with torch.enable_grad():
                    v = self.velocity(x, t, condition)
            except Unshaped:
                raise
            except Exception as error:  # a user's module may raise anything
                raise ValueError(
                    f"{self.name} cannot be called with x {list(x.shape)}, t [{PROBES}]{_said(condition)}: "
                    f"{named(error)}"
                ) from error
            self._refuse_infinite(v, where)
        try:
            self._medium.draw(x.cpu(), [text_of(prompt) for prompt in asked])
        except Exception as error:  # a user's function may raise anything
            raise ValueError(f"`draw` cannot make a picture of a sample: {named(error)}") from error

    def _refuse_infinite(self, v: Tensor, where: str) -> None:
        if not v.isfinite().all():
            raise ValueError(f"the velocity of {self.name} is NaN or infinite at {where}: repair the module there")
        parameters = list(self.weights.tensors("policy").values())
        found: Sequence[Tensor | None] = []
        if v.requires_grad:
            found = torch.autograd.grad(v.square().mean(), parameters, allow_unused=True)
        gradients: list[Tensor] = [each for each in found if each is not None]
        if not gradients:
            raise ValueError(f"the velocity of {self.name} does not depend on its trainable weights")
        if not all(each.isfinite().all() for each in gradients):
            raise ValueError(
                f"the gradient of a loss of {self.name} is NaN or infinite at {where}, although its velocity is "
                "finite: repair the module there"
            )

    def _cast(self) -> torch.autocast:
        return autocast(self.precision, self.device.type)


def _medium(shape: tuple[int, ...], draw: medium.Draw | None, rate: int | None) -> medium.Medium:
    """Tensors with plots; with a rate waveforms.

    Raises:
        ValueError: a waveform has another shape than [channels, time], or the rate is not a positive whole number.
    """
    if rate is None:
        return medium.samples(shape, draw or plots.plotted, plots.WIDTH)
    if len(shape) != 2:
        raise ValueError(f"a waveform has the shape (channels, time), not {shape}: leave out rate, or give that shape")
    made = medium.waveforms(*shape, rate)
    return replace(made, draw=draw) if draw else made


def merged(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module, with LoRA adapters added to its weights, under the names that it had without them."""
    found = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    for key in [key for key in found if key.endswith(".base_layer.weight")]:
        layer: Any = network.get_submodule(key.removesuffix(".base_layer.weight"))
        found[key] = found[key] + layer.get_delta_weight(layer.active_adapters[0]).detach().cpu()
    plain = {key.replace(".base_layer.", "."): tensor for key, tensor in found.items() if ".lora_" not in key}
    return {key: tensor.clone().contiguous() for key, tensor in plain.items()}  # safetensors shares no memory


def _called(network: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Any:
    given = condition.tensors
    if OWN in given:
        return network(x, t, given[OWN])
    more = {key.removeprefix(f"{OWN}."): value for key, value in given.items() if key.startswith(f"{OWN}.")}
    return network(x, t, **more)


@contextmanager
def _one_path() -> Iterator[None]:
    """Torch's attention takes a faster path without gradients, which ignores adapters and rounds differently."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _said(condition: Condition) -> str:
    own = {key: list(value.shape) for key, value in condition.tensors.items() if key.startswith(OWN)}
    return "".join(f", {key.removeprefix(OWN).removeprefix('.') or 'c'} {shape}" for key, shape in own.items())


def _noise(count: int, shape: Sequence[int]) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


def _weights(module: nn.Module, rank: int | None, seed: int) -> Full | LoRA:
    if rank is None:
        return Partly(module)
    layers = tuple(f"^{name}" for name, layer in targets.linear(module).items() if type(layer) is nn.Linear and name)
    if not layers:
        raise ValueError(f"{type(module).__name__} has no nn.Linear layer for LoRA adapters: leave out lora_rank")
    return trainable(module, Adapters(rank), usual=layers, seed=seed)[0]


def _refuse(module: Any, shape: Any, condition: Any, time: Any, predicts: str) -> None:
    """Raises ValueError if an argument of `of` is impossible."""
    if not isinstance(module, nn.Module):
        raise ValueError(f"give a torch module (torch.nn.Module), not {type(module).__name__}")
    if not any(each.requires_grad and each.is_floating_point() for each in module.parameters()):
        raise ValueError(f"{type(module).__name__} has no trainable weights: give a module with some that require_grad")
    if not isinstance(shape, Sequence) or not shape or not all(isinstance(side, int) and side > 0 for side in shape):
        raise ValueError(f"shape must be the positive sides of one sample, such as (8, 2), not {shape}")
    if condition is not None and not callable(condition) and not (isinstance(condition, Mapping) and condition):
        raise ValueError(
            "condition must be a function of a list of prompts, or a mapping from prompts to tensors, not "
            f"{type(condition).__name__}"
        )
    whole = isinstance(time, Sequence) and len(time) == 2 and all(isinstance(end, int | float) for end in time)
    if not (whole and all(map(isfinite, time)) and time[0] != time[1]):
        raise ValueError(f"time must be the module's time at noise and at data, such as (1, 0) or (0, 1), not {time}")
    one_of("velocity to predict", predicts, get_args(Predicts))


def _identity(module: nn.Module) -> dict[str, Any]:
    """Architecture and weights of a module, in short hashes."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(module))
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {
        "family": "module",
        "base": found.hexdigest()[:16],
        "module": type(module).__qualname__,
        "architecture": hashlib.sha256(text.encode()).hexdigest()[:16],
    }
