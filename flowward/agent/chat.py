"""Models on chat servers with OpenAI's interface (vLLM, SGLang, hosted), for the modules of an agent."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..system.addresses import without_password
from ..system.asking import Server, ServiceError
from ..system.chat_servers import chosen, first_choice, served_models, whole
from ..system.errors import at_least_one, not_negative, positive
from ..system.jobs import attempted
from .episode import Ask, Messages, Said

AGAIN = 60.0  # seconds between two reports that a server does not answer
OURS = ("model", "messages", "stream", "n")  # fields of a request that settings cannot change


@dataclass
class ChatModel:
    """Answers requests of an agent's modules by a model on a chat server; an `Answerer` (system.py).

    The address is `http://host:port/v1#model`; a server with one model needs no `#model`.

    A server that does not answer, is overloaded (429, 500) or sends a broken answer is asked again; this is printed.
    After `patience` seconds the requests without an answer get the error, and the others keep their answers. A request
    that the server refuses for good, such as a too long one, fails alone.

    Raises:
        ValueError: no server answers, it refuses the key, it does not have the model, or an option is invalid.
    """

    address: str
    """ask this model: http://host:port/v1#model"""
    temperature: float = 0.0
    """sample at this temperature (0: greedy)"""
    max_tokens: int = 1024
    """most tokens of one answer"""
    request: Mapping[str, Any] = field(default_factory=dict)
    """send these fields too; one that is None is left out, such as max_tokens for servers that do not know it"""
    key_variable: str = "OPENAI_API_KEY"
    """read the API key from this environment variable, if the server needs one"""
    concurrency: int = 16
    """send this many requests at once"""
    timeout: float = 120.0
    """wait this many seconds for one answer"""
    patience: float = 600.0
    """give up after this many seconds without any answer"""
    meet: bool = True
    """ask the server for its models first (False for a gateway that does not list them)"""

    def __post_init__(self) -> None:
        at_least_one(self, "max_tokens", "concurrency")
        positive(self, "timeout", "patience")
        not_negative(self, "temperature")
        if taken := [name for name in OURS if name in self.request]:
            raise ValueError(f"the field '{taken[0]}' of a request is not for settings; remove it")
        at, _, model = self.address.partition("#")
        self.at = without_password(at)
        self._server = Server(at, self.timeout, os.environ.get(self.key_variable) or None, again=AGAIN)
        self.model = self._chosen(model) if self.meet else model
        if not self.model:
            raise ValueError(f"name the model of {self.at}: write {self.at}#model")

    def _chosen(self, model: str) -> str:
        listed = served_models(self._server, "chat server", self.key_variable)
        return chosen(model, [each["id"] for each in listed], "chat server", self._server.address)

    def __call__(self, asks: Sequence[Ask]) -> list[Said | ServiceError]:
        """The answers, in order."""
        return attempted(self._answer, asks, self.concurrency, self.patience, lambda ask: f"asking the {ask.who}")

    def ask(self, messages: Messages) -> str:
        """The text of one answer.

        Raises:
            ServiceError: the server refused, or did not answer for `patience` seconds.
        """
        (answer,) = self([Ask("chat model", self.model, messages)])
        if isinstance(answer, ServiceError):
            raise answer
        return answer.text

    def _answer(self, ask: Ask) -> Said:
        body = {
            "model": self.model,
            "messages": [{"role": role, "content": whole(text)} for role, text in ask.messages],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            **self.request,
        }
        sent = {name: value for name, value in body.items() if value is not None}
        answer: Said = self._server.ask("POST", "/chat/completions", read=read_answer, json=sent)
        return answer


def read_answer(answer: Any) -> Said:
    """The first choice of a chat completion.

    Token ids and log-probabilities are there if the request asked a vLLM server for them (`return_token_ids`,
    `logprobs`); the ids of the prompt are then in `about["prompt_ids"]`.

    Raises:
        ValueError: the answer has no choices.
    """
    choice = first_choice(answer)
    content = choice.get("message", {}).get("content")
    ids, log_probs = choice.get("token_ids"), _log_probs(choice)
    matched = isinstance(ids, list) and len(ids) == len(log_probs)
    about = {name: answer[name] for name in ("model", "usage") if name in answer}
    about |= {"finish_reason": choice.get("finish_reason"), "prompt_ids": answer.get("prompt_token_ids")}
    return Said(
        _text(content),
        tuple(ids) if matched and ids else (),
        log_probs if matched else (),
        choice.get("finish_reason") != "length",
        {name: value for name, value in about.items() if value is not None},
    )


def _text(content: Any) -> str:
    """Of a message: a text, a list of parts, or null (nothing but thoughts, or nothing at all)."""
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return whole("".join(text for text in texts if isinstance(text, str)))


def _log_probs(choice: Mapping[str, Any]) -> tuple[float, ...]:
    try:
        return tuple(float(token["logprob"]) for token in choice["logprobs"]["content"])
    except (KeyError, TypeError, ValueError):  # not asked for
        return ()
