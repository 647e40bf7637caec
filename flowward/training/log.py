"""Terminal output: progress of a run, and tables of evaluations."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from ..evaluation.outcome import Measure, settings, without_figures
from ..system.terminal import visible
from .metrics import Step
from .run import Run

if TYPE_CHECKING:
    from ..evaluation.comparison import Difference


RECENT = 10  # iterations that the ETA follows
WIDE = 80  # columns of a terminal with room for the last score next to the reward


class TrainProgress:
    """A progress bar with the reward and the last score, or one plain line per iteration if there is no terminal."""

    def __init__(self, run: Run, first: int, where: Path | None):
        """`first` is the number of finished iterations, `where` the run folder, if there is one."""
        # a notebook shows plain lines: a bar there needs ipywidgets, and is lost when the notebook is saved
        self._console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, force_jupyter=False)
        self._run, self._last = run, time.perf_counter()
        self._spent: deque[float] = deque(maxlen=RECENT)  # seconds of the last iterations, without evaluations
        self._measured = 0.0  # seconds of the last evaluation
        self._bar = Progress(
            BarColumn(),  # shrinks in a narrow terminal
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("ETA"),
            TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=run.iterations, completed=first, figures="", left="")
        self._score = ""
        self._first_evaluation: dict[str, Any] | None = None
        self._said: set[str] = set()
        if where:
            self.say(f"run folder: {where}")

    def __enter__(self) -> TrainProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        self._console.print(visible(text))

    def show(self, step: Step) -> None:
        """Print one finished iteration."""
        if step.evaluation:
            self.say(f"iteration {step.index}: {headline(step.evaluation)}")
            if self._console.width >= WIDE:
                measure = Measure.every([(step.index, step.evaluation)])[0]
                self._score = f"{measure.name} {measure.number(measure.overall[0][1]['mean'])}"
        left = self._left(step)
        if not step.metrics:
            return
        figures = f"reward {step.metrics['reward']:.3f}"
        if not self._console.is_terminal:
            seconds = sum(step.seconds.values())
            self.say(
                f"[{step.index}/{self._run.iterations}] {figures}  gradient norm {step.metrics['gradient_norm']:.2f}  "
                f"{seconds:.1f} s  ETA {left / 60:.1f} min"
            )
        for line in step.health:
            kind = without_figures(line)  # a warning that differs only in its numbers is printed once
            if kind not in self._said:
                self._said.add(kind)
                self.say(f"  health warning, iteration {step.index}: {line}")
        self._bar.update(
            self._task,
            completed=step.index,
            figures=visible(f"{figures}  {self._score}".strip()),
            left=f"{left / 60:.1f} min",
        )

    def _left(self, step: Step) -> float:
        """Seconds to the end: the median of the last iterations, and the evaluations that are still due."""
        now, evaluated = time.perf_counter(), step.seconds.get("evaluate", 0.0)
        self._measured = evaluated or self._measured
        if step.metrics:
            self._spent.append(max(0.0, now - self._last - evaluated))
        self._last = now
        each = median(self._spent) if self._spent else 0.0
        return (self._run.iterations - step.index) * each + self._run.evaluations(step.index) * self._measured


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """A progress bar for `total` images if there is a terminal. The yielded function advances it."""
    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(visible(what), total=total)
        yield lambda images: bar.advance(task, images)


def headline(evaluation: dict[str, Any]) -> str:
    """'scenes-strict 45.1 % [41.2, 49.0] on scenes-held-out'."""
    measure = Measure.every([(0, evaluation)])[0]
    return f"{measure.name} {measure.interval(measure.overall[0][1])} on {evaluation['prompts']}"


def table(found: Mapping[str, dict[str, Any]], changes: Sequence[Difference] = ()) -> None:
    """Print evaluations (a row per category, a column per model), their differences and the settings."""
    console = Console(highlight=False, markup=False, emoji=False)
    first = next(iter(found.values()))
    for name in dict.fromkeys(score for result in found.values() for score in result["scores"]):
        own = {model: result["scores"][name] for model, result in found.items() if name in result["scores"]}
        measure = Measure.of(name, list(enumerate(found.values())))
        grid = Table(title=visible(name) + " (guard)" * (name in first.get("guard", ())), title_justify="left")
        categories = list(next(iter(own.values()))["categories"])
        scores = [each for score in own.values() for each in (score["overall"], *score["categories"].values())]
        wide = max(map(len, (*categories, "(over prompts)"))) + len(own) * max(
            3 + len(measure.interval(each)) for each in scores
        )
        below = "\n[" if wide + 4 > console.width else " ["  # no line break inside an interval
        grid.add_column("category")
        for model in own:
            grid.add_column(visible(model), justify="right", overflow="fold")
        grid.add_row("overall", *[measure.interval(score["overall"]).replace(" [", below) for score in own.values()])
        over = [measure.over_prompts(score["overall"]) for score in own.values()]
        grid.add_row("(over prompts)", *over, style="dim", end_section=True)
        for category in categories:
            cells = [measure.interval(score["categories"][category]) for score in own.values()]
            grid.add_row(visible(category), *[cell.replace(" [", below) for cell in cells])
        console.print(grid)
    for before, after in dict.fromkeys((each.before, each.after) for each in changes):
        _differences(console, found, [each for each in changes if (each.before, each.after) == (before, after)])
    console.print(visible(f"evaluation settings: {settings(first)}"), soft_wrap=True)


def _differences(console: Console, found: Mapping[str, dict[str, Any]], changes: Sequence[Difference]) -> None:
    """Print one pair of models: every score overall, and the headline by category."""
    before, after = changes[0].before, changes[0].after
    said = f"{after} against {before}: paired differences, with 95 % intervals over prompts"
    console.print(visible(said), soft_wrap=True)
    grid = Table()
    for name in ("", "difference", "p (Holm)", "significant"):
        grid.add_column(name, justify="right" if name in ("difference", "p (Holm)") else "left")
    evaluations = [(0, found[before]), (1, found[after])]
    for each in changes:
        if each.category is None or each.score == changes[0].score:
            size = Measure.of(each.score, evaluations).difference(each.mean, each.low, each.high)
            verdict = "yes" if each.significant else "no"
            first_category = each.category is None and each.score == changes[-1].score
            grid.add_row(visible(each.category or each.score), size, each.p_said, verdict, end_section=first_category)
    console.print(grid)
