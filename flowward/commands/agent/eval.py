"""flowward agent eval"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ...system import strict_json, whole_files
from ...system.terminal import visible
from .. import outputs
from ..help import Page
from ..options import parse, set_threads
from .asking import Modules

PAGE = Page(
    about="Measure planners on the same questions: success of sampled and of greedy episodes with 95 % intervals, "
    "overall and by category, tools, turns, and how episodes end. Every number names the model of every module.",
    examples=(
        ("agent eval world runs/agent", "before and after training, on held-out questions of the built-in world"),
        ("agent eval runs/agent --questions mine.jsonl --episodes 200 --json scores.json", "on your own questions"),
        ("agent eval runs/agent --verifier http://host:8000/v1#qwen", "the same planner with another verifier"),
    ),
    first=(
        *("questions", "question-column", "reward", "episodes", "seed", "weights", "at", "json", "overwrite"),
        *("tools", "executor", "verifier", "generator", "max-turns"),
    ),
)


@dataclass(frozen=True)
class Eval:
    """Measure planners on the same questions."""

    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL [MODEL ...]")]
    """run folders, `world`, folders, or owner/name on the hub"""
    questions: str | None = None
    """measure on these questions (none: those of the first run's evaluation)"""
    question_column: str | None = None
    """read questions from this column or key (none: question, prompt, text)"""
    reward: tuple[str, ...] | None = None
    """score answers with these (none: those of the first run)"""
    episodes: int | None = None
    """play this many sampled and as many greedy episodes (none: as in the run)"""
    seed: int | None = None
    """random seed of the sampled episodes (none: as in the run)"""
    weights: Literal["policy", "ema", "reference"] = "policy"
    """of runs: the trained `policy`, its `ema` average, or the `reference` before training"""
    at: Annotated[int | Literal["best"] | None, tyro.conf.arg(metavar="ITERATION|best")] = None
    """of runs: use the checkpoint of this iteration (none: the newest)"""
    json: Path | None = None
    """write scores, behaviour and some episodes to this file"""
    overwrite: bool = False
    """replace an existing --json file"""
    threads: int | None = None
    """use this many CPU threads (default: torch's choice)"""
    modules: Annotated[Modules, tyro.conf.OmitArgPrefixes] = field(default_factory=Modules)


def run(words: list[str]) -> int:
    asked: Eval = parse(Eval, words, "agent eval", page=PAGE)
    if not asked.models:
        raise ValueError("name at least one planner: flowward agent eval world runs/agent")
    if asked.json:
        outputs.refuse(asked.json, asked.overwrite, "--json")
    set_threads(asked.threads)
    found = {name: _measured(name, asked) for name in dict.fromkeys(asked.models)}
    _table(found)
    if asked.json:
        whole_files.write(asked.json, strict_json.dumps({"models": found}, 2) + "\n")
        print(visible(str(asked.json)))
    return 0


def _measured(name: str, asked: Eval) -> dict[str, Any]:
    """The summary of one planner, with the episodes that are shown."""
    from ...agent import trained
    from ...agent.assembly import evaluator_of, player_of

    first, settings = (
        trained.settings_of(each, None if trained.is_run(each) else asked.modules.preset)
        for each in (next(filter(trained.is_run, asked.models), asked.models[0]), name)
    )
    settings = trained.changed(settings, asked.modules)
    how = first.evaluation
    given = {
        key: value
        for key in ("questions", "question_column", "episodes", "seed")
        if (value := getattr(asked, key)) is not None
    }
    settings = replace(
        settings, evaluation=replace(how, **given, weights="policy"), reward=asked.reward or first.reward
    )
    language, about = trained.load(name, settings, asked.weights, asked.at)
    with player_of(settings, language) as player:
        measured = evaluator_of(settings, player).measure()
    return {**measured.summary(), "model": about, "shown": list(measured.shown)}


def _table(found: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ...evaluation.outcome import Measure

    console = Console(highlight=False, markup=False, emoji=False)
    first = next(iter(found.values()))
    for score in first["scores"]:
        measure = Measure.of(score, list(enumerate(found.values())))
        grid = Table(title=visible(measure.label), title_justify="left")
        grid.add_column("category")
        for name in found:
            grid.add_column(visible(name), justify="right", overflow="fold")
        grid.add_row("overall", *[measure.interval(each["scores"][score]["overall"]) for each in found.values()])
        for category in first["scores"][score]["categories"]:
            cells = [measure.interval(each["scores"][score]["categories"][category]) for each in found.values()]
            grid.add_row(visible(category), *cells)
        console.print(grid)
    grid = Table(title="behaviour of sampled episodes", title_justify="left")
    grid.add_column("")
    for name in found:
        grid.add_column(visible(name), justify="right", overflow="fold")
    own = [each["behaviour"]["sampled"] for each in found.values()]
    grid.add_row("turns", *[f"{each['turns']:.2f}" for each in own])
    for end in dict.fromkeys(name for each in own for name, share in each["ends"].items() if share):
        grid.add_row(f"ended: {end}", *[f"{each['ends'][end]:.0%}" for each in own])
    for tool in dict.fromkeys(name for each in own for name in each["used"]):
        grid.add_row(visible(f"used: {tool}"), *[f"{each['used'].get(tool, 0):.0%}" for each in own])
    for trouble in dict.fromkeys(name for each in own for name, share in each["troubles"].items() if share):
        grid.add_row(f"turns with trouble: {trouble}", *[f"{each['troubles'][trouble]:.1%}" for each in own])
    console.print(grid)
    for name, each in found.items():
        modules = ", ".join(f"{module} {model}" for module, model in each["modules"].items())
        console.print(visible(f"{name}: {modules}; {each['episodes']} episodes on {each['prompts']}"), soft_wrap=True)
