"""Servers of language models with OpenAI's interface (vLLM, SGLang, hosted): their models, and how answers are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .addresses import without_password
from .asking import Declined, Server, Unavailable
from .errors import unknown

MEET = 10.0  # seconds to wait for the list of models


def served_models(server: Server, who: str, key_variable: str, path: str = "/models") -> list[Mapping[str, Any]]:
    """What a server says about each of its models; `id` is the name. `who` names the server in errors, such as judge.

    Raises:
        ValueError: the server does not answer, refuses the key, or is none of a language model.
    """
    try:
        found = server.call("GET", path, timeout=min(server.timeout, MEET))
        return [{**each, "id": str(each["id"])} for each in found["data"] if each["id"]]
    except Unavailable as error:
        raise ValueError(f"no {who} answers ({error}); start one, such as: vllm serve MODEL") from error
    except Declined as error:
        denied = error.status in (401, 403)
        hint = f"the key comes from {key_variable}" if denied else "the address usually ends in /v1"
        raise ValueError(f"{error} ({hint})") from error
    except (KeyError, TypeError) as error:
        at = without_password(server.address)
        raise ValueError(f"{at} is not an OpenAI-compatible server; check the address") from error


def chosen(wanted: str, listed: Sequence[str], who: str, address: str) -> str:
    """The model to ask: the one that is wanted, or the only one.

    Raises:
        ValueError: the server does not have it, or has several and none is wanted.
    """
    if not wanted and len(listed) != 1:
        has = ", ".join(listed) or "none"
        raise ValueError(f"choose a model for the {who}; {without_password(address)} has {has}")
    if wanted and wanted not in listed:
        raise ValueError(unknown(f"{who} model", wanted, listed))
    return wanted or listed[0]


def first_choice(answer: Any) -> Mapping[str, Any]:
    """The first choice of an answer.

    Raises:
        ValueError: the answer has none.
    """
    try:
        choice = answer["choices"][0]
        if isinstance(choice, dict) and isinstance(choice.get("message", {}), dict):
            return choice
    except (KeyError, IndexError, TypeError):
        pass
    raise ValueError(f"it has no choices: {str(answer)[:200]}")


def whole(text: str) -> str:
    """The text with a mark in the place of half characters (a cut emoji), which no request or tokeniser can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
