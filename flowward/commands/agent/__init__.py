"""flowward agent: its own commands, one module each."""

from __future__ import annotations

from ...system.errors import unknown
from .. import AGENT, module

EXAMPLES = (
    ("flowward agent train --output runs/agent", "train the built-in planner"),
    (
        "flowward agent solve 'what is the height of arlo plus the age of brim' --model runs/agent",
        "watch the trained planner at work",
    ),
)


def run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "--help-all", "help"):
        print(_overview())
        return 0
    if words[0] not in AGENT:
        raise ValueError(unknown("command of flowward agent", words[0], AGENT))
    return int(module(f"agent {words[0]}").run(words[1:]))


def _overview() -> str:
    lines = [f"  {name:<12}{what}" for name, what in AGENT.items()]
    examples = [line for command, what in EXAMPLES for line in (f"  # {what}", f"  {command}")]
    return "\n".join(
        [
            "flowward agent: language agents that plan over several turns, and AgentFlow, which trains their planner",
            "",
            "usage: flowward agent COMMAND [options]",
            "",
            *lines,
            "",
            "flowward agent COMMAND --help shows the options of a command.",
            "",
            "First steps",
            *examples,
        ]
    )
