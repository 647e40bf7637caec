"""The references of config.yaml: the options of `flowward train` and of `flowward agent train`, by their keys."""

from __future__ import annotations

from collections.abc import Sequence

from flowward.commands.help import Option

from .commands import defaulted, grouped, shown, title, value
from .markdown import code, fenced, plain, table

PAGE = "reference/config.md"
AGENTS = "reference/agent_config.md"
HEAD = """# config.yaml

This page is for writing a config file: every key, its values and its default. Start from a file that is complete:

{start}

A config file contains only what differs from the defaults. For example:

{example}

Sections such as `run` and `evaluation` are joined with the defaults key by key. Lists are replaced as a whole.
`base: FILE` builds on another file, and options on the command line override all files. An unknown key is an error, and
the message names the key you may have meant.
"""
HEAD_OF_AGENTS = """# config.yaml of agents

This page is for writing a config file of a language agent: every key, its values and its default. Start from a file
that is complete:

{start}

A config file contains only what differs from the defaults. For example:

{example}

The defaults are those of the preset `world`. A file for another model names the preset that it starts from, under
`algorithm`. Otherwise the rules are those of [config.yaml](config.md).
"""
START_OF_AGENTS = """
flowward agent train --print-config > mine.yaml        # all settings with their defaults
flowward agent train --config mine.yaml --output runs/mine
"""
EXAMPLE_OF_AGENTS = """
kind: agent
model: Qwen/Qwen2.5-7B-Instruct
questions: train:questions.jsonl
tools: [calculator, "search:documents"]
lora_rank: 64
evaluation:
  questions: held-out:questions.jsonl
algorithm:
  name: agentflow
  preset: qwen2.5-7b
"""
START = """
flowward train --print-config > mine.yaml        # all settings with their defaults
flowward train --config mine.yaml --output runs/mine
"""
EXAMPLE = """
reward: [scenes]
lora_rank: 16
run:
  iterations: 200
  learning_rate: 0.0003
algorithm:
  name: flow_grpo      # the preset `scenes` of it, unless `preset: NAME` is given
  clip: 0.001
"""


def key(option: Option) -> str:
    """The path of an option in config.yaml."""
    name = option.name.rpartition(".")[2].replace("-", "_")
    return f"{option.group}.{name}" if option.group else name


def settings(algorithm: str | None = None) -> Sequence[Option]:
    """Everything that a config.yaml can hold, except the names of algorithm and preset."""
    return shown("train", *(["--algorithm", algorithm] if algorithm else []))[1]


def rows(own: Sequence[Option]) -> list[list[str]]:
    """Lines of a table of keys."""
    texts = [(each, *defaulted(each)) for each in own]
    return [[code(key(each)), plain(text), value(d), code(each.metavar or "true|false")] for each, text, d in texts]


def _page() -> str:
    page, _ = shown("train")
    parts = [HEAD.format(start=fenced(START), example=fenced(EXAMPLE, "yaml"))]
    names = [
        ["`algorithm.name`", "algorithm, see [the list](../algorithms/index.md)", "`advantageflow`", "`NAME`"],
        ["`algorithm.preset`", "settings of that algorithm; the other keys change them", "`scenes`", "`NAME`"],
    ]
    for group, own in grouped(settings()).items():
        lines = names + rows(own) if group == "algorithm" else rows(own)
        head = "Model, rewards and prompts" if not group else title(group, page)
        parts += [f"## {head}", table(["key", "meaning", "default", "values"], lines)]
    parts.append(
        "The keys below `algorithm` are those of AdvantageFlow. Each [algorithm](../algorithms/index.md) has its own."
    )
    return "\n\n".join(parts) + "\n"


def _page_of_agents() -> str:
    page, own = shown("agent train")
    parts = [HEAD_OF_AGENTS.format(start=fenced(START_OF_AGENTS), example=fenced(EXAMPLE_OF_AGENTS, "yaml"))]
    first = [["`kind`", "says that this file is about agents", "`agent`", "`agent`"]]
    names = [
        ["`algorithm.name`", "the algorithm", "`agentflow`", "`agentflow`"],
        ["`algorithm.preset`", "settings to start from; the other keys change them", "`world`", "`NAME`"],
    ]
    for group, options in grouped(own).items():
        lines = {"": first, "algorithm": names}.get(group, []) + rows(options)
        head = "Agent, questions and rewards" if not group else title(group, page)
        parts += [f"## {head}", table(["key", "meaning", "default", "values"], lines)]
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """One page for training on images, and one for agents."""
    return {PAGE: _page(), AGENTS: _page_of_agents()}
