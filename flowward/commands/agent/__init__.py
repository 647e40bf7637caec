"""flowward agent: its own commands, one module each."""

from __future__ import annotations

from importlib import import_module

from ...system.errors import unknown

COMMANDS = {
    "train": "train the planner of an agent with AgentFlow (five minutes on a laptop)",
    "solve": "answer one question, and show every turn",
    "eval": "measure planners: success with 95 % intervals, sampled and greedy",
    "export": "write a trained planner for transformers, peft, vLLM and SGLang",
    "prompts": "show the prompts of the modules, or copy them to a folder",
    "pretrain": "make the built-in planner's supervised start again",
}
EXAMPLES = (
    ("flowward agent train --output runs/agent", "train the built-in planner"),
    ("flowward agent solve 'what is oslo area plus rome age' --model runs/agent", "watch the trained planner at work"),
)


def run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "--help-all", "help"):
        print(_overview())
        return 0
    if words[0] not in COMMANDS:
        raise ValueError(unknown("command of flowward agent", words[0], COMMANDS))
    module = import_module(f"{__name__}.{words[0]}")
    return int(module.run(words[1:]))


def _overview() -> str:
    lines = [f"  {name:<12}{what}" for name, what in COMMANDS.items()]
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
