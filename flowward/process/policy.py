"""The interface of a model to the rest of the library: it returns velocities in flowward's convention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..prompts import Prompt, refuse_numbers
from ..system.precision import Precision
from . import medium
from .distilled import Sign
from .flow import grid
from .medium import Medium

UNTIL = "until"  # tensor of a condition: the end times of jumps, [N] in [0, t]

MIXTURE = "mixture"  # [N, K] the weights of K adapters in each row, if they are not the model's default


@dataclass(frozen=True)
class Condition:
    """Encoded prompts: named tensors [N, ...], one row per prompt, and what else belongs to a row."""

    tensors: dict[str, Tensor]

    def until(self, s: Tensor) -> Condition:
        """These rows with the end times s [N] of jumps from x_t to x_s. A model with two times reads them.

        Without end times it returns the velocity at t, as if s were t.
        """
        return Condition({**self.tensors, UNTIL: s})

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: Tensor | slice) -> Condition:
        return Condition({name: tensor[index] for name, tensor in self.tensors.items()})

    def beside(self, rows: Mapping[str, Tensor]) -> Condition:
        """The same with more tensors [N, ...], or others in the place of those with their names."""
        return Condition({**self.tensors, **rows})

    def cat(self, other: Condition) -> Condition:
        """Concatenate the rows of both; shorter text is padded with zeros."""
        return Condition({name: _stacked(tensor, other.tensors[name]) for name, tensor in self.tensors.items()})


def _stacked(a: Tensor, b: Tensor) -> Tensor:
    if a.ndim > 1 and a.shape[1] != b.shape[1]:
        longest = max(a.shape[1], b.shape[1])
        a, b = (
            torch.cat([each, each.new_zeros(len(each), longest - each.shape[1], *each.shape[2:])], 1) for each in (a, b)
        )
    return torch.cat([a, b])


Velocity = Callable[[Tensor, Tensor, Condition], Tensor]  # x [B, ...], t [B], condition of B rows -> v [B, ...]
Product = Callable[[Tensor, Tensor, Condition, Tensor], tuple[Tensor, Tensor]]
"""x [B, ...], t [B], condition of B rows, vector a [B, ...] -> v [B, ...] and J' a [B, ...], J = dv/dx, as constants"""
Wording = Mapping[str, Tensor]  # texts to put before a prompt, each with its weight in each of B scores
Slope = Callable[[Tensor, Condition, Wording], tuple[Tensor, Tensor]]
"""x0 [B, ...], condition of B rows, wording -> score [B] and d score / d x0 [B, ...], as constants"""


class Weights(Protocol):
    """`policy`, its named copies, and `reference`; models/weights.py implements two kinds."""

    kind: str  # stored in checkpoints: weights of one kind cannot be loaded as another
    own_reference: bool  # whether `reference` is a copy that checkpoints store
    collective: bool  # whether every pass through the network needs all processes, which hold parts of it
    half: Any  # the half precision in which the network computes without autocast, as a torch.dtype; or None
    stay: bool  # inside `still`, weights lie where they lay before
    palette: tuple[str, ...]  # the objectives of its adapters, which are mixed in every row; () if there is one model

    mixture: Any  # of a palette: how, as a models.mixture.Mixture; otherwise None

    def meet(self, rows: Mapping[str, Tensor]) -> None: ...  # what belongs to the rows of the next pass
    def add(self, name: str) -> None: ...  # copy the current `policy` under this name
    def hold(self, name: str, values: dict[str, Tensor]) -> None: ...  # frozen weights: a copy that nothing follows
    def networks(self) -> Sequence[Any]: ...  # all that hold these weights
    def network(self, name: str) -> AbstractContextManager[Any]: ...  # the network with these weights active
    def still(self, name: str) -> AbstractContextManager[None]: ...  # only these weights are used, without gradients
    def tensors(self, name: str) -> dict[str, Tensor]: ...  # the live tensors of `policy` or of a copy
    def follow(self, name: str, decay: float) -> None: ...  # copy <- decay * copy + (1 - decay) * policy
    def same(self, name: str) -> bool: ...  # whether a copy equals the current policy bit for bit
    def load(self, name: str, values: dict[str, Tensor]) -> None: ...  # overwrite `policy` or a copy


Loader = tuple[str, Mapping[str, Any]]
"""a method of a diffusers pipeline that loads a LoRA from a folder, and its options"""

LOADER: Loader = ("load_lora_weights", {})


class Policy(ABC):
    """A flow model with the weights that training needs: `policy`, its named copies, and `reference`."""

    name: str  # as passed to `load`
    identity: dict[str, Any]  # must match between model and checkpoint: architecture, kind of weights, rank
    latent_shape: tuple[int, ...]  # of one sample
    image_size: tuple[int, int]  # height and width of a decoded image, if samples are images or videos
    weights: Weights
    precision: Precision
    device: torch.device
    loading: Any = None  # the options it was loaded with (models.loading.Loading), if any
    sources: range = range(1)  # how many source images a prompt may have
    two_times: bool = False  # it reads `until`: its velocity is the average over a jump
    inputs: str = "prompt=prompt"  # of its own pipeline, as code on model cards
    lora_loader: Loader = LOADER  # the method of its own pipeline that loads exported adapters
    lora_first: tuple[str, ...] = ()  # lines of code that this method needs before
    notes: tuple[str, ...] = ()  # about its weights, printed before a run
    repeats: bool = False  # passes of one batch size are faster, inside `repeated`
    evaluated: int = 0  # network evaluations through `under` so far, in samples
    trained: int = 0  # those among them whose gradient flows

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt]) -> Condition:
        """Encode prompts, one row each (call it once per distinct prompt).

        Raises:
            ValueError: the model cannot encode a prompt.
        """

    @property
    def edits(self) -> bool:
        """Whether it is an editing model: every prompt has a source image."""
        return 0 not in self.sources

    def unlike(self, identity: Mapping[str, Any]) -> list[str]:
        """Names of the entries in which a checkpoint's identity differs; entries missing in it are not compared."""
        if not identity:
            return ["identity"]
        return [key for key, value in identity.items() if self.identity.get(key) != value]

    @property
    def medium(self) -> Medium:
        """What a decoded sample is: by default an image of `image_size`, or a video if latents have four axes."""
        return medium.images(*self.image_size, self.latent_shape[1] if len(self.latent_shape) == 4 else None)

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Prepare to encode these prompts, and no others, many times."""
        return

    def empty(self) -> Condition:
        """The encoded empty prompt, one row."""
        return self.encode([""])

    def blank(self) -> Callable[[Condition], Condition]:
        """Return a function that replaces the prompts of a condition by empty ones; all else of a row stays."""
        empty = self.empty()
        return lambda condition: condition.beside(empty[torch.zeros(len(condition), dtype=torch.long)].tensors)

    def distilled(self) -> tuple[Sign, ...]:
        """Signs that the model is step-distilled, the surest first; none for a flow that follows its velocity."""
        return ()

    def times(self, steps: int) -> tuple[float, ...]:
        """The model's own time grid, [steps + 1] from 1 to 0."""
        return tuple(grid(steps, 1.0, "linear").tolist())

    def refuse(self, prompts: Sequence[Prompt]) -> None:
        """Raise ValueError if the model cannot read a prompt; cheap enough to call before a run starts."""
        refuse_numbers(self.name, self.sources, prompts)

    @abstractmethod
    def velocity(self, x: Tensor, t: Tensor, condition: Condition, weights: str = "policy") -> Tensor:
        """v = E[eps - x0 | x_t], float32 [B, ...], from x [B, ...] and t [B] in [0, 1], under the named weights.

        A model with two times returns the average velocity of the jump that ends at `condition`'s `until`, if it has
        one: x_s = x_t - (t - s) v.

        Gradients flow to the weights of `policy` (unless the caller disables them) and never to other weights. They
        flow to an x that requires them, under all weights.
        """

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """Decode finished samples [B, ...] to images, float32 [B, 3, H, W] in [0, 1], or to what `medium` says."""

    def repeated(self) -> AbstractContextManager[None]:
        """Inside, passes without gradients have few batch sizes, which come again and again."""
        return nullcontext()

    def decoded(self, x0: Tensor) -> Tensor:
        """The same images, with a graph that leads to x0, if the model's decoder has a gradient here.

        Raises:
            ValueError: it has none.
        """
        raise ValueError(f"{self.name} has no decoder with a gradient, which this algorithm needs; use another model")

    def pullback(self, x0: Tensor, back: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """The gradient of a function of images with respect to samples: the decoder's vector-Jacobian product.

        Args:
            x0: samples [B, ...].
            back: images [B, 3, H, W] -> (values [B], d value / d image [B, 3, H, W]).

        Returns:
            the values [B], and d value / d x0 [B, ...]; nothing leads to the weights of any network.

        Raises:
            ValueError: see `decoded`.
        """
        with torch.enable_grad():
            x = x0.detach().requires_grad_()
            images = self.decoded(x)
        values, slope = back(images.detach())
        (found,) = torch.autograd.grad(images, x, slope.to(images))
        return values.to(x0.device), found

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images float32 [B, 3, H, W] in [0, 1], on any device, to samples [B, ...].

        Videos are [B, F, 3, H, W]. `decode` is the inverse, up to compression loss.

        Raises:
            ValueError: the samples of this model are no images.
        """

    def under(self, weights: str, guidance: float = 1.0) -> Velocity:
        """The velocity under one set of weights, as a plain function.

        With classifier-free guidance (Ho and Salimans, 2022, arXiv:2207.12598) it returns `guided(v, v_0, guidance)`,
        by default v_0 + guidance (v - v_0). v_0 is the velocity without a prompt. This doubles the cost.
        """
        bare = self.counted(lambda x, t, condition: self.velocity(x, t, condition, weights), weights)
        if guidance == 1:
            return bare
        blank = self.blank()

        def guided(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            both = condition.cat(blank(condition))
            v, v_0 = bare(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
            return self.guided(v, v_0, guidance)

        return guided

    def counted(self, velocity: Velocity, weights: str) -> Velocity:
        """The velocity under these weights; each call is added to `evaluated`, and to `trained` if gradients flow."""

        def counting(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            self.evaluated += len(x)
            self.trained += len(x) * graphed(x, weights)
            return velocity(x, t, condition)

        return counting

    def product(self, weights: str, guidance: float = 1.0) -> Product:
        """The vector-Jacobian product of the velocity under one set of weights, as a plain function."""
        velocity = self.under(weights, guidance)

        def product(x: Tensor, t: Tensor, condition: Condition, vector: Tensor) -> tuple[Tensor, Tensor]:
            with self.weights.still(weights), torch.enable_grad():  # still: a checkpoint is run again in the backward
                x = x.detach().requires_grad_()
                v = velocity(x, t, condition)
                (found,) = torch.autograd.grad(v, x, vector.to(v))
            return v.detach(), found

        return product

    def written(self, folder: Path, about: Mapping[str, str]) -> list[Path]:
        """Write the trained weights in the model's own format; no files: they are written for diffusers.

        Args:
            about: facts about the training, for the header of the file.
        """
        return []

    def evaluations(self, guidance: float) -> int:
        """Network evaluations per sampling step."""
        return 1 if guidance == 1 else 2

    def remark(self, guidance: float) -> str | None:
        """A warning if the model was made for another guidance scale."""
        return None

    def remarks_on(self, prompts: Sequence[Prompt]) -> list[str]:
        """Warnings about prompts that the model reads only in part, or cannot tell apart. Call it before `prepare`."""
        return []

    def arguments(self, scale: float) -> dict[str, Any]:
        """Arguments of the model's own pipeline for samples of this size at this guidance scale."""
        return {"guidance_scale": scale}

    def guided(self, v: Tensor, v_0: Tensor, scale: float) -> Tensor:
        """Combine the velocities with (v) and without (v_0) a prompt; scale 1 gives v, scale 0 gives v_0."""
        return v_0 + scale * (v - v_0)


def anchor_of(name: str) -> tuple[str, str]:
    """The weights of an anchor, and the place where they are evaluated (empty: the point itself).

    For example `old ahead` is `old` at the place `ahead` of a point (see points.Points.place).
    """
    weights, _, place = name.partition(" ")
    return weights, place


def graphed(x: Tensor, weights: str) -> bool:
    """Whether a velocity keeps its graph: gradients flow to the weights of `policy`, and to an x that requires them."""
    return torch.is_grad_enabled() and (weights == "policy" or x.requires_grad)


class Evaluable(Protocol):
    """Points at which a velocity is evaluated; see points.Points."""

    def place(self, name: str) -> tuple[Tensor, Tensor, Condition]: ...  # x, t and condition there

    @property
    def x_t(self) -> Tensor: ...
    @property
    def t(self) -> Tensor: ...
    @property
    def condition(self) -> Condition: ...
    @property
    def known(self) -> Mapping[str, Tensor]: ...


def _no_slope(x0: Tensor, condition: Condition, wording: Wording) -> tuple[Tensor, Tensor]:
    raise ValueError("this loss needs the gradient of a reward, and these models have none: give them a `slope`")


def _no_product(x: Tensor, t: Tensor, condition: Condition, vector: Tensor) -> tuple[Tensor, Tensor]:
    raise ValueError("this loss needs products with the reference's Jacobian: give its models a `product`")


PLAIN: Wording = {}


class Models:
    """The functions that a loss may call. Of the velocities, that of `policy` alone carries gradients."""

    slope: Slope = staticmethod(_no_slope)  # of the run's reward
    product: Product = staticmethod(_no_product)  # with the Jacobian of `reference`

    def __init__(
        self, policy: Velocity, old: Velocity | None = None, reference: Velocity | None = None, **others: Velocity
    ):
        given = {"policy": policy, "old": old, "reference": reference, **others}
        self.velocities = {name: each for name, each in given.items() if each is not None}

    @classmethod
    def of(cls, policy: Policy, guidance: Mapping[str, float] | None = None, **others: Velocity) -> Models:
        """Build them from a policy; `guidance` maps names to scales other than 1."""
        scales = guidance or {}
        return cls(*(policy.under(name, scales.get(name, 1.0)) for name in ("policy", "old", "reference")), **others)

    def differentiating(self, slope: Slope, product: Product) -> Models:
        """The same velocities, with the gradient of a reward and products with the reference's Jacobian."""
        made = Models(**self.velocities)
        made.slope, made.product = slope, product
        return made

    def at(self, name: str, points: Evaluable) -> Tensor:
        """v [B, ...] at training points: the recorded velocity if there is one, otherwise evaluated now.

        Args:
            name: of weights, or of an anchor at another place than the point itself (see `anchor_of`).
        """
        if name in points.known:
            return points.known[name]
        weights, place = anchor_of(name)
        return self.velocities[weights](*points.place(place))


def row_by_row(policy: Policy, row: str, weights: Sequence[str], guidance: Sequence[float]) -> Velocity:
    """A velocity under the weights that each row chooses, so that a row is evaluated once, whatever their number.

    If every pass needs all processes (`Weights.collective`), all weights are evaluated at one row at least.

    Args:
        row: the tensor [N] of the condition that has the number of each row's weights.
        weights: their names, by number.
        guidance: the guidance scale of each.
    """
    each = [policy.under(name, scale) for name, scale in zip(weights, guidance, strict=True)]

    def velocity(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        chosen, found = condition.tensors[row], torch.zeros_like(x, dtype=torch.float32)
        for number, name in enumerate(weights):
            mine = (chosen == number).nonzero().flatten()
            if len(rows := mine if len(mine) or not policy.weights.collective else chosen.new_zeros(1)):
                with policy.weights.still(name):
                    v = each[number](x[rows], t[rows], condition[rows])
                found[mine] = v[: len(mine)].to(found.dtype)
        return found

    return velocity
