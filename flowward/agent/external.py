"""Episodes for an engine that trains the planner elsewhere: one question, the planner asked in text on its server.

lightning.py and openenv.py are the two engines. Nothing of theirs is imported here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..system.user_code import find
from .chat import ChatModel
from .engines import PLAIN
from .episode import Ask, Episode, Said
from .system import Answerer, Caller, Driver, System, Text

AnswerReward = Callable[[Sequence[str], Sequence[str], Sequence[Mapping[str, Any]]], Any]
"""rewards of answers, from answers, questions and their metadata, one number each"""


@dataclass(frozen=True)
class Setup:
    """An agent, and everything that answers its requests except the planner's model."""

    system: System
    tools: Caller
    reward: AnswerReward
    models: Mapping[str, Answerer] = field(default_factory=dict)  # of the fixed modules, by Ask.model


def setup_of(name: str) -> Setup:
    """The agent of a settings file (`config.yaml` of a run, or your own), or that a function returns.

    The function, `package.module:NAME` or `path/to/file.py:NAME`, is called without arguments and returns a Setup.

    Raises:
        ValueError: it cannot be loaded, or the function returns something else.
    """
    if name.endswith((".yaml", ".yml")):
        return _configured(Path(name))
    made = find("agent", name)()
    if not isinstance(made, Setup):
        raise ValueError(f"agent '{name}' must return a Setup (flowward.agent.external), not {type(made).__name__}")
    return made


def _configured(path: Path) -> Setup:
    """The agent that settings describe. Its planner is asked in text, so the memory is not shortened for it."""
    from ..training import config_files
    from . import assembly, config
    from .toolbox import Toolbox

    settings = config.from_dict(config_files.read([path]))

    def ask(address: str) -> Any:
        return ChatModel(address, concurrency=settings.concurrency, patience=settings.patience).ask

    tools = Toolbox.load(settings.tools, settings.python_unconfined, ask)
    terms = assembly.terms_of(settings)

    def reward(*answered: Any) -> list[float]:
        scores = [term.weight * term.score(*answered) for term in terms]
        return [float(sum(each)) for each in zip(*scores, strict=True)]

    return Setup(assembly.system_of(settings, Text(), tools), tools, reward, assembly.models_of(settings))


def planner_on(address: str, temperature: float, max_tokens: int, **options: Any) -> ChatModel:
    """The planner in text on vLLM, with nothing but the temperature between the model and its samples.

    The settings are sent because a server otherwise takes the defaults that come with the model, such as top-p 0.8.
    """
    request = {**PLAIN, **options.pop("request", {})}
    return ChatModel(address, temperature=temperature, max_tokens=max_tokens, request=request, **options)


def played(setup: Setup, question: str, planner: Callable[[Sequence[Ask]], Sequence[Any]]) -> Episode:
    """One episode of a question."""
    driver = Driver(lambda places, asks: planner(asks), setup.tools, setup.models)
    (episode,) = driver.run([setup.system.episode(question)])
    return episode


def scored(setup: Setup, episode: Episode, metadata: Mapping[str, Any]) -> float:
    """The reward of a finished episode.

    Raises:
        ValueError: the reward is not a finite number.
    """
    (reward,) = setup.reward([episode.answer], [episode.question], [metadata])
    if not math.isfinite(found := float(reward)):
        raise ValueError(f"the reward of the answer to '{episode.question[:60]}' is {found}, not a finite number")
    return found


def metadata_of(text: str) -> Mapping[str, Any]:
    """Metadata from JSON.

    Raises:
        ValueError: it is not a JSON object.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"METADATA must be a JSON object: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"METADATA must be a JSON object, not {text[:60]}")
    return found


def entry_of(ask: Ask, said: Said, number: int, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """One turn of the planner as training data: a record of OpenEnv's `TrainingTrace.from_entries`.

    Raises:
        ValueError: the answer has no token ids.
    """
    prompt = said.about.get("prompt_ids")
    if not prompt or not said.ids:
        raise ValueError("the planner's server returns no token ids; vLLM 0.10.2 or newer does (return_token_ids)")
    reply = {"role": "assistant", "content": said.text}
    return {
        "request": {"messages": [{"role": role, "content": text} for role, text in ask.messages], "tools": None},
        "response": {"choices": [{"message": reply, "finish_reason": said.about.get("finish_reason")}]},
        "prompt_token_ids": list(prompt),
        "completion_token_ids": list(said.ids),
        "per_token_logps": [min(each, 0.0) for each in said.log_probs],  # rounding may leave 1e-8
        "loss_mask": [0] * len(prompt) + [1] * len(said.ids),
        "metadata": {"node_id": str(number), "index": number, "sampling_params": dict(sampling)},
    }
