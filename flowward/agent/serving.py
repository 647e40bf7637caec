"""The planner sampled by a vLLM or SGLang server: token ids in, token ids and log-probabilities out.

The adapter of each iteration is loaded under a name of its own. Under a name that was used before, a server may answer
from the cached prefixes of the earlier weights (vLLM issue 42125).
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..system.addresses import without_password
from ..system.asking import Declined, Server, ServiceError, Unavailable
from ..system.chat_servers import chosen, served_models
from ..system.errors import at_least_one, not_negative, one_of, positive
from ..system.jobs import attempted
from ..system.terminal import tell
from .chat import AGAIN
from .engines import ENGINES, Engine
from .episode import Ask, Said

if TYPE_CHECKING:
    from torch import Tensor

WHO = "planner server"
FILES = ("adapter_config.json", "adapter_model.safetensors")  # of a peft adapter
SURE = -0.01  # log-probability above which temperature makes no difference that could be measured
SAME = 1e-4  # difference of log-probabilities that is none


@dataclass
class ServedPlanner:
    """Samples the planner's turns on a server, at a temperature alone: no top-p, no top-k, no penalties.

    Start vLLM (0.10.2 or newer) with

        VLLM_ALLOW_RUNTIME_LORA_UPDATING=True vllm serve MODEL --enable-lora --max-lora-rank RANK \\
            --logprobs-mode processed_logprobs

    or SGLang with

        python -m sglang.launch_server --model-path MODEL --enable-lora --max-lora-rank RANK \\
            --lora-target-modules all --enable-deterministic-inference

    (without its last option, SGLang ignores seeds). The server must see the folders of the adapters under the same
    paths. vLLM's mode `processed_logprobs` includes the temperature in log-probabilities; SGLang includes it unless
    SGLANG_RETURN_ORIGINAL_LOGPROB is set.

    Failures are treated as in chat.ChatModel. A server that was restarted gets the adapter again.

    Raises:
        ValueError: no server answers, it refuses the key, it does not have the model, or an option is invalid.
    """

    address: str
    """sample on this server: http://host:port, or http://host:port#model"""
    kind: Literal["auto", "vllm", "sglang"] = "auto"
    """vllm, sglang, or auto: as the server says"""
    model: str = ""
    """use this base model of the server (empty: its only one)"""
    temperature: float = 1.0
    """sample at this temperature; training must use the same"""
    max_tokens: int = 512
    """most tokens of one answer"""
    concurrency: int = 64
    """send this many requests at once"""
    timeout: float = 600.0
    """wait this many seconds for one answer"""
    patience: float = 600.0
    """give up after this many seconds without any answer"""
    key_variable: str = "OPENAI_API_KEY"
    """read the API key from this environment variable, if the server needs one"""

    def __post_init__(self) -> None:
        at_least_one(self, "max_tokens", "concurrency")
        positive(self, "timeout", "patience")
        not_negative(self, "temperature")
        one_of("kind of server", self.kind, ("auto", *ENGINES))
        at, _, named = self.address.partition("#")
        at = at.rstrip("/").removesuffix("/v1")
        self._at = without_password(at)
        self._server = Server(at, self.timeout, os.environ.get(self.key_variable) or None, again=AGAIN)
        cards = served_models(self._server, WHO, self.key_variable, path="/v1/models")
        self._engine = self._known([card.get("owned_by") for card in cards])
        bases = [card["id"] for card in cards if not card.get("parent")]  # the parent of an adapter is its base model
        self._base = chosen(self.model or named, bases, WHO, at)
        self._run = secrets.token_hex(4)  # a server outlives runs, and two runs may count iterations alike
        self._adapter: tuple[str, Path] | None = None
        self._loads = 0  # of adapters, so that a request knows whether one was loaded after it was sent
        self._names: set[str] = set()
        self._old: list[str] = []  # adapters to unload
        self._lock = threading.Lock()

    def _known(self, owners: Sequence[Any]) -> Engine:
        kind = self.kind if self.kind != "auto" else next((owner for owner in owners if owner in ENGINES), "")
        if not kind:
            raise ValueError(
                f"cannot tell whether {self._at} is vLLM or SGLang; say it with the setting kind: vllm or sglang"
            )
        return ENGINES[kind]

    def refuse(self, prompt: Sequence[int] = (1, 2, 3)) -> None:
        """Raise ValueError if the server's answers lack token ids, or log-probabilities lack the temperature."""
        try:
            drawn, usual = (self._probed(prompt, temperature) for temperature in (self.temperature, 1.0))
        except Unavailable as error:
            raise ValueError(f"no {WHO} answers ({error})") from error
        except ServiceError as error:
            raise ValueError(str(error)) from error
        if self.temperature in (0.0, 1.0) or max(drawn, usual) > SURE:
            return
        if abs(drawn - usual) < SAME:
            raise ValueError(
                f"{self._at} returns log-probabilities without the temperature {self.temperature:g}; "
                f"{self._engine.with_temperature}"
            )

    def _probed(self, prompt: Sequence[int], temperature: float) -> float:
        """The log-probability of the likeliest next token, from an answer of one token."""
        path, body = self._engine.request(self._base, None, prompt, temperature, 1, 0, top=1)

        def read(answer: Any) -> float:
            self._engine.read(answer)
            return self._engine.likeliest(answer)

        found: float = self._server.ask("POST", path, read=read, json=body)
        return found

    def use(self, folder: Path, name: str) -> None:
        """Sample with the peft adapter in a folder from now on, and unload the one before.

        The name, such as that of the iteration, must be a new one in this run.

        Raises:
            ValueError: the folder has no adapter, the name was used, or the server cannot load adapters.
            ServiceError: the server did not answer for `patience` seconds.
        """
        folder = Path(folder).resolve()
        if missing := [each for each in FILES if not (folder / each).is_file()]:
            raise ValueError(f"{folder} has no {missing[0]}, so it is no adapter of peft")
        if name in self._names:
            raise ValueError(f"the adapter name '{name}' was used before; a server may answer with its old weights")
        served = f"{name}-{self._run}"
        (loaded,) = attempted(
            lambda each: self._load(each, folder), [served], 1, self.patience, lambda each: f"loading adapter {each}"
        )
        if isinstance(loaded, Declined):
            raise ValueError(f"{loaded}; {self._engine.with_adapters}, and let it see {folder}") from loaded
        if isinstance(loaded, ServiceError):
            raise loaded
        with self._lock:
            self._old += [self._adapter[0]] if self._adapter else []
            self._adapter, self._loads = (served, folder), self._loads + 1
            self._names.add(name)
        self._unload()

    def _load(self, served: str, folder: Path) -> None:
        path, body = self._engine.load(served, str(folder))
        try:
            self._server.ask("POST", path, own_failures=True, plain=True, json=body)
        except Declined:
            if not self._has(served):  # otherwise an earlier try succeeded, and only its answer was lost
                raise

    def _has(self, served: str) -> bool:
        found = self._server.call("GET", "/v1/models")
        return any(card.get("id") == served for card in found.get("data", ()))

    def _unload(self) -> None:
        """Unload older adapters; what cannot be reached now is unloaded after the next update."""
        waiting, self._old = self._old, []
        for served in waiting:
            path, body = self._engine.unload(served)
            try:
                self._server.call("POST", path, own_failures=True, plain=True, json=body)
            except Unavailable:
                self._old.append(served)
            except Declined:  # the server was restarted, and does not have it
                pass

    def draw(
        self, asks: Sequence[Ask], seeds: Sequence[int], temperature: float | None = None
    ) -> list[Said | ServiceError]:
        """Answers to the planner's requests, in order, with token ids and log-probabilities.

        Each has a seed, so that the same request is answered alike whatever else the server does; how exactly depends
        on the server. `temperature`: instead of the planner's, such as 0 for an evaluation.

        Raises:
            ValueError: a request has no token ids.
        """
        if any(not ask.ids for ask in asks):
            raise ValueError("a request of the planner has no token ids; give the system a reader with a tokeniser")
        heat = self.temperature if temperature is None else temperature
        return attempted(
            lambda each: self._drawn(*each, heat),
            list(zip(asks, seeds, strict=True)),
            self.concurrency,
            self.patience,
            lambda each: f"sampling turn {each[0].turn + 1} of the planner",
        )

    def _drawn(self, ask: Ask, seed: int, temperature: float) -> Said:
        with self._lock:
            loads, adapter = self._loads, self._adapter
        path, body = self._engine.request(
            self._base, adapter and adapter[0], ask.ids, temperature, self.max_tokens, seed
        )
        try:
            said: Said = self._server.ask("POST", path, read=self._engine.read, json=body)
        except Declined as error:
            if adapter and error.status in (400, 404) and self._restored(loads, *adapter):
                raise Unavailable(f"the server had lost the adapter {adapter[0]}") from error
            raise
        return said

    def _restored(self, loads: int, served: str, folder: Path) -> bool:
        """Whether the adapter was lost, and is loaded again since a request was sent (when `loads` were counted)."""
        with self._lock:
            if self._loads != loads:  # another thread has noticed
                return True
            if self._has(served):
                return False
            try:
                self._load(served, folder)
            except Declined:
                return False
            self._loads += 1
        tell(f"{self._at} was restarted without the adapter {served}; it is loaded again")
        return True


def gap(recomputed: Tensor, served: Tensor, mask: Tensor) -> dict[str, float]:
    """How far a server's log-probabilities are from those that training computes, all [B, L], where `mask` is set.

    `mean` and `max` of the absolute difference per token, and `ratio`, the mean of exp(recomputed - served): near 1, if
    the server samples what training computes.
    """
    difference = (recomputed.detach() - served.detach()).double()[mask.bool()]
    if not difference.numel():
        return {"mean": 0.0, "max": 0.0, "ratio": 1.0}
    size = difference.abs()
    return {"mean": float(size.mean()), "max": float(size.max()), "ratio": float(difference.exp().mean())}


def truncated_weight(recomputed: Tensor, served: Tensor, mask: Tensor, cap: float = 2.0) -> Tensor:
    """min(exp(recomputed - served), cap) per token [B, L], without gradient; 1 where `mask` is not set.

    Truncated importance sampling: multiplied with a token's loss, it corrects for the server's distribution. Source:
    Yao, Liu et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025),
    https://fengyao.notion.site/off-policy-rl; truncation: Ionides, "Truncated Importance Sampling" (2008).

    Raises:
        ValueError: `cap` is below 1: it would change tokens on which both agree.
    """
    if not cap >= 1:
        raise ValueError(f"the cap of importance weights must be at least 1, not {cap}")
    difference = recomputed.detach() - served.detach()
    difference = difference.masked_fill(~mask.bool(), 0.0)  # before exp: padding may be nan
    return difference.exp().clamp(max=cap)
