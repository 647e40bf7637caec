"""The leaderboard and the papers' claims as pages, from the results of studies.

    python benchmarks/leaderboard.py --study runs/leaderboard --claims runs/claims
    python benchmarks/leaderboard.py

The first form takes the findings of finished studies (benchmarks/studies/) into the repository: the leaderboard into
the package, where `flowward advise` reads it, and the control runs of the claims into docs/claims.json. Both write
docs/leaderboard.md and docs/claims.md from these files; a test holds the pages to them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from flowward.evaluation.seeds import reached
from flowward.studies import plan

HOME = Path(__file__).parents[1]
SHIPPED, CONTROLS = HOME / "flowward" / "studies" / "shipped" / "scenes.json", HOME / "docs" / "claims.json"
STATEMENTS = HOME / "benchmarks" / "studies" / "statements.yaml"
PAGES = {"leaderboard": HOME / "docs" / "leaderboard.md", "claims": HOME / "docs" / "claims.md"}
LEFT_OUT = ("measured", "search")  # of a study.json
SAME, NOT, UNKNOWN = "same direction", "not", "cannot be told here"
Found = Mapping[str, Any]


def taken(study: Path) -> dict[str, Any]:
    """The findings of a study, with rounded numbers."""
    found = json.loads((study / "study.json").read_text("utf-8"))
    return {key: rounded(value) for key, value in found.items() if key not in LEFT_OUT}


def rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: rounded(own) for key, own in value.items()}
    if isinstance(value, list):
        return [rounded(own) for own in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def percent(of: Found, sign: str = "") -> str:
    mean, low, high = (f"{100 * of[key]:{sign}.1f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(each) + " |" for each in lines)


def leaderboard(found: Found) -> str:
    """docs/leaderboard.md"""
    study = found["study"]
    parts = [INTRODUCTION.format(
        algorithms=len(found["costs"]), seeds=len(study["seeds"]), images=f"{study['images']:,}",
        budgets=", ".join(f"{amount:,.0f} {name}" for name, amount in study["budgets"].items() if amount),
        machine=found["machine"], file=file_of(study), hours=found["hours"], base=percent(found["rewards"][0]["base"]),
    )]  # fmt: skip
    for reward in found["rewards"]:
        names = list(study["rewards"][reward["reward"]])
        parts.append(f"## Reward `{' + '.join(names)}`\n\n{board(reward)}")
    parts.append(costs(found["costs"]))
    return "\n\n".join(parts) + "\n"


def file_of(study: Found) -> str:
    """The file of benchmarks/studies/ that describes this study."""
    for file in sorted(STATEMENTS.parent.glob("scenes*.yaml")):
        if TypeAdapter(plan.Study).dump_python(plan.read(file), mode="json") == study:
            return file.relative_to(HOME).as_posix()
    raise ValueError("no file in benchmarks/studies/ describes the study of these results")


def board(reward: Found) -> str:
    """A row per algorithm, by its score at equal time."""
    budgets = reward["budgets"]
    order = sorted(reward["nats"], key=lambda name: -last(budgets)["algorithms"][name]["mean"])
    head = [
        "algorithm",
        *(f"{own['amount']:,.0f} {name}" for name, own in budgets.items()),
        "seconds to target",
        "nats",
    ]
    rows = []
    for name in order:
        cells = []
        for own in budgets.values():
            each = own["algorithms"][name]
            behind = each["below_best"]
            together = behind is None or behind["high"] >= 0
            cells.append(f"**{percent(each)}**" if together else percent(each))
        known = [value for value in reward["nats"][name] if value is not None]
        far = f"{min(known):.3g} to {max(known):.3g}" if known else "unknown"
        rows.append([name, *cells, time_to(last(budgets)["algorithms"][name]), far])
    said = f"Bold: not significantly below the best one. The target is {100 * last(budgets)['target']:.1f} %."
    return f"{table(head, rows)}\n\n{said}"


def last(budgets: Found) -> Any:
    return budgets.get("seconds", next(iter(budgets.values())))


def time_to(own: Found) -> str:
    known = [at for at in own["to_target"] if at is not None]
    if not known:
        return "not reached"
    part = "" if len(known) == len(own["to_target"]) else f" ({len(known)} of {len(own['to_target'])})"
    return f"{min(known):.3g} to {max(known):.3g}{part}"


def costs(known: Found) -> str:
    rows = [
        [name, f"{own['evaluations']:.3g}", f"{1e3 * own['seconds']:.3g}", str(own["images"])]
        for name, own in sorted(known.items(), key=lambda item: item[1]["seconds"])
    ]
    head = ["algorithm", "evaluations per image", "ms per image", "images per iteration"]
    return f"## What an image costs\n\n{COSTS}\n\n{table(head, rows)}"


def claims(studies: Mapping[str, Found], statements: Sequence[Found]) -> str:
    """docs/claims.md"""
    rows = []
    for each in statements:
        said, verdict = answer(each, studies)
        rows.append([each["claim"], each["source"], said, f"**{verdict}**"])
    return f"{CLAIMS}\n\n{table(['claimed', 'by', 'measured here', 'verdict'], rows)}\n"


def answer(statement: Found, studies: Mapping[str, Found]) -> tuple[str, str]:
    """What was measured, in words, and the verdict."""
    if "said" in statement:
        return statement["said"], statement["verdict"]
    kind = next(name for name in KINDS if name in statement)
    asked = statement[kind]
    found = studies.get(asked.get("study", "leaderboard"))
    needed = [asked[key] for key in ("ours", "theirs", "entry") if key in asked] + asked.get("among", [])
    if found is None or not all(name in found["costs"] for name in needed):
        return "not measured yet", UNKNOWN
    answers = [KINDS[kind](asked, reward, found) for reward in found["rewards"]]
    names = [reward["reward"] for reward in found["rewards"]]
    said = "; ".join(f"{name}: {own}" for name, (own, _) in zip(names, answers, strict=True))
    note = f". {statement['note']}" if "note" in statement else ""
    return said + note, together([verdict for _, verdict in answers])


def together(verdicts: Sequence[str]) -> str:
    """One direction, if no reward has the other."""
    for this, other in ((SAME, NOT), (NOT, SAME)):
        if this in verdicts and other not in verdicts:
            return this
    return UNKNOWN


def above(asked: Found, reward: Found, found: Found) -> tuple[str, str]:
    own = reward["budgets"][asked["at"]]["algorithms"][asked["ours"]]["over"][asked["theirs"]]
    verdict = SAME if own["low"] > 0 else NOT if own["high"] < 0 else UNKNOWN
    return f"{percent(own, '+')} points", verdict


def faster(asked: Found, reward: Found, found: Found) -> tuple[str, str]:
    """To the best mean score that the other one reaches within the budget, seed by seed."""
    ours, theirs = (reward["curves"][asked[key]] for key in ("ours", "theirs"))
    units = [unit(found["costs"][asked[key]], asked["in"]) for key in ("ours", "theirs")]
    target, base = max(theirs["mean"]), reward["base"]["mean"]
    if target - base < 0.01:
        return f"{asked['theirs']} does not learn within this budget", UNKNOWN
    theirs_at = reached(theirs["images"], theirs["mean"], target)
    assert theirs_at is not None
    times = [reached(ours["images"], list(seed), target) for seed in zip(*ours["seeds"], strict=True)]
    ratios = [theirs_at * units[1] / (at * units[0]) for at in times if at]
    if not ratios:
        return "not reached", NOT
    claimed = f"; claimed: {asked['claimed']:g}" if asked["claimed"] > 1 else ""
    said = f"{min(ratios):.2g} to {max(ratios):.2g} times{claimed}"
    if len(ratios) < len(times):
        return f"{said} ({len(ratios)} of {len(times)} seeds reach it)", UNKNOWN
    return said, SAME if min(ratios) > 1 else NOT if max(ratios) < 1 else UNKNOWN


def unit(cost: Found, name: str) -> float:
    return 1.0 if name == "images" else float(cost[name])


def best(asked: Found, reward: Found, found: Found) -> tuple[str, str]:
    own = reward["budgets"]["images"]["algorithms"]
    said = ", ".join(f"{name} {100 * own[name]['mean']:.1f}" for name in asked["among"])
    first = max(asked["among"], key=lambda name: own[name]["mean"])
    if first == asked["claimed"]:
        sure = all(own[first]["over"][name]["low"] > 0 for name in asked["among"] if name != first)
        return said, SAME if sure else UNKNOWN
    behind = own[asked["claimed"]]["over"][first]
    return said, NOT if behind["high"] < 0 else UNKNOWN


def falls(asked: Found, reward: Found, found: Found) -> tuple[str, str]:
    own = reward["budgets"]["images"]["algorithms"][asked["entry"]]
    said = f"{own['collapsed']} of {len(own['seeds'])} seeds end below the base model ({percent(own)} %)"
    return said, SAME if own["collapsed"] == len(own["seeds"]) else UNKNOWN if own["collapsed"] else NOT


def spread(asked: Found, reward: Found, found: Found) -> tuple[str, str]:
    """Of whole presets, which differ in anchor, gain and credit too: no verdict on the loss alone."""
    own = reward["budgets"][asked["at"]]["algorithms"]
    means = {name: 100 * own[name]["mean"] for name in asked["among"]}
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    return f"{low} {means[low]:.1f} to {high} {means[high]:.1f}", UNKNOWN


Answer = Callable[[Found, Found, Found], tuple[str, str]]
KINDS: dict[str, Answer] = {"above": above, "faster": faster, "best": best, "falls": falls, "spread": spread}

INTRODUCTION = """# Leaderboard: every algorithm on the built-in world

This page is for choosing an algorithm. It compares {algorithms} algorithms on `scenes` at equal budgets ({budgets}),
with {seeds} seeds each and the presets as they are shipped. Numbers are strict accuracy in percent on {images}
held-out images, with 95 % intervals over seeds and prompts; the base model has {base}. All models are measured on the
same prompts with the same noise, so differences are surer than the intervals look. Seconds are those of one thread
({machine}). *nats* says how far the runs were from the base model at their end ([what it
means](howto/auto_gamma.md#what-to-watch)).

A small world and short runs: it shows how fast algorithms learn there, not which one is best after days on a large
model. Presets were set by hand on this world, with more care for some than for others ([study.md](study.md) has a
search that gives each the same number of trials). Algorithms that need the gradient of the reward are compared
[elsewhere](benchmarks.md#differentiated-rewards-on-scenes).

These results are those of `{file}`, whose runs took {hours:.1f} hours of one core in all. The whole study, its small
form, which takes less than an hour on two cores, and a study of the algorithms that need the gradient of the reward:

```sh
OMP_NUM_THREADS=1 flowward study benchmarks/studies/scenes.yaml --output runs/leaderboard
OMP_NUM_THREADS=1 flowward study benchmarks/studies/scenes-small.yaml --output runs/leaderboard-small
OMP_NUM_THREADS=1 flowward study benchmarks/studies/scenes-net.yaml --output runs/leaderboard-net
```

Stopped, each goes on where it was. A learning rate that falls (V-GRPO) falls to 0 within the longest budget.

What papers claim, and what holds here: [claims.md](claims.md)."""
COSTS = (
    "In forward passes of the network, where a pass forward and backward counts as many as it takes time, and on one "
    "thread."
)
CLAIMS = """# Papers' claims, measured here

Papers compare at different batch sizes, solvers and step sizes, often on one seed. Here all algorithms run on one
core, at equal budgets, with three seeds, on the [built-in world](scenes.md). So *not* means: not here. A verdict
needs an interval on one side of 0 (or all seeds on one side of equal speed) for one reward at least, and for no
reward the other way. Differences are paired, in points of strict accuracy. Results: [leaderboard.md](leaderboard.md);
control runs: `benchmarks/studies/claims.yaml`. This page is written by `python benchmarks/leaderboard.py`."""


def pages() -> dict[str, str]:
    """The text of each page that the files of results give."""
    if not SHIPPED.is_file():
        return {}
    shipped = json.loads(SHIPPED.read_text("utf-8"))
    studies = {"leaderboard": shipped}
    if CONTROLS.is_file():
        studies["claims"] = json.loads(CONTROLS.read_text("utf-8"))
    statements = yaml.safe_load(STATEMENTS.read_text("utf-8"))
    return {"leaderboard": leaderboard(shipped), "claims": claims(studies, statements)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, help="folder of the finished study scenes.yaml")
    parser.add_argument("--claims", type=Path, help="folder of the finished study claims.yaml")
    options = parser.parse_args()
    for folder, file in ((options.study, SHIPPED), (options.claims, CONTROLS)):
        if folder is not None:
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(taken(folder), separators=(",", ":")) + "\n", "utf-8")
    for name, text in pages().items():
        PAGES[name].write_text(text, "utf-8")
        print(PAGES[name])


if __name__ == "__main__":
    main()
