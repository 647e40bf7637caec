"""The page of a study: who is best at each budget, how sure that is, and the way there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .page import render
from .parts import Axis, Chart, Series, Table
from .settings import flat

ROW = 26  # pixels of a row of a chart
LEAST = 140  # pixels of such a chart
TOGETHER = 6  # curves in one chart, so that they can be told apart


def of(found: Mapping[str, Any], command: str = "") -> str:
    """The page of a study.json."""
    study, sections, axes = found["study"], [], list[Axis]()
    for number, reward in enumerate(found["rewards"]):
        curves, own = _curves(reward, found["costs"], study["score"], number)
        axes += own
        budgets = [_budget(name, each, reward["base"], study["score"]) for name, each in reward["budgets"].items()]
        sections.append(
            {
                "name": reward["reward"],
                "id": f"reward-{number}",
                "budgets": budgets,
                "curves": curves,
                "beside": beside(reward),
            }
        )
    seeds, names = len(study["seeds"]), found["costs"]
    return render(
        "study.html.j2",
        axes,
        title=f"{len(names)} algorithms on {study['model']}",
        status=(
            f"{seeds} seed{'s' * (seeds > 1)}, {study['images']:,} images per evaluation, {found['machine']}. The runs "
            f"took {found['hours']:.1f} hours of one core in all."
        ),
        sections=sections,
        contents=[*((each["id"], each["name"]) for each in sections), ("costs", "Costs"), ("settings", "Settings")],
        costs=_costs(found["costs"]),
        search=_search(found.get("search")),
        settings=Table(["setting", "value"], [[key, value] for key, value in flat(study).items()], 2, "Settings"),
        command=command,
    )


def _budget(name: str, own: Mapping[str, Any], base: Mapping[str, Any], score: str) -> dict[str, Any]:
    """The chart and the table of one budget, the best algorithm first."""
    rows = sorted(own["algorithms"].items(), key=lambda each: -each[1]["mean"])
    dots = Series(
        [100 * each["mean"] for _, each in rows],
        low=[100 * each["low"] for _, each in rows],
        high=[100 * each["high"] for _, each in rows],
        said=[percent(each) for _, each in rows],
    )
    title = f"{score} at {own['amount']:,.0f} {name}"
    chart = Chart(title, [dots], [algorithm for algorithm, _ in rows], suffix=" %", height=LEAST + ROW * len(rows))
    said = f"The base model has {percent(base)}. The target is {100 * own['target']:.1f} %."
    return {"name": name, "chart": chart, "table": table(name, own, score), "said": said}


def table(name: str, own: Mapping[str, Any], score: str) -> Table:
    """A row per algorithm, the best first."""
    head = ["algorithm", f"{score}, %", "from the best", f"{name} to {100 * own['target']:.1f} %", "below base"]
    rows = []
    for algorithm, each in sorted(own["algorithms"].items(), key=lambda item: -item[1]["mean"]):
        behind, reached = each["below_best"], [at for at in each["to_target"] if at is not None]
        fast = "not reached"
        if reached:
            fast = " to ".join(dict.fromkeys(amount(at) for at in (min(reached), max(reached))))
            fast += f" ({len(reached)} of {len(each['seeds'])})" * (len(reached) < len(each["seeds"]))
        rows.append(
            [
                algorithm,
                percent(each).replace(" %", ""),
                "0 (best)" if behind is None else percent(behind, "+").replace(" %", ""),
                fast,
                f"{each['collapsed']} of {len(each['seeds'])}",
            ]
        )
    return Table(head, rows, 1, f"Algorithms at {own['amount']:,.0f} {name}", sortable=True)


def beside(reward: Mapping[str, Any]) -> Table | None:
    """What was not optimised, at the first budget; and how far runs had gone from the base model at their end."""
    name, own = next(iter(reward["budgets"].items()))
    scores, nats = list(reward["base_beside"]), reward["nats"]
    if not scores and not any(_known(each) for each in nats.values()):
        return None
    rows = [["(base model)", *(f"{reward['base_beside'][score]:.3f}" for score in scores), "0"]]
    for algorithm, each in sorted(own["algorithms"].items(), key=lambda item: -item[1]["mean"]):
        far = _known(nats.get(algorithm, ()))
        said = " to ".join(dict.fromkeys(f"{value:.3g}" for value in (min(far), max(far)))) if far else "unknown"
        rows.append([algorithm, *(f"{each['beside'][score]:.3f}" for score in scores), said])
    about = f"Other scores at {own['amount']:,.0f} {name}"
    return Table(["algorithm", *scores, "nats from the base model, at the end"], rows, 1, about, sortable=True)


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def amount(of: float) -> str:
    """38,330 or 21.6"""
    return f"{of:,.0f}" if of >= 100 else f"{of:.3g}"


def percent(of: Mapping[str, Any], sign: str = "") -> str:
    """44.1 % [41.0, 47.2]"""
    mean, low, high = (f"{100 * of[key]:{sign}.1f}" for key in ("mean", "low", "high"))
    return f"{mean} % [{low}, {high}]"


def _curves(
    reward: Mapping[str, Any], costs: Mapping[str, Any], score: str, number: int
) -> tuple[list[Chart], Sequence[Axis]]:
    """Every algorithm against training images, and against the seconds that they cost: the best ones in one chart."""
    axes, charts, curves = [], list[Chart](), reward["curves"]
    order = sorted(curves, key=lambda name: -curves[name]["mean"][-1])
    for first in range(0, len(order), TOGETHER):
        series = []
        for colour, algorithm in enumerate(order[first : first + TOGETHER]):
            own, key, cost = curves[algorithm], f"study {number} {first + colour}", costs[algorithm]
            iterations = [round(images / cost["images"]) for images in own["images"]]
            seconds = [images * cost["seconds"] for images in own["images"]]
            axes.append(Axis(key, iterations, own["images"], seconds, algorithm))
            mean, low, high = ([100 * value for value in own[name]] for name in ("mean", "low", "high"))
            series.append(Series(mean, key, algorithm, low, high, key=algorithm, colour=colour))
        places = f", places {first + 1} to {first + len(series)}" if len(order) > TOGETHER else ""
        charts.append(Chart(f"{score} while training{places}", series, suffix=" %", dots=True, height=320))
    return charts, axes


def _costs(costs: Mapping[str, Any]) -> Table:
    head = ["algorithm", "forward passes", "with backward", "in forward passes", "ms", "images per iteration"]
    rows = [
        [name, f"{own['forward']:.3g}", f"{own['trained']:.3g}", f"{own['evaluations']:.3g}",
         f"{1e3 * own['seconds']:.3g}", f"{own['images']:,}"]
        for name, own in costs.items()
    ]  # fmt: skip
    return Table(head, rows, 1, "Cost of a training image")


def _search(search: Mapping[str, Any] | None) -> Table | None:
    if search is None:
        return None
    rows = []
    for name, scores in search["scores"].items():
        best = search["chosen"][name]
        tried = search["settings"][f"{name}/{best}"]
        said = ", ".join(f"{key} {value}" for key, value in flat(tried).items()) or "the preset"
        rows.append([name, said, " ".join("failed" if each is None else f"{100 * each:.1f}" for each in scores)])
    return Table(["reward/algorithm", "chosen", "scores of the trials, %"], rows, 2, "Search")
