"""flowward agent solve"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from ...system import strict_json
from ...system.terminal import tell, visible
from ..help import Page
from ..options import parse, set_threads
from .asking import Modules

PAGE = Page(
    about="Answer one question with an agent, and show every turn as it happens: the plan, the tool, its result, and "
    "what the verifier says.",
    examples=(
        ("agent solve 'what is the height of arlo plus the age of brim' --model runs/agent", "the planner of a run"),
        ("agent solve 'what is 17 ** 4 - 1?' --model my/model --tools calculator", "any chat model as planner"),
        ("agent solve 'what is 17 ** 4 - 1?' --model runs/agent --json", "one JSON object, for programs"),
    ),
    first=("model", "weights", "at", "tools", "executor", "verifier", "generator", "max-turns", "sampled", "json"),
)


@dataclass(frozen=True)
class Solve:
    """Answer one question with an agent."""

    question: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="QUESTION")]
    """the question"""
    model: str = "world"
    """planner: a run folder, `world`, a folder, or owner/name on the hub"""
    weights: Literal["policy", "ema", "reference"] = "policy"
    """of a run: the trained `policy`, its `ema` average, or the `reference` before training"""
    at: Annotated[int | Literal["best"] | None, tyro.conf.arg(metavar="ITERATION|best")] = None
    """of a run: use the checkpoint of this iteration (none: the newest)"""
    sampled: bool = False
    """sample the planner instead of taking its likeliest tokens"""
    seed: int = 0
    """random seed, with --sampled"""
    json: bool = False
    """print the episode as one JSON object, and nothing else"""
    threads: int | None = None
    """use this many CPU threads (default: torch's choice)"""
    modules: Annotated[Modules, tyro.conf.OmitArgPrefixes] = field(default_factory=Modules)


def run(words: list[str]) -> int:
    asked: Solve = parse(Solve, words, "agent solve", page=PAGE)
    if not asked.question.strip():
        raise ValueError("the question is empty")
    if asked.seed < 0:
        raise ValueError(f"seed must be 0 or more, not {asked.seed}")
    from ...agent import trained  # after the flags, so that --help does not wait for torch
    from ...agent.assembly import player_of
    from ...agent.evaluation import recorded

    set_threads(asked.threads)
    settings = trained.changed(trained.settings_of(asked.model, asked.modules.preset), asked.modules)
    language, about = trained.load(asked.model, settings, asked.weights, asked.at)
    player = player_of(settings, language)
    player.system.refuse(asked.question)
    keys = [("solve", asked.seed)] if asked.sampled else None
    with player:
        show: Any = _silent if asked.json else _Shown(settings.modules)
        (episode,), _ = player.play([asked.question], keys=keys, seen=show)
    if asked.json:
        print(strict_json.dumps({"question": asked.question, "planner": about, "modules": settings.modules,
                                 **recorded(episode), "seconds": round(episode.seconds, 3)}, 2))  # fmt: skip
    elif episode.failed:
        tell(f"no answer: {episode.why}")
    return 1 if episode.failed else 0


def _silent(name: str, value: Any) -> None:
    """Programs read the JSON at the end."""


class _Shown:
    """Prints what happens in an episode."""

    def __init__(self, modules: dict[str, str]):
        from rich.console import Console

        self._console = Console(highlight=False, markup=False, emoji=False)
        self._turn = 0
        named = ", ".join(f"{name} {model}" for name, model in modules.items() if model != "none")
        self._print(named, "dim")

    def __call__(self, name: str, value: Any) -> None:
        getattr(self, f"_{name}")(value)

    def _print(self, text: str, style: str = "", indent: int = 0) -> None:
        from rich.padding import Padding
        from rich.text import Text

        self._console.print(Padding(Text(visible(text), style=style), (0, 0, 0, indent), expand=False))

    def _analysis(self, text: str) -> None:
        if text:
            self._print("analysis", "bold")
            self._print(text, indent=2)

    def _planned(self, plan: Any) -> None:
        self._turn += 1
        self._console.print()
        if isinstance(plan, Exception):
            self._print(f"turn {self._turn}: the plan could not be used", "bold red")
            self._print(str(plan), indent=2)
            return
        self._print(f"turn {self._turn}: {plan.tool}", "bold cyan")
        if plan.goal:
            self._print(f"goal    {plan.goal}", indent=2)

    def _observed(self, entry: Any) -> None:
        if entry.command:
            self._print(f"input   {entry.command}", indent=2)
        self._print(f"result  {entry.result}", "red" if entry.result.startswith("error: ") else "", indent=2)

    def _judged(self, verdict: Any) -> None:
        said = "stop" if verdict.stop else "continue" if verdict.decided else "undecided, so continue"
        self._print(f"check   {said}" + (f": {verdict.why}" if verdict.why else ""), "dim", indent=2)

    def _answered(self, text: str) -> None:
        self._console.print()
        self._print(f"answer: {text or '(empty)'}", "bold green")
