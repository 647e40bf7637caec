"""Episodes as OpenEnv sessions with a training trace, which TRL's AsyncGRPOTrainer trains on.

TRL's `HarnessRolloutWorker` makes a session per episode, waits for its end, and takes three things from it: the tokens
that the planner sampled with their log-probabilities, which of them are trained, and the reward. Neither package is
imported here: sessions have OpenEnv's methods, and their data are plain. Read against OpenEnv 0.10.0 and TRL 1.16.0;
docs/notes/agent_trainers.md has the settings of a run.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..system.asking import ServiceError
from .episode import Ask, Episode, Said
from .external import Setup, entry_of, planner_on, played, scored, setup_of
from .system import Answerer

TOKENS = {"logprobs": True, "return_token_ids": True}  # what makes vLLM's chat completions training data
OPENENV = "openenv.core.harness.training"


@dataclass(frozen=True)
class TrainingTurn:
    """One request of the planner; the fields of OpenEnv's class of this name."""

    node_id: str
    prompt_token_ids: list[int]
    completion_token_ids: list[int]
    per_token_logps: list[float]
    loss_mask: list[int]  # over prompt and completion
    request: dict[str, Any] = field(default_factory=dict)
    response: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingTrace:
    """The turns of an episode; stands for OpenEnv's class of this name in processes without OpenEnv."""

    turns: list[TrainingTurn]
    schema_version: int = 1

    @classmethod
    def from_entries(cls, entries: Sequence[Mapping[str, Any]]) -> TrainingTrace:
        return cls([TrainingTurn(node_id=entry["metadata"]["node_id"], **entry) for entry in entries])

    def to_trace_entries(self) -> list[dict[str, Any]]:
        return [{each.name: getattr(turn, each.name) for each in fields(turn)[1:]} for turn in self.turns]


@dataclass(frozen=True)
class ToolResult:
    """The result of a tool that a trainer calls; the fields of OpenEnv's class of this name."""

    data: Any = None
    done: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class VerifyResult:
    """The reward of an episode; the fields of OpenEnv's class of this name."""

    env_reward: float | None = None  # None: not scored, left out of its group
    done: bool = True
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Any] = field(default_factory=dict)


class Session:
    """One episode. It runs by itself, in a thread that `wait_for_completion` starts."""

    def __init__(
        self,
        setup: Setup,
        planner: Answerer,
        question: str,
        metadata: Mapping[str, Any],
        sampling: Mapping[str, Any] | None = None,
    ):
        self._setup, self._planner, self._sampling = setup, planner, sampling or {}
        self.question, self.metadata = question, metadata
        self.episode: Episode | None = None
        self._entries: list[dict[str, Any]] = []
        self._error: Exception | None = None
        self._broken: ValueError | None = None  # an answer that cannot be trained on
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def initial_messages(self) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self.question}]

    def list_tools(self) -> list[Any]:
        """None for the trainer: the agent calls its tools itself."""
        return []

    def call_tool(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        return ToolResult(error="the agent calls its tools itself")

    def wait_for_completion(self, timeout_s: float | None = None) -> int:
        """Run the episode to its end; 1 if a server's failure ended it, otherwise 0.

        Raises:
            TimeoutError: it is still running after `timeout_s` seconds.
            ValueError: the question cannot be asked.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"the episode of '{self.question[:60]}' is not over after {timeout_s:g} s")
        if self._error is not None:
            raise self._error
        return int(self.episode is None or self.episode.failed)

    def _run(self) -> None:
        try:
            self.episode = played(self._setup, self.question, self._recorded)
        except Exception as error:  # raised again by `wait_for_completion`, in the trainer's thread
            self._error = error

    def _recorded(self, asks: Sequence[Ask]) -> list[Said | ServiceError]:
        if self._closed.is_set():
            return [ServiceError("the session was closed")] * len(asks)
        answers = list(self._planner(asks))
        for ask, said in zip(asks, answers, strict=True):
            if isinstance(said, Said):
                try:
                    self._entries.append(entry_of(ask, said, len(self._entries), self._sampling))
                except ValueError as error:
                    self._broken = error
                    return [ServiceError(str(error))] * len(asks)
        return answers

    def fetch_proxy_trace(self) -> list[dict[str, Any]]:
        """The planner's requests so far, as OpenEnv's trace entries."""
        return list(self._entries)

    def fetch_training_trace(self) -> Any:
        """The planner's requests so far as a TrainingTrace: OpenEnv's own class where OpenEnv is in use.

        Raises:
            ValueError: the planner's server returns no token ids. TRL then ends the run; after other errors it only
                leaves the episode out.
        """
        if self._broken is not None:
            raise self._broken
        made = getattr(sys.modules.get(OPENENV), "TrainingTrace", TrainingTrace)
        return made.from_entries(self.fetch_proxy_trace())

    def verify(self, transcript: Sequence[Any], final_state: Any = None) -> VerifyResult:
        """The reward; None for an episode that is not over, or that a server's failure ended."""
        episode = self.episode
        if episode is None or episode.failed:
            return VerifyResult(None, done=episode is not None, artifacts={"why": episode.why if episode else ""})
        reward = scored(self._setup, episode, self.metadata)
        return VerifyResult(reward, metrics={"turns": len(episode.turns)}, artifacts={"answer": episode.answer})

    def close(self) -> None:
        """End the episode before its next request to the planner."""
        self._closed.set()


@dataclass
class SessionFactory:
    """Makes sessions; for TRL's `HarnessRolloutWorker(harness_session_factory=...)`.

    It is sent to another process, so `build` is a settings file (.yaml), the name of a function that returns a Setup
    (`package.module:function`), or such a function of a module. The worker calls the factory with its sampling
    settings.
    """

    build: str | Callable[[], Setup]
    """make the agent from this settings file, or with this function"""
    tasks: Mapping[str, Mapping[str, Any]]
    """metadata for the reward, for each question"""
    address: str
    """the vLLM server that TRL updates: http://host:port/v1#model"""
    sampling: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 1.0})
    """temperature, as in training; the worker sets it"""
    patience: float = 900.0
    """end an episode after this many seconds without any answer of a server"""

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("there are no questions")
        self._lock = threading.Lock()
        self._made: tuple[Setup, Answerer] | None = None

    def __call__(self, *, sampling: Mapping[str, Any] | None = None) -> SessionFactory:
        return replace(self, sampling={**self.sampling, **(sampling or {})})

    def __reduce__(self) -> tuple[type[SessionFactory], tuple[Any, ...]]:
        return type(self), tuple(getattr(self, each.name) for each in fields(self))  # locks and clients stay here

    def create(self, task: Any, seed: int | None = None, episode_id: str | None = None) -> Session:
        """A session for a prompt of the trainer's data set: the question as text or as chat messages.

        Without a prompt, `seed` chooses the question.

        Raises:
            ValueError: the question is not among the tasks.
        """
        question = _question(task) or list(self.tasks)[(seed or 0) % len(self.tasks)]
        if question not in self.tasks:
            raise ValueError(f"the question '{question[:60]}' is not among the {len(self.tasks)} tasks of the factory")
        setup, planner = self._parts()
        return Session(setup, planner, question, self.tasks[question], self.sampling)

    def _parts(self) -> tuple[Setup, Answerer]:
        with self._lock:
            if self._made is None:
                setup = self.build() if callable(self.build) else setup_of(self.build)
                others = {name: value for name, value in self.sampling.items() if name != "temperature"}
                planner = planner_on(
                    self.address,
                    temperature=float(self.sampling.get("temperature", 1.0)),
                    max_tokens=setup.system.limits.max_tokens,
                    request={**others, **TOKENS},
                    timeout=self.patience,
                    patience=self.patience,
                )
                self._made = setup, planner
            return self._made


def _question(task: Any) -> str:
    """The last message of the user in a prompt, or the text itself."""
    if isinstance(task, str):
        return task
    said = [each["content"] for each in task or [] if each.get("role") == "user"]
    return str(said[-1]) if said else ""
