"""A causal language model of transformers as the planner: sampling with a KV cache, and log-probabilities for training.

The distribution that is sampled is the one that is trained: softmax(logits / temperature), nothing else (no top-p, no
penalties). Tokens are kept as they were sampled; their text is never tokenised again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..models.adapters import Adapters
from ..models.lora import trainable
from ..process.policy import Weights
from ..system.precision import Precision, Wish, autocast, resolve
from . import planners
from .episode import Messages, Said

if TYPE_CHECKING:
    from .points import Decisions

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""layers that get adapters: attention and feed-forward (Llama, Qwen, Mistral and others name them so)"""
NONE = -1  # in place of a token id: padding
REMEMBERED = 4096  # prompts whose token ids are kept, and answers whose texts are
SHRINK = 0.75  # part of the rows that go on, below which finished ones leave the batch


@dataclass(frozen=True)
class Prompts:
    """The messages of a planner as token ids, with a limit."""

    language: Language
    room: float  # most token ids of a prompt

    def encode(self, messages: Messages) -> tuple[int, ...]:
        return self.language.encode(messages)


class Language:
    """A chat model with the weights that training needs."""

    weights: Weights
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        network: Any,
        tokenizer: Any,
        adapters: Adapters | int | None = None,
        precision: Precision = "float32",
        seed: int = 0,
        ends: Sequence[int] = (),
    ):
        """`ends` are the token ids that end an answer.

        Raises:
            ValueError: the tokenizer has no chat template, or the adapters do not fit.
        """
        if getattr(tokenizer, "chat_template", None) is None:
            raise ValueError(f"{name} has no chat template: use an instruction-tuned model")
        self.name, self.tokenizer, self.precision = name, tokenizer, precision
        self.base = planners.folder_of(name)  # what adapters are for; `name` may come to say which weights these are
        self.ends = tuple(dict.fromkeys(ends))
        described = json.loads(network.config.to_json_string())
        architecture = {key: value for key, value in described.items() if key not in VOLATILE and key[0] != "_"}
        self.context: int = getattr(network.config, "max_position_embeddings", None) or 1 << 20
        self.identity = {"family": network.config.model_type, "base": fingerprint(network), "network": architecture}
        self.weights, self.notes = trainable(network, adapters, usual=TARGETS, seed=seed)
        self.identity |= self.weights.identity()
        self._folds_system = not self._takes_system()
        # episodes of a question begin with the same prompt, and short answers come again
        self._encoded, self._decoded = lru_cache(REMEMBERED)(self._encode), lru_cache(REMEMBERED)(self._decode)

    @classmethod
    def load(
        cls,
        name: str,
        adapters: Adapters | int | None = None,
        precision: Wish = "auto",
        seed: int = 0,
        device: str = "auto",
        revision: str | None = None,
    ) -> Language:
        """Load `world`, a folder, or owner/name on the hub. A folder may hold one GGUF file (transformers reads it), or
        a LoRA adapter, which is merged into its model.

        Raises:
            ValueError: it cannot be found or read, or is not a causal language model with a chat template.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        from ..models import hub

        planners.refuse(name)
        hub.quiet()
        adapter = planners.base_of(Path(name))
        where = adapter or planners.folder_of(name)
        chosen = hub.device(device)
        how = resolve(precision, chosen)
        stored = torch.bfloat16 if how == "bf16" and chosen != "cpu" and adapters is not None else torch.float32
        more: dict[str, Any] = {"revision": revision} if revision else {}
        if Path(where).is_dir() and len(packed := [*Path(where).glob("*.gguf")]) == 1:
            more["gguf_file"] = packed[0].name
        with hub.explained(name), hub.whole():
            tokenizer = AutoTokenizer.from_pretrained(where, **more)  # nosec B615  # the user's choice
            network = AutoModelForCausalLM.from_pretrained(where, dtype=stored, **more)  # nosec B615
            if adapter:
                from ..models.adapted import merged  # peft loads slowly

                network = merged(network, name)
        network.eval()
        generation = network.generation_config or GenerationConfig()
        ends = generation.eos_token_id
        ends = [ends] if isinstance(ends, int) else list(ends or ())
        if tokenizer.eos_token_id is not None:
            ends.append(tokenizer.eos_token_id)
        return cls(name, network.to(chosen), tokenizer, adapters, how, seed, ends)

    @cached_property
    def device(self) -> torch.device:
        return next(iter(self.weights.tensors("policy").values())).device

    def unlike(self, identity: Mapping[str, Any]) -> list[str]:
        """Names of the entries in which a checkpoint's identity differs."""
        if not identity:
            return ["identity"]
        return [key for key, value in identity.items() if self.identity.get(key) != value]

    def reader(self, max_tokens: int, max_prompt: int | None = None) -> Prompts:
        """What encodes prompts, with room for an answer of so many tokens.

        Raises:
            ValueError: the model's context has no room for both.
        """
        if (room := self.context - max_tokens) < 1:
            raise ValueError(
                f"{self.name} has a context of {self.context} tokens, so there is no room for prompts beside answers "
                f"of {max_tokens}: lower --max-tokens"
            )
        return Prompts(self, min(room, max_prompt or room))

    def _takes_system(self) -> bool:
        """Whether the chat template has a place for a system message."""
        try:
            said = self._templated((("system", "PQRS"), ("user", "a")))
        except Exception:  # a template may raise anything
            return False
        return "PQRS" in said

    def _templated(self, messages: Messages) -> str:
        chat = [{"role": role, "content": content} for role, content in messages]
        text: str = self.tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return text

    def encode(self, messages: Messages) -> tuple[int, ...]:
        """Token ids of messages in the model's chat template, ready for an answer.

        A system message goes before the user's text if the template has no place for it.
        """
        return self._encoded(messages)

    def _encode(self, messages: Messages) -> tuple[int, ...]:
        if self._folds_system and messages and messages[0][0] == "system":
            (_, system), (role, first), *rest = messages
            messages = ((role, f"{system}\n\n{first}"), *rest)
        text = self._templated(messages)  # which has the special tokens
        if self.tokenizer.is_fast:  # without what transformers wraps around it, which takes three times as long
            return tuple(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self._decoded(tuple(ids))

    def _decode(self, ids: tuple[int, ...]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text.strip()

    @torch.no_grad()
    def sample(
        self,
        weights: str,
        prompts: Sequence[Sequence[int]],
        uniforms: Sequence[Tensor] | None,
        temperature: float,
        max_tokens: int,
    ) -> list[Said]:
        """One answer to each of B prompts, by inverse CDF: token k of answer i is that at uniforms[i][k].

        Args:
            prompts: token ids of each.
            uniforms: B tensors [max_tokens] in [0, 1), float64; None: the likeliest tokens.
            temperature: of the softmax; with `uniforms` it must be above 0.
        """
        found = [Partial() for _ in prompts]
        with autocast(self.precision, self.device.type), self.weights.network(weights) as network:
            for rows, token, log_p in self._tokens(network, prompts, uniforms, temperature, max_tokens):
                for row, own, value in zip(rows, token, log_p, strict=True):
                    found[row].ids.append(own)
                    found[row].log_probs.append(value)
        return [
            Said(self.decode(each.ids), tuple(each.ids), tuple(each.log_probs), each.ids[-1] in self.ends)
            for each in found
        ]

    def _tokens(
        self,
        network: Any,
        prompts: Sequence[Sequence[int]],
        uniforms: Sequence[Tensor] | None,
        temperature: float,
        max_tokens: int,
    ) -> Iterator[tuple[list[int], list[int], list[float]]]:
        """For each step: rows that go on, their tokens, and log-probabilities of these."""
        from transformers import DynamicCache

        device, wide = self.device, max(map(len, prompts))
        ids = torch.tensor([[NONE] * (wide - len(own)) + list(own) for own in prompts], device=device)
        draws = None if uniforms is None else torch.stack(list(uniforms)).to(device)
        rows, going = torch.arange(len(prompts), device=device), torch.ones(len(prompts), dtype=torch.bool)
        ends = torch.tensor(self.ends, device=device)
        mask, cache = (ids != NONE).long(), DynamicCache()
        place, entry = (mask.cumsum(1) - 1).clamp_min(0), ids.clamp_min(0)
        for number in range(max_tokens):
            logits = network(
                input_ids=entry,
                attention_mask=mask,
                position_ids=place,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            log_p = (logits.float() / (temperature or 1.0)).log_softmax(-1)
            token = log_p.argmax(-1) if draws is None else drawn(log_p, draws[rows, number])
            value = log_p.gather(1, token[:, None])[:, 0]
            on = going.tolist()
            yield (
                [row for row, alive in zip(rows.tolist(), on, strict=True) if alive],
                [one for one, alive in zip(token.tolist(), on, strict=True) if alive],
                [one for one, alive in zip(value.tolist(), on, strict=True) if alive],
            )
            going = going & ~torch.isin(token, ends).cpu()
            if not going.any():
                return
            if going.float().mean() <= SHRINK:
                kept = going.nonzero().flatten().to(device)
                cache.batch_select_indices(kept)
                rows, token, mask, place, going = rows[kept], token[kept], mask[kept], place[kept], going[going]
            entry, place = token[:, None], place[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)

    def log_probs(self, weights: str, points: Decisions, temperature: float) -> Tensor:
        """log p of each token [B, L] of the planner's answers; 0 at padding. Gradients flow for `policy` alone."""
        prompt, answer = _trimmed(points.prompt, left=True), _trimmed(points.answer, left=False)
        ids = torch.cat([prompt, answer], 1).to(self.device)
        mask = (ids != NONE).long()
        gradients = torch.is_grad_enabled() and weights == "policy"
        cast = autocast(self.precision, self.device.type)
        with torch.set_grad_enabled(gradients), cast, self.weights.network(weights) as network:
            logits = network(
                input_ids=ids.clamp_min(0),
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp_min(0),
                use_cache=False,
                logits_to_keep=answer.shape[1] + 1,
            ).logits[:, :-1]
        chosen, there = ids[:, prompt.shape[1] :], mask[:, prompt.shape[1] :].bool()
        log_p = (logits.float() / temperature).log_softmax(-1).gather(2, chosen.clamp_min(0)[..., None])[..., 0]
        return pad(torch.where(there, log_p, 0.0), (0, points.answer.shape[1] - answer.shape[1]))

    def save(self, folder: Path, weights: str = "policy") -> None:
        """Write the planner for transformers: a peft adapter, or the whole model with its tokenizer."""
        from .saving import save

        save(self, folder, weights)


VOLATILE = ("transformers_version", "dtype", "torch_dtype", "use_cache", "name_or_path")


def fingerprint(network: Any) -> str:
    """A short hash of the network's weights: of the first and last values of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        flat = tensor.detach().flatten()
        ends = torch.cat([flat[:64], flat[-64:]]).float().cpu().contiguous()
        digest.update(name.encode() + str(tuple(tensor.shape)).encode() + ends.numpy().tobytes())
    return digest.hexdigest()[:16]


class Partial:
    """An answer that is being sampled."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.log_probs: list[float] = []


def drawn(log_p: Tensor, uniform: Tensor) -> Tensor:
    """Tokens [B] by inverse CDF from log-probabilities [B, V] and numbers [B] in [0, 1).

    Sums are float64, and the first token whose cumulative probability is above u times their total is taken: never one
    of probability 0.
    """
    cumulative = log_p.double().exp().cumsum(-1)
    aim = uniform.double()[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, aim, right=True)[:, 0].clamp_max(log_p.shape[1] - 1)


def _trimmed(ids: Tensor, left: bool) -> Tensor:
    """Without the columns that are padding in every row; padding is on the left or on the right."""
    many = max(1, int((ids != NONE).sum(1).max()))
    return ids[:, -many:] if left else ids[:, :many]
