"""The commands of the program, one module each with a `run(words) -> exit code`, imported when it is called."""

from __future__ import annotations

from importlib import import_module
from typing import Any

COMMANDS = {
    "demo": "train the built-in model and write a report (start here)",
    "train": "post-train a model with reinforcement learning",
    "agent": "train, measure and use language agents that plan over several turns",
    "sample": "sample images from a model or a run",
    "eval": "measure models and runs: scores with 95 % intervals",
    "front": "measure a palette of adapters at a grid of weights",
    "report": "write a run's report.html",
    "watch": "follow all runs of a folder on a local web page",
    "study": "compare algorithms at equal budgets, over seeds and rewards",
    "compare": "draw the curves of several runs in the same charts",
    "export": "write a run's weights for diffusers, with a model card",
    "advise": "recommend an algorithm, settings and batch sizes for your model and GPU",
    "algorithms": "list the algorithms, or show one: paper, cost, presets",
    "list": "list rewards, prompts, suites, recipes, models or presets",
    "memory": "estimate GPU memory and batch size (no GPU needed)",
    "verify": "test each algorithm against exact results",
    "bench": "measure the speed of flowward itself",
    "serve-reward": "serve a reward over HTTP, for runs on any machine",
    "pretrain": "train the built-in base model from scratch",
}

AGENT = {  # the commands of `flowward agent`
    "train": "train the planner of an agent with AgentFlow (two minutes on a laptop)",
    "solve": "answer one question, and show every turn",
    "eval": "measure planners: success with 95 % intervals, sampled and greedy",
    "export": "write a trained planner for transformers, peft, vLLM and SGLang",
    "prompts": "show the prompts of the modules, or copy them to a folder",
    "pretrain": "make the built-in planner's supervised start again",
}


def every() -> dict[str, str]:
    """All commands that have options, and what they do; those of `agent` are named with it, as in `agent train`."""
    below = {"agent": AGENT}
    return {
        name if own == "" else f"{name} {own}": what
        for name, text in COMMANDS.items()
        for own, what in below.get(name, {"": text}).items()
    }


def module(name: str) -> Any:
    """The module of a command, such as `agent train`."""
    return import_module(f"{__name__}.{name.replace(' ', '.').replace('-', '_')}")
