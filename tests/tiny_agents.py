"""An agent that needs no training to test the loop: a tiny random planner, two tools, questions with answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_language import language

from flowward.agent.algorithm import AgentFlow
from flowward.agent.episode import Messages, Observation, Plan, Unreadable, Use, Verdict
from flowward.agent.evaluation import AgentEvaluation, AgentEvaluator
from flowward.agent.language import Language
from flowward.agent.memory import Memory
from flowward.agent.modules import Rule, context_as_input, last_result
from flowward.agent.rewards import Term, load
from flowward.agent.rollout import InProcess, Player
from flowward.agent.system import Limits, System
from flowward.agent.tools import Card
from flowward.agent.trainer import AgentRun, AgentTrainer
from flowward.prompts import PromptSet

SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


class Echo:
    """Gives its text back, after its own name."""

    def __init__(self, name: str):
        self.card = Card(name, f"says {name}", SCHEMA)

    def __call__(self, text: str) -> str:
        return f"{self.card.name} {text}".strip()


class FirstWord:
    """The first word of an answer is the tool, the rest its text."""

    def ask(self, question: str, analysis: str, tools: Sequence[Card], memory: Memory) -> Messages:
        return (("user", " ".join([question, *(f"{entry.turn} {entry.result}" for entry in memory.entries)])),)

    def read(self, text: str, tools: Sequence[Card]) -> Plan:
        name, _, rest = text.partition(" ")
        if name not in {card.name for card in tools}:
            raise Unreadable(f"no tool {name}")
        return Plan(name, context=rest)


def until_b(question: str, analysis: str, tools: Sequence[Card], memory: Memory) -> Verdict:
    return Verdict(memory.entries[-1].tool == "b")


def system(model: Language, turns: int = 3, tokens: int = 3) -> System:
    return System(
        FirstWord(),
        Rule(context_as_input),
        Rule(until_b),
        Rule(last_result),
        {name: Echo(name) for name in "abcd"},
        Limits(max_turns=turns, max_tokens=tokens),
        model.reader(tokens),
    )


def call(agent: System, uses: Sequence[Use]) -> list[Observation]:
    return [Observation(agent.tools[use.tool](**use.arguments)) for use in uses]


def questions() -> PromptSet:
    """The right answer begins with b."""
    texts = ("a", "b a", "c", "d d", "a b c", "e", "f g", "h")
    return PromptSet("tiny", texts, tuple("xyxyxyxy"), metadata=tuple({"answer": "b"} for _ in texts))


def starts_with(answers: Sequence[str], asked: Sequence[str], about: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    return torch.tensor([float(answer.startswith(own["answer"])) for answer, own in zip(answers, about, strict=True)])


def player(model: Language, at_once: int = 64, temperature: float = 1.0, **limits: int) -> Player:
    agent = system(model, **limits)
    return Player(
        agent, InProcess(model, temperature, agent.limits.max_tokens), lambda uses: call(agent, uses), {}, at_once
    )


def trainer(
    algorithm: AgentFlow | None = None, adapters: int | None = None, output: Path | None = None, **run: Any
) -> AgentTrainer:
    model = language(adapters=adapters)
    given: dict[str, Any] = {
        "iterations": 4, "questions_per_update": 2, "group_size": 4, "updates_per_iteration": 2, "learning_rate": 1e-2,
        "warmup": 0, "output": output,
    }  # fmt: skip
    settings = AgentRun(**(given | run))
    terms = [Term("starts", 1.0, starts_with)]
    playing = player(model, settings.rollout_batch)
    return AgentTrainer(algorithm or AgentFlow(), model, playing, terms, questions(), settings)


def evaluator(own: AgentTrainer, episodes: int = 8) -> AgentEvaluator:
    return AgentEvaluator(own.player, own.questions, load(["exact"]), AgentEvaluation(episodes=episodes), {})
