"""The options of every command at their extremes: what is tried, and the program with a toy in the place of a model.

Cases come from the options' own tables (`options_of`), so an option that is added is tried too.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from flowward.agent import config as agents
from flowward.commands import (
    advise,
    algorithms,
    bench,
    compare,
    eval,
    export,
    front,
    memory,
    report,
    sample,
    serve_reward,
    study,
    verify,
    watch,
)
from flowward.commands import list as lists
from flowward.commands import pretrain as pretraining
from flowward.commands.agent import eval as agent_eval
from flowward.commands.agent import export as agent_export
from flowward.commands.agent import pretrain as agent_pretrain
from flowward.commands.agent import prompts as agent_prompts
from flowward.commands.agent import solve as agent_solve
from flowward.commands.agent import train as agent_train
from flowward.commands.help import Option, Page, options_of
from flowward.evaluation.evaluate import Evaluation
from flowward.models.weights import Full
from flowward.process.policy import Condition, Policy
from flowward.scenes.recipe import Pretrain
from flowward.training import config

NUMBERS = ("-1", "0", "1", str(10**30), "1e308", "nan", "inf", "-inf", "1e-308")
LONG = "x" * 5000
TEXTS = ("", "\u202e\U0001f9e0e\u0301\x1b[31m", "\ud800", LONG)
PATHS = ("missing/file", ".", "null", *TEXTS)  # `null`: a link to /dev/null, which root could replace
SECONDS = 5  # of a case, at most


class Toy(Policy):
    """A model whose velocity is one product; its samples are pictures of 4 x 4 squares."""

    name = "toy"
    identity: dict[str, Any] = {"family": "toy", "base": "toy"}  # noqa: RUF012
    latent_shape = (16,)
    image_size = (32, 32)
    precision = "float32"
    device = torch.device("cpu")
    two_times = True  # whatever the end of a jump

    def __init__(self) -> None:
        network = nn.Linear(16, 16, bias=False)
        nn.init.eye_(network.weight)
        self.weights = Full(network)

    def encode(self, prompts: Sequence[Any]) -> Condition:
        return Condition({"nothing": torch.zeros(len(prompts), 1)})

    def velocity(self, x: Tensor, t: Tensor, condition: Condition, weights: str = "policy") -> Tensor:
        gradients = torch.is_grad_enabled() and weights == "policy"
        with torch.set_grad_enabled(gradients), self.weights.network(weights) as network:
            v: Tensor = network(x)
        return v

    def decode(self, x0: Tensor) -> Tensor:
        small = x0.view(-1, 1, 4, 4).clamp(0, 1)
        return small.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)

    def encode_images(self, images: Tensor) -> Tensor:
        return images[:, 0, ::8, ::8].flatten(1)


@dataclass(frozen=True)
class Command:
    """A command with its options, and the words without which it does nothing."""

    name: str
    kind: Any
    page: Page
    words: tuple[str, ...] = ()
    default: Any = None

    @property
    def options(self) -> list[Option]:
        return [*self.page.beside, *options_of(self.kind, self.default)]

    def cases(self, known: set[tuple[str, str]]) -> Iterator[tuple[Option, list[str]]]:
        """The command lines with one option at an extreme; without `known` options, which the caller has tried."""
        for option in self.options:
            if (option.name, option.metavar) not in known:
                yield from ((option, words(self, option, value)) for value in values(option))


def _settings(name: str) -> Any:
    return config.settings_type(name)()


COMMANDS = (
    Command("sample", sample.Sample, sample.PAGE, ("scenes", "a circle", "--output", "new.png", "--steps", "2")),
    Command(
        "eval",
        eval.Evaluate,
        eval.PAGE,
        ("scenes", "--images", "4", "--steps", "2", "--rewards", "balance"),
        eval.Evaluate(evaluation=Evaluation()),
    ),
    Command("front", front.Front, front.PAGE, ("run", "--images", "4", "--steps", "2")),
    Command("export", export.Export, export.PAGE, ("run",)),
    Command("bench", bench.Bench, bench.PAGE, ("--repeats", "1", "--images-per-update", "24")),
    Command("memory", type(_settings("awm")), memory.PAGE, ("--model", "owner/name"), _settings("awm")),
    Command("serve-reward", serve_reward.ServeReward, serve_reward.PAGE, ("balance",)),
    Command("pretrain", Pretrain, pretraining.PAGE, ("scenes", "--output", "new")),
    Command("verify", verify.Verify, verify.PAGE),
    Command("report", report.Report, report.PAGE, ("run",)),
    Command("watch", watch.Watch, watch.PAGE, (".",)),
    Command("study", study.StudyOptions, study.PAGE, ("study.yaml", "--output", "studied")),
    Command("compare", compare.Compare, compare.PAGE, ("run", "other")),
    Command("list", lists.List, lists.PAGE),
    Command("advise", advise.Advise, advise.PAGE, ("--reward", "scenes", "--gpu", "none")),
    Command("algorithms", algorithms.Algorithms, algorithms.PAGE),
    Command(
        "agent train",
        agents.Settings,
        agent_train.PAGE,
        ("--dry-run", "--questions", "questions.jsonl", "--evaluation.questions", "questions.jsonl"),
        agents.starting(None, None),
    ),
    Command("agent solve", agent_solve.Solve, agent_solve.PAGE, ("what is the age of arlo", "--max-turns", "2")),
    Command("agent eval", agent_eval.Eval, agent_eval.PAGE, ("world", "--episodes", "2")),
    Command("agent export", agent_export.Export, agent_export.PAGE, ("agent",)),
    Command("agent prompts", agent_prompts.Prompts, agent_prompts.PAGE),
    Command("agent pretrain", agent_pretrain.Pretrain, agent_pretrain.PAGE, ("--output", "new")),
)


def values(option: Option) -> Sequence[str]:
    """What is tried of an option."""
    if option.switch is not None or not option.metavar:
        return ()
    kind = option.metavar
    if any(word in kind for word in ("NUMBER", "GB", "HEIGHT", "BETA")) or kind.split("|")[0].split()[0] == "N":
        return NUMBERS
    if any(word in kind for word in ("PATH", "FILE", "RUN")):
        return PATHS
    return TEXTS


def words(command: Command, option: Option, value: str) -> list[str]:
    """The command line with an option at this value."""
    many = len(option.metavar.split()) if option.metavar in ("HEIGHT WIDTH", "BETA1 BETA2") else 1
    name = command.name.split()
    if option.positional:
        return [*name, *command.words[1:], *([value] * many)]
    return [*name, *command.words, f"--{option.name}", *([value] * many)]


class TooLong(BaseException):
    """A case that does not end."""


@contextmanager
def hurried(seconds: int = SECONDS) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TooLong(f"more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def changed(owner: Any, path: Sequence[str], value: Any) -> Any:
    """A dataclass with another value at a path of fields."""
    name, *rest = path
    return replace(owner, **{name: changed(getattr(owner, name), rest, value) if rest else value})


def numbers(owner: Any, known: set[tuple[type, str]]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each number in a dataclass and below, with functions that set it to an extreme; without `known` fields."""
    for option in options_of(type(owner), owner):
        path, own = option.name.replace("-", "_").split("."), owner
        for name in path[:-1]:
            own = getattr(own, name)
        if values(option) is not NUMBERS or (type(own), path[-1]) in known:
            continue
        known.add((type(own), path[-1]))
        whole = option.metavar.split("|")[0].split()[0] == "N"
        many = {"NUMBER ...": 1, "N ...": 1, "BETA1 BETA2": 2}.get(option.metavar, 0)
        for text in NUMBERS:
            if not whole or text.lstrip("-").isdecimal():
                value: Any = int(text) if whole else float(text)
                yield f"{option.name} {text}", partial(changed, owner, path, (value,) * many or value)
