"""A diffusers pipeline as a Policy. To load one see pipelines.py; what differs between models is in families/."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..process.distilled import Sign, of_names
from ..process.medium import Medium
from ..process.policy import UNTIL, Condition, Policy, Velocity, graphed
from ..prompts import SOURCE, SOURCES, Prompt, prompt_of, sources_of
from ..prompts.pictures import READING
from ..system import memory
from ..system.precision import Precision, autocast
from . import reading
from .adapters import Adapters
from .cache import PromptCache, address, cache_folder
from .compiling import Graphs, compile_all
from .families import Family
from .families.edits import passes
from .lora import trainable
from .text_encoders import TextEncoders, digest
from .weights import WHOLE, Placement

CACHE = cache_folder() / "prompts"
NOTHING = "\0"  # cache key of the empty prompt
EMPTY = "empty_"  # prefix for the tensors of an edit without its text
ENCODED_AT_ONCE = 32


class DiffusersPolicy(Policy):
    """A diffusers pipeline. Everything that differs between models is in its family.

    Text encoders may be `unread`: they are loaded when a prompt that is not in the cache must be encoded.
    """

    def __init__(
        self,
        name: str,
        family: Family,
        adapters: Adapters | int | None,
        precision: Precision,
        seed: int = 0,
        unread: TextEncoders | None = None,
        placement: Placement = WHOLE,
    ):
        self.name, self.family, self.precision, self.sources = name, family, precision, family.sources
        self.two_times, self.inputs = family.two_times, family.inputs
        self.lora_loader, self.lora_first = family.lora_loader, family.lora_first
        pipe = family.pipe
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False).eval()
        transformer = family.network
        self.device = next(transformer.parameters()).device
        self.latent_shape, self.image_size = family.shape, (family.height, family.width)
        described = json.loads(pipe.transformer.to_json_string())
        architecture = {key: value for key, value in described.items() if not key.startswith("_")}
        self.identity = {
            "family": type(family).__name__,
            "base": placement.base or self._fingerprint(transformer),
            "transformer": architecture,
            "shape": list(family.shape),
        }
        self.weights, self.notes = trainable(
            transformer, adapters, family.convert_lora, family.transformers, family.targets, seed, placement
        )
        if self.weights.palette and len(family.transformers) > 1:
            raise ValueError(
                f"{name} has {len(family.transformers)} transformers that share the rows of a pass, so rows cannot mix "
                "adapters: leave out --palette"
            )
        self.identity |= self.weights.identity()
        parts = [(name, part) for name, part in pipe.components.items() if part is not None]
        self._unread = unread
        readers = ("text_encoder", "image_encoder")
        encoders = [self._fingerprint(part) for name, part in parts if name.startswith(readers)]
        encoders += unread.fingerprints() if unread else []
        encoders += [self._fingerprint(getattr(pipe, name)) for name in family.encoders]
        self.identity |= {"text_encoders": encoders, "vae": self._fingerprint(pipe.vae)}
        self._reader: list[Any] = [*encoders, *(unread.configs() if unread else [])]
        self._reader += [spelling(part) for name, part in parts if name.startswith(("tokenizer", "processor"))]
        self._reader += family.reads
        if family.sources[-1]:  # images are read too, at one size
            known = ("transformer", "vae", "text_encoder")
            networks = [part for name, part in parts if isinstance(part, nn.Module) and not name.startswith(known)]
            self._reader += [self.identity["vae"], *map(self._fingerprint, networks), *family.shape, READING, SOURCES]
        self._cache: PromptCache | None = None
        self._graphs: Graphs | None = None

    def replay(self, graphs: Graphs) -> None:
        """Compile the blocks, so that passes without gradients inside `repeated` are CUDA graphs."""
        self._graphs, self.repeats, self.weights.stay = graphs, True, True
        compile_all(self.weights, graphs.compile)

    def repeated(self) -> AbstractContextManager[None]:
        return self._graphs.replayed() if self._graphs and self.weights.stay else nullcontext()

    def _fingerprint(self, network: torch.nn.Module) -> str:
        return fingerprint(network)

    @torch.no_grad()
    def prepare(self, prompts: Sequence[Prompt], folder: Path | None = None) -> None:
        """Encode new prompts into the cache on disk, then free the text encoders.

        If all prompts are in the cache, text encoders are not loaded at all.

        Raises:
            ValueError: the cache is damaged, or the text encoders cannot be read.
            OSError: the cache cannot be written.
        """
        family, dtype = self.family, torch.bfloat16 if self.precision == "bf16" else torch.float32
        made_by = json.dumps(
            [self.identity["family"], self._reader, family.text_tokens, self.precision, diffusers.__version__]
        )
        cache = PromptCache((folder or CACHE) / address(made_by)[:16], dtype)
        rest = cache.missing([*prompts, *self._without_text(prompts)])
        if nothing := cache.missing([] if family.reads_sources else [NOTHING]):
            self.read_text_encoders()
            cache.add(nothing, family.empty())
        if rest:
            self.read_text_encoders()
        for start in range(0, len(rest), ENCODED_AT_ONCE):
            part = rest[start : start + ENCODED_AT_ONCE]
            with memory.explained(f"while encoding {len(part)} prompts at once next to the whole model"):
                cache.add(part, family.encode(part))
        self._cache = cache
        self._let_go()

    def _let_go(self) -> None:
        pipe = self.family.pipe
        for name in [name for name in pipe.components if name.startswith(("text_encoder", "tokenizer"))]:
            setattr(pipe, name, None)

    def read_text_encoders(self) -> None:
        """Load the text encoders into the pipeline, if it does not have them.

        Raises:
            ValueError: they cannot be read, or they were freed and have no files.
        """
        pipe = self.family.pipe
        if any(part is not None for name, part in pipe.components.items() if name.startswith("text_encoder")):
            return
        if not self._unread:
            raise ValueError("the text encoders have been freed; prepare all prompts in one call")
        self._unread.read_into(pipe)

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt]) -> Condition:
        self.refuse(prompts)
        found = self._rows(prompts)
        if empty := self._without_text(prompts):
            more = self._rows(empty)
            found |= {EMPTY + name: tensor for name, tensor in more.items() if name not in (SOURCE, SOURCES)}
        return self._on_device(found)

    def _rows(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        if self._cache is None:
            self.read_text_encoders()
            return in_float32(self.family.encode(list(prompts)))
        if missing := self._cache.missing(prompts):
            raise ValueError(f"the text encoders have been freed, but '{missing[0]}' is not encoded; prepare it first")
        return self._cache.rows(prompts)

    def _without_text(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Prompts without their text, for classifier-free guidance, if the text encoder sees their sources too."""
        if self.family.guidance != "classifier-free" or not self.family.reads_sources:
            return []
        return [prompt_of(self.family.nothing, sources_of(prompt)) for prompt in prompts]

    @property
    def medium(self) -> Medium:
        return self.family.medium

    def blank(self) -> Callable[[Condition], Condition]:
        if zeros := self.family.emptied:
            return lambda rows: rows.beside({name: torch.zeros_like(rows.tensors[name]) for name in zeros})
        if not self.family.reads_sources:
            return super().blank()
        return lambda condition: Condition(
            {name: condition.tensors.get(EMPTY + name, tensor) for name, tensor in condition.tensors.items()}
        )

    @torch.no_grad()
    def empty(self) -> Condition:
        if self._cache is not None:
            return self._on_device(self._cache.rows([NOTHING]))
        self.read_text_encoders()
        return self._on_device(self.family.empty())

    def _on_device(self, tensors: dict[str, Tensor]) -> Condition:
        return Condition({name: tensor.to(self.device) for name, tensor in tensors.items()})

    def distilled(self) -> tuple[Sign, ...]:
        names = [(self.name, "the model")]
        if start := getattr(self.weights, "start", None):
            names += [(str(start.file), "the LoRA"), (str(start.file.parent), "the LoRA's folder")]
        return (*self.family.distilled(), *of_names(names))

    def times(self, steps: int) -> tuple[float, ...]:
        return self.family.times(steps)

    def refuse(self, prompts: Sequence[Prompt]) -> None:
        """Also if weights are split among processes, which then must make the same passes, and prompts are unlike."""
        super().refuse(prompts)
        numbers = sorted({len(sources_of(prompt)) for prompt in prompts})
        if len(numbers) > 1 and self.weights.collective:
            raise ValueError(
                f"some prompts have {numbers[0]} source images and some {numbers[-1]}, which one run cannot mix if its "
                "weights are split among processes: leave out --shard, or use prompts with equally many sources"
            )

    def velocity(self, x: Tensor, t: Tensor, condition: Condition, weights: str = "policy") -> Tensor:
        return self._velocity(x, t, condition, weights, 1.0)

    def _velocity(self, x: Tensor, t: Tensor, condition: Condition, weights: str, guidance: float) -> Tensor:
        """One pass through the network for each number of sources in the batch, so mostly one in all."""
        parts = passes(condition.tensors, not self.family.by_length)
        if len(parts) == 1:
            return self._pass(x, t, parts[0][1], weights, guidance)
        found = [self._pass(x[own], t[own], rows, weights, guidance) for own, rows in parts]
        return torch.cat(found)[torch.cat([own for own, _ in parts]).argsort()]

    def _pass(self, x: Tensor, t: Tensor, rows: dict[str, Tensor], weights: str, guidance: float) -> Tensor:
        gradients = graphed(x, weights)
        kept = not self.weights.collective  # gathered weights would stay until the pass ends
        half = self.weights.half
        cast = nullcontext() if half else self._cast(kept)
        with torch.set_grad_enabled(gradients), cast, self.weights.network(weights) as network:
            self.weights.meet(rows)
            if half:  # as its own pipeline does; times stay exact
                x, rows = x.to(half), {name: _rounded(name, each, half) for name, each in rows.items()}
            return self.family.velocity(network, x, t, rows, guidance).float()

    def under(self, weights: str, guidance: float = 1.0) -> Velocity:
        """Velocities with the guidance of this model: classifier-free, an input of the network, or none.

        Raises:
            ValueError: the model was distilled without guidance, and the scale is not 1.
        """
        match self.family.guidance:
            case "classifier-free":
                return super().under(weights, guidance)
            case "embedded":
                return self.counted(lambda x, t, condition: self._velocity(x, t, condition, weights, guidance), weights)
            case "none":
                if guidance != 1:
                    raise ValueError(
                        f"{self.name} is distilled and has no guidance; leave the scale at 1 "
                        "(--guidance 1, or --algorithm.rollout.guidance 1 in training)"
                    )
                return super().under(weights)

    def evaluations(self, guidance: float) -> int:
        return super().evaluations(guidance) if self.family.guidance == "classifier-free" else 1

    def remark(self, guidance: float) -> str | None:
        usual = self.family.published
        if self.family.guidance != "embedded" or usual in (None, guidance):
            return None
        return f"{self.name} was published with guidance {usual:g}; you use {guidance:g}"

    def remarks_on(self, prompts: Sequence[Prompt]) -> list[str]:
        return reading.remarks([each for each in self.family.readers() if each.tokenizer is not None], prompts)

    def arguments(self, scale: float) -> dict[str, Any]:
        return {**self.family.sized_by(), **self.family.guided_by(scale)}

    def guided(self, v: Tensor, v_0: Tensor, scale: float) -> Tensor:
        return self.family.guided(v, v_0, scale)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        with self._cast():
            images = self.family.decode(x0)
        return self._bounded(images)

    def _bounded(self, decoded: Tensor) -> Tensor:
        """From the autoencoder's [-1, 1] to the bounds of the medium."""
        low, high = self.medium.bounds
        return (decoded.float() * ((high - low) / 2) + (high + low) / 2).clamp(low, high)

    def decoded(self, x0: Tensor) -> Tensor:
        if len(self.latent_shape) == 4:
            raise ValueError(
                f"{self.name} makes videos, whose decoder needs too much memory for a gradient; use an image model, or "
                "an algorithm that needs scores only, such as advantageflow"
            )
        with self._cast():
            parts = [_checkpointed(self.family.decode, each) for each in x0.split(1)]
        return self._bounded(torch.cat(parts))

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Encode images one by one: an autoencoder needs much memory, and there may be a whole iteration of them."""
        low, high = self.medium.bounds
        half, middle = (high - low) / 2, (high + low) / 2
        with self._cast():
            found = [
                self.family.encode_images((image.to(self.device).float() - middle) / half) for image in images.split(1)
            ]
        return torch.cat(found).float()

    def _cast(self, kept: bool = True) -> torch.autocast:
        return autocast(self.precision, self.device.type, kept)


def in_float32(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As the cache of prompts gives them."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in rows.items()}


def _rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() and name != UNTIL else tensor


def _checkpointed(decode: Callable[[Tensor], Tensor], x0: Tensor) -> Tensor:
    """decode(x0), whose activations are computed again in the backward pass: those of a decoder take gigabytes."""
    found: Tensor = torch.utils.checkpoint.checkpoint(decode, x0, use_reentrant=False)
    return found


def fingerprint(network: torch.nn.Module) -> str:
    """The digest of a network's weights (see text_encoders.py), the same in every precision."""
    state = network.state_dict()
    return digest((name, tuple(tensor.shape), _plain(tensor)) for name, tensor in state.items())


def _plain(tensor: Any) -> Tensor:
    """torchao stores 8-bit weights in a tensor subclass."""
    same, eights = tensor, is_traceable_wrapper_subclass(tensor)
    plain: Tensor = same.dequantize() if eights else same
    return plain


def spelling(tokenizer: Any) -> list[Any]:
    """What a tokenizer does to a test sentence, to detect a changed vocabulary or chat template."""
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor of texts with images
    said = tokenizer("A photo of 12 red foxes, seen from above; it says 'naïve'.")["input_ids"]
    return [len(tokenizer), tokenizer.model_max_length, tokenizer.padding_side, tokenizer.chat_template, said]
