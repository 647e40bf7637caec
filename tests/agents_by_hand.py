"""An agent of two tools for episodes of two turns: look something up, then answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chat_servers import chat
from local_servers import Answer

from flowward.agent.episode import Observation, Use
from flowward.agent.external import Setup
from flowward.agent.modules import (
    PlannerByTemplate,
    Rule,
    VerifierByModel,
    context_as_input,
    last_result,
    stop_after_a_final_tool,
)
from flowward.agent.system import Answerer, Limits, System
from flowward.agent.templates import Templates
from flowward.agent.tools import Card

COLOURS = {"sky": "blue", "grass": "green"}
QUESTION = "Which colour has the sky?"


@dataclass(frozen=True)
class Tool:
    card: Card
    does: Callable[..., str]

    def __call__(self, **arguments: Any) -> str:
        return self.does(**arguments)


TOOLS = {
    "look": Tool(
        Card("look", "looks a colour up", {"properties": {"thing": {"type": "string"}}}), lambda thing: COLOURS[thing]
    ),
    "answer": Tool(Card("answer", "answers", {"properties": {"text": {"type": "string"}}}), lambda text: text),
}


def call(uses: Sequence[Use]) -> list[Observation]:
    return [Observation(TOOLS[use.tool](**use.arguments)) for use in uses]


def exact(answers: Sequence[str], questions: Sequence[str], metadata: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(answer == about["answer"]) for answer, about in zip(answers, metadata, strict=True)]


def setup(verifier: Answerer | None = None) -> Setup:
    """The agent; its verifier is a rule, or a chat model."""
    judge: Any = VerifierByModel("elsewhere", Templates()) if verifier else Rule(stop_after_a_final_tool)
    planner, executor = PlannerByTemplate(Templates()), Rule(context_as_input)
    system = System(planner, executor, judge, Rule(last_result), TOOLS, Limits(max_turns=4, max_tokens=32))
    return Setup(system, call, exact, {"elsewhere": verifier} if verifier else {})


def not_a_setup() -> int:
    return 3


def plans(request: dict[str, Any], **more: Any) -> Answer:
    """What a good planner says: it looks, then answers with what it saw."""
    seen = request["messages"][-1]["content"]
    found = next((colour for colour in COLOURS.values() if colour in seen), None)
    return chat(f"Tool: answer\nInput: {found}" if found else "Tool: look\nGoal: find it\nInput: sky", **more)
