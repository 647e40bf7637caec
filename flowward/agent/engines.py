"""What vLLM and SGLang servers are sent for the planner, and how their answers are read.

Every setting that changes the sampled distribution is sent: a server otherwise takes the defaults that come with a
model, such as top-p 0.8 and a repetition penalty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from ..system.asking import ServiceError
from ..system.chat_servers import first_choice, whole
from .episode import Said

Request = tuple[str, dict[str, Any]]
"""path and JSON body of a POST request"""

PLAIN = {  # the distribution of the model itself
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


class Engine(Protocol):
    """A kind of server."""

    @property
    def with_adapters(self) -> str: ...  # how to start it so that it loads adapters

    @property
    def with_temperature(self) -> str: ...  # how to start it so that log-probabilities include the temperature

    def request(
        self,
        base: str,
        adapter: str | None,
        prompt: Sequence[int],
        temperature: float,
        max_tokens: int,
        seed: int,
        top: int = 0,
    ) -> Request: ...

    def read(self, answer: Any) -> Said: ...  # raises ValueError for a broken one, ServiceError for one that lacks ids

    def likeliest(self, answer: Any) -> float: ...  # log-probability of the likeliest first token, after `top=1`

    def load(self, name: str, folder: str) -> Request: ...

    def unload(self, name: str) -> Request: ...


class VLLM:
    """vLLM's `/v1/completions` with a prompt of token ids.

    Checked against vllm/entrypoints/openai/completion/protocol.py at commit 002032ee and models/serving.py at 00153c8b.
    """

    with_adapters = "start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora --max-lora-rank RANK"
    with_temperature = "start vLLM with --logprobs-mode processed_logprobs"

    def request(
        self,
        base: str,
        adapter: str | None,
        prompt: Sequence[int],
        temperature: float,
        max_tokens: int,
        seed: int,
        top: int = 0,
    ) -> Request:
        return "/v1/completions", {
            "model": adapter or base,
            "prompt": list(prompt),
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": seed,
            "logprobs": top,  # of the sampled token, and of so many likely ones
            "return_token_ids": True,
            **PLAIN,
        }

    def read(self, answer: Any) -> Said:
        choice = first_choice(answer)
        ids = choice.get("token_ids")
        if not isinstance(ids, list):
            raise ServiceError("the server's answers have no token ids; vLLM 0.10.2 or newer has them")
        log_probs = (choice.get("logprobs") or {}).get("token_logprobs")
        return _said(choice.get("text"), ids, log_probs, choice.get("finish_reason"))

    def likeliest(self, answer: Any) -> float:
        return max(float(each) for each in first_choice(answer)["logprobs"]["top_logprobs"][0].values())

    def load(self, name: str, folder: str) -> Request:
        return "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder}

    def unload(self, name: str) -> Request:
        return "/v1/unload_lora_adapter", {"lora_name": name}


class SGLang:
    """SGLang's native `/generate` with `input_ids`.

    Checked against its pages "Sampling Parameters" and "LoRA Serving" (2026), and `http_server.py`.
    """

    with_adapters = "start SGLang with --enable-lora --max-lora-rank RANK --lora-target-modules all"
    with_temperature = "start SGLang without SGLANG_RETURN_ORIGINAL_LOGPROB"

    def request(
        self,
        base: str,
        adapter: str | None,
        prompt: Sequence[int],
        temperature: float,
        max_tokens: int,
        seed: int,
        top: int = 0,
    ) -> Request:
        sampling = {"temperature": temperature, "max_new_tokens": max_tokens, "sampling_seed": seed, **PLAIN}
        body = {
            "input_ids": list(prompt),
            "sampling_params": sampling,
            "return_logprob": True,
            "top_logprobs_num": top,
        }
        return "/generate", body | ({"lora_path": adapter} if adapter else {})

    def read(self, answer: Any) -> Said:
        about = answer.get("meta_info") if isinstance(answer, dict) else None
        if not isinstance(about, dict):
            raise ValueError(f"it has no meta_info: {str(answer)[:200]}")
        tokens = about.get("output_token_logprobs")
        if not isinstance(tokens, list):
            raise ServiceError("the server's answers have no log-probabilities (output_token_logprobs)")
        reason = (about.get("finish_reason") or {}).get("type")
        return _said(answer.get("text"), [each[1] for each in tokens], [each[0] for each in tokens], reason)

    def likeliest(self, answer: Any) -> float:
        return max(float(each[0]) for each in answer["meta_info"]["output_top_logprobs"][0])

    def load(self, name: str, folder: str) -> Request:
        return "/load_lora_adapter", {"lora_name": name, "lora_path": folder}

    def unload(self, name: str) -> Request:
        return "/unload_lora_adapter", {"lora_name": name}


def _said(text: Any, ids: list[Any], log_probs: Any, reason: Any) -> Said:
    if reason == "abort":  # such as by new weights
        raise ValueError("it broke the answer off")
    if not isinstance(log_probs, list) or len(log_probs) != len(ids):
        raise ServiceError("the server's answers do not have one log-probability per token")
    if any(not isinstance(each, int | float) or not math.isfinite(each) for each in log_probs):
        raise ServiceError(f"a log-probability in the server's answer is not a finite number: {log_probs[:8]}")
    return Said(
        whole(text) if isinstance(text, str) else "",
        tuple(map(int, ids)),
        tuple(map(float, log_probs)),
        reason == "stop",
    )


ENGINES: dict[str, Engine] = {"vllm": VLLM(), "sglang": SGLang()}
