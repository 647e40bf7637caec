"""The four modules of an agent (AgentFlow, arXiv:2510.05592, section 3.1) as callables, and query analysis.

A module is called with what it may read, and nothing else. It is a generator (`Steps`): it yields requests to language
models, if it has any, and returns its decision. So a rule, a chat model and the planner's own model look the same to
the system, and the driver can answer the requests of many episodes in one batch.

| module | reads | returns |
| --- | --- | --- |
| planner | question, analysis, tools, memory | a plan: goal, context, tool |
| executor | question, plan, the tool's card; not the memory | the tool's arguments |
| verifier | question, analysis, tools, memory; never the answer | stop or continue |
| generator | question, analysis, memory | the answer |
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .episode import Ask, Messages, Plan, Steps, Unreadable, Verdict
from .memory import Memory
from .templates import Templates
from .tools import Card


class Planner(Protocol):
    """The planner's side of a turn: the prompt, and how its answer is read. Its model is what is trained."""

    def ask(self, question: str, analysis: str, tools: Sequence[Card], memory: Memory) -> Messages: ...

    def read(self, text: str, tools: Sequence[Card]) -> Plan: ...  # raises Unreadable


class Executor(Protocol):
    def __call__(self, question: str, plan: Plan, tool: Card, /) -> Steps[Mapping[str, Any]]: ...


class Verifier(Protocol):
    def __call__(self, question: str, analysis: str, tools: Sequence[Card], memory: Memory, /) -> Steps[Verdict]: ...


class Generator(Protocol):
    def __call__(self, question: str, analysis: str, memory: Memory, /) -> Steps[str]: ...


class Analyst(Protocol):
    def __call__(self, question: str, tools: Sequence[Card], /) -> Steps[str]: ...


@dataclass(frozen=True)
class Rule:
    """A module by rule: a function of what the module may read."""

    rule: Callable[..., Any]

    def __call__(self, *read: Any) -> Steps[Any]:
        yield from ()  # it asks nobody
        return self.rule(*read)


@dataclass(frozen=True)
class PlannerByTemplate:
    """The planner of any chat model."""

    templates: Templates

    def ask(self, question: str, analysis: str, tools: Sequence[Card], memory: Memory) -> Messages:
        return self.templates.filled("planner", question=question, analysis=analysis, tools=tools, memory=memory)

    def read(self, text: str, tools: Sequence[Card]) -> Plan:
        return read_plan(text, tools)


@dataclass(frozen=True)
class ExecutorByModel:
    """A chat model that turns a plan into the arguments of a tool."""

    model: str
    templates: Templates

    def __call__(self, question: str, plan: Plan, tool: Card) -> Steps[Mapping[str, Any]]:
        filled = self.templates.filled("executor", question=question, plan=plan, tool=tool)
        said = yield Ask("executor", self.model, filled)
        return read_arguments(said.text)


@dataclass(frozen=True)
class VerifierByModel:
    """A chat model that decides whether the memory is enough to answer."""

    model: str
    templates: Templates

    def __call__(self, question: str, analysis: str, tools: Sequence[Card], memory: Memory) -> Steps[Verdict]:
        shown = {"question": question, "analysis": analysis, "tools": tools, "memory": memory}
        said = yield Ask("verifier", self.model, self.templates.filled("verifier", **shown))
        return read_verdict(said.text)


@dataclass(frozen=True)
class GeneratorByModel:
    """A chat model that writes the answer."""

    model: str
    templates: Templates

    def __call__(self, question: str, analysis: str, memory: Memory) -> Steps[str]:
        shown = {"question": question, "analysis": analysis, "memory": memory}
        said = yield Ask("generator", self.model, self.templates.filled("generator", **shown))
        return read_answer(said.text)


@dataclass(frozen=True)
class AnalystByModel:
    """A chat model that says, before the first turn, which skills and tools the question needs."""

    model: str
    templates: Templates

    def __call__(self, question: str, tools: Sequence[Card]) -> Steps[str]:
        said = yield Ask("analyst", self.model, self.templates.filled("analyst", question=question, tools=tools))
        text: str = said.text
        return text.strip()


def no_analysis(question: str, tools: Sequence[Card]) -> str:
    """The rule of an agent without query analysis."""
    return ""


def context_as_input(question: str, plan: Plan, tool: Card) -> Mapping[str, Any]:
    """The executor by rule: the plan's context is the tool's one text argument, or a JSON object of all of them.

    Raises:
        Unreadable: the tool needs several arguments, and the context is not a JSON object.
    """
    needed = tool.required
    if len(needed) == 1 and tool.properties.get(needed[0], {}).get("type", "string") == "string":
        return {needed[0]: plan.context}
    return read_arguments(plan.context)


def stop_after_a_final_tool(question: str, analysis: str, tools: Sequence[Card], memory: Memory) -> Verdict:
    """The verifier by rule: stop once a tool that answers by itself (`answer`) has been used."""
    last = memory.entries[-1].tool if memory.entries else ""
    return Verdict(last in FINAL, f"{last} gives an answer" if last in FINAL else "")


FINAL = ("answer",)  # tools after which `stop_after_a_final_tool` stops


def last_result(question: str, analysis: str, memory: Memory) -> str:
    """The generator by rule: the result of the last step that used a tool."""
    return next((entry.result for entry in reversed(memory.entries) if entry.tool), "")


def read_plan(text: str, tools: Sequence[Card]) -> Plan:
    """The plan in a text: the last `Tool:`, `Goal:` and `Input:` lines, or a JSON object with these keys.

    Names of tools are compared by their letters and digits alone, without case. What follows in later lines is no part
    of a name.

    Raises:
        Unreadable: it is empty, names no tool, or names an unknown one.
    """
    if not text.strip():
        raise Unreadable("the plan was empty", "empty")
    labelled = _labelled(text, ("tool", "goal", "input"))
    found: Mapping[str, Any] = labelled if "tool" in labelled else _json_object(text) or {}  # an input may be JSON
    name = next((str(value) for key, value in found.items() if key.lower() == "tool"), "").strip().partition("\n")[0]
    if not name:
        raise Unreadable("the plan names no tool")
    known = {_plain(card.name): card.name for card in tools}
    if _plain(name) not in known:
        raise Unreadable(f"there is no tool '{name[:60]}'; the tools are {', '.join(known.values())}", "tool")
    lower = {key.lower(): value for key, value in found.items()}
    context = lower.get("input", lower.get("context", ""))
    context = context if isinstance(context, str) else json.dumps(context, ensure_ascii=False)
    return Plan(known[_plain(name)], str(lower.get("goal", "")).strip(), context.strip())


def read_arguments(text: str) -> Mapping[str, Any]:
    """The last JSON object in a text.

    Raises:
        Unreadable: there is none.
    """
    found = _json_object(text)
    if found is None:
        raise Unreadable("the tool's arguments were not a JSON object", "arguments")
    return found


def read_verdict(text: str) -> Verdict:
    """The decision on the last `Decision: STOP` or `Decision: CONTINUE` line; a text with neither means continue.

    Only such a line counts: "we cannot stop here" does not stop, nor does a line that names both.
    """
    chosen = last_choice(text, "decision", ("stop", "continue"))
    return Verdict(chosen == "stop", text.strip(), decided=bool(chosen))


def last_choice(text: str, label: str, choices: Sequence[str]) -> str:
    """The choice on the last line `LABEL: CHOICE` that does not offer several; empty if there is none."""
    pattern = rf"^[\s*_#>-]*{label}[\s*_]*:[\s*_]*({'|'.join(choices)})\b(?![\s*_]*(?:or\b|[/|]))"
    found = re.findall(pattern, text, re.IGNORECASE | re.MULTILINE)
    return str(found[-1]).lower() if found else ""


def read_answer(text: str) -> str:
    """What stands between the last <answer> and </answer>, or the whole text."""
    found = re.findall(r"<answer>(.*?)</answer>", text, re.IGNORECASE | re.DOTALL)
    return str(found[-1] if found else text).strip()


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _labelled(text: str, labels: Sequence[str]) -> dict[str, str]:
    """The text after the last line that begins with each label, up to the next label."""
    pattern = rf"^[\s*_#-]*({'|'.join(labels)})[\s*_]*:[\s*_]*"
    parts = re.split(pattern, text, flags=re.IGNORECASE | re.MULTILINE)
    return {label.lower(): value.strip() for label, value in zip(parts[1::2], parts[2::2], strict=True)}


def _json_object(text: str) -> dict[str, Any] | None:
    """The last JSON object that stands in a text, not inside another one."""
    decoder, at, found = json.JSONDecoder(), text.find("{"), None
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            found = value if isinstance(value, dict) else found
        at = text.find("{", end)
    return found
