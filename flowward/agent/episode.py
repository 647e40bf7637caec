"""What an episode is made of: requests to models and tools, turns, and the record of a finished episode."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Message = tuple[str, str]
"""(role, text); the role is `system`, `user` or `assistant`"""

Messages = tuple[Message, ...]

End = Literal["stopped", "turns", "time", "failed"]
"""how an episode ended: by the verifier, at `max_turns`, at `max_time`, or because a server did not answer"""

ENDS: tuple[End, ...] = ("stopped", "turns", "time", "failed")

Trouble = Literal["", "empty", "unreadable", "tool", "arguments", "error"]
"""what went wrong in a turn: an empty or unreadable plan, an unknown tool, wrong arguments, or an error of the tool"""

TROUBLES: tuple[Trouble, ...] = ("empty", "unreadable", "tool", "arguments", "error")

T = TypeVar("T")


@dataclass(frozen=True)
class Ask:
    """A request to a language model."""

    who: str  # the module that asks: planner, executor, verifier, generator or analyst
    model: str  # PLANNER, SAME, or the address of a chat server
    messages: Messages
    ids: tuple[int, ...] = ()  # the messages as token ids; only for the planner
    turn: int = 0


@dataclass(frozen=True)
class Said:
    """The answer of a language model."""

    text: str
    ids: tuple[int, ...] = ()  # its tokens as they were sampled, with the end token if there is one
    log_probs: tuple[float, ...] = ()  # of each of them, under the distribution that they were sampled from
    complete: bool = True  # it ended by itself, not at the limit of tokens
    about: Mapping[str, Any] = field(default_factory=dict)  # what else a server reports


@dataclass(frozen=True)
class Use:
    """A call of a tool."""

    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Observation:
    """The result of a tool, as the planner sees it. An error is an observation too."""

    text: str
    failed: bool = False


Request = Ask | Use
Answer = Said | Observation
Steps = Generator[Request, Any, T]
"""yields requests, is sent their answers (Said for Ask, Observation for Use), and returns a T"""

PLANNER = "planner"  # the model that is trained
SAME = "same"  # the planner's model as it was before training


@dataclass(frozen=True)
class Plan:
    """The planner's decision for one turn."""

    tool: str  # the tool's own name
    goal: str = ""
    context: str = ""  # everything that the tool needs


@dataclass(frozen=True)
class Verdict:
    """The verifier's decision after a turn."""

    stop: bool
    why: str = ""
    decided: bool = True  # False: it said neither stop nor continue


class Unreadable(ValueError):
    """The text of a model does not contain what it was asked for; the message is for the memory."""

    def __init__(self, why: str, trouble: Trouble = "unreadable"):
        super().__init__(why)
        self.trouble = trouble


@dataclass(frozen=True)
class Turn:
    """One decision of the planner, and what came of it."""

    prompt: tuple[int, ...]  # token ids
    said: Said
    plan: Plan | None = None  # None: it could not be read
    arguments: Mapping[str, Any] | None = None
    result: str = ""
    trouble: Trouble = ""
    verdict: Verdict | None = None
    shortened: int = 0  # results that the prompt shows shortened
    dropped: int = 0  # results that the prompt leaves out


@dataclass(frozen=True)
class Episode:
    """A finished episode."""

    question: str
    turns: tuple[Turn, ...]
    answer: str
    end: End
    why: str = ""  # of a failed one
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether a server's failure ended it: it says nothing about the agent."""
        return self.end == "failed"
