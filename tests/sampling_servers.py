"""Servers that behave like vLLM and SGLang towards a planner, with a model of four tokens."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, field
from typing import Any

from local_servers import Answer, reply

LOGITS = (2.0, 1.0, 0.0, 1.5)  # of every next token; token 3 ends a text
END = 3


def log_softmax(temperature: float) -> list[float]:
    scaled = [logit / temperature for logit in LOGITS]
    total = math.log(sum(map(math.exp, scaled)))
    return [each - total for each in scaled]


def sampled(seed: int, temperature: float, most: int) -> list[int]:
    """The tokens of a seed."""
    draw, ids = random.Random(seed), list[int]()
    weights = [math.exp(each) for each in log_softmax(temperature or 0.01)]
    while len(ids) < most and END not in ids:
        ids.append(draw.choices(range(4), weights)[0])
    return ids


@dataclass
class SamplingServer:
    """Answers requests as the two servers do, and keeps them."""

    kind: str
    raw: bool = False  # log-probabilities without the temperature
    lora: bool = True
    ids: bool = True  # token ids in answers
    owner: str | None = None
    adapters: dict[str, str] = field(default_factory=dict)
    loads: list[tuple[str, str]] = field(default_factory=list)
    drawn: list[dict[str, Any]] = field(default_factory=list)
    troubles: list[Answer | None] = field(default_factory=list)  # answers to the next samplings
    lost: int = 0  # answers to loads that get lost on the way

    def __call__(self, path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        sent = json.loads(body) if body else {}
        if path == "/v1/models":
            owner = self.owner or self.kind
            cards = [{"id": "base", "owned_by": owner, "parent": None}]
            cards += [{"id": name, "owned_by": owner, "parent": "base"} for name in self.adapters]
            return reply({"data": cards})
        prefix = "/v1" if self.kind == "vllm" else ""
        if path in (f"{prefix}/load_lora_adapter", f"{prefix}/unload_lora_adapter"):
            return self.managed(path, sent)
        if path == ("/v1/completions" if self.kind == "vllm" else "/generate"):
            self.drawn.append(sent)
            return self.troubles.pop(0) if self.troubles else self.sample(sent)
        return reply({"detail": "Not Found"}, 404)

    def managed(self, path: str, sent: dict[str, Any]) -> Answer | None:
        name = sent["lora_name"]
        if not self.lora:
            if self.kind == "vllm":
                return reply({"detail": "Not Found"}, 404)
            return reply({"success": False, "error_message": "LoRA is not enabled."}, 400)
        if path.endswith("/unload_lora_adapter"):
            return self.done() if self.adapters.pop(name, None) else reply({"error": {"message": "not found"}}, 404)
        if name in self.adapters:
            return reply({"error": {"message": f"The lora adapter '{name}' has already been loaded."}}, 400)
        self.adapters[name] = sent["lora_path"]
        self.loads.append((name, sent["lora_path"]))
        if self.lost:
            self.lost -= 1
            return None
        return self.done()

    def done(self) -> Answer:
        return reply(b"Success: done." if self.kind == "vllm" else {"success": True})

    def sample(self, sent: dict[str, Any]) -> Answer:
        return self.completion(sent) if self.kind == "vllm" else self.generated(sent)

    def scored(self, ids: list[int], temperature: float) -> list[float]:
        likely = log_softmax(1.0 if self.raw or not temperature else temperature)
        return [likely[each] for each in ids]

    def completion(self, sent: dict[str, Any]) -> Answer:
        if sent["model"] not in ("base", *self.adapters):
            return reply({"error": {"message": f"The model `{sent['model']}` does not exist."}}, 404)
        ids = sampled(sent["seed"], sent["temperature"], sent["max_tokens"])
        top = {"0": max(self.scored([0, 1, 2, 3], sent["temperature"]))}
        scores = {"token_logprobs": self.scored(ids, sent["temperature"]), "top_logprobs": [top] * len(ids)}
        choice = {"text": " ".join(map(str, ids)), "logprobs": scores, "finish_reason": reason(ids)}
        return reply({"choices": [choice | ({"token_ids": ids} if self.ids else {})]})

    def generated(self, sent: dict[str, Any]) -> Answer:
        if sent.get("lora_path") and sent["lora_path"] not in self.adapters:
            return reply({"error": {"message": "The following requested LoRA adapters are not loaded"}}, 400)
        settings = sent["sampling_params"]
        ids = sampled(settings["sampling_seed"], settings["temperature"], settings["max_new_tokens"])
        scores = self.scored(ids, settings["temperature"])
        about: dict[str, Any] = {"finish_reason": {"type": reason(ids)}}
        if self.ids:
            about["output_token_logprobs"] = [[score, each, None] for score, each in zip(scores, ids, strict=True)]
            about["output_top_logprobs"] = [[[max(self.scored([0, 1, 2, 3], settings["temperature"])), 0, None]]] * len(
                ids
            )
        return reply({"text": " ".join(map(str, ids)), "meta_info": about})


def reason(ids: list[int]) -> str:
    return "stop" if END in ids else "length"
