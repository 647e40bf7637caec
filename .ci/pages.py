"""Write one page of each kind for the browser to check: pages.py FOLDER. Names and prompts are awkward ones."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import agent_runs
from measurements import made

from flowward.evaluation import fronts
from flowward.evaluation.comparison import differences
from flowward.evaluation.images import thumbnails
from flowward.evaluation.samples import Samples, grouped, members
from flowward.pages import evaluation, front, index, report, study
from flowward.pages.watch import compare
from flowward.training.folder import RunFolder

PROMPTS = (
    "a red circle",
    "<script>alert('x')</script> & \"quotes\"",
    "一只戴着红色帽子的猫坐在雪地里的木椅上",
    "قطة ترتدي قبعة حمراء",
    "Кошка в красной шапке",
    "a quiet harbour at dawn with many small boats, " * 6,
)
CONFIG = {"model": "scenes", "reward": ["scenes", "mine.py:<b>Own"], "algorithm": {"name": "flow_grpo"}}


def measured(k: int) -> dict:
    share = 0.4 + 0.01 * k
    shares = {"overall": share, "counting": share / 2, "a_category_with_a_rather_long_name": share * 1.1}
    parts = {name: {"mean": x, "low": x - 0.05, "high": x + 0.05, "n": 128} for name, x in shares.items()}
    overall = parts.pop("overall")
    scores = {name: {"overall": overall, "categories": parts} for name in ("scenes-strict", "balance")}
    return {"weights": "policy", "seed": 1234, "images": 256, "prompts": "scenes-held-out", "scores": scores}


def line(k: int) -> dict:
    found = {"iteration": k, "images": 64 * k, "seconds": {"rollout": 1.0, "train": 2.0, "total": 3.0}}
    if k:
        found |= {"reward": 0.5 + 0.01 * k, "reward/scenes": 0.5, "zero_variance": 0.2, "gradient_norm": 0.3 + k / 100}
        found |= {"loss": 0.1, "pull": 1.0, "pull@0": 1.0, "<i>own": 2.0, "health": ["40% of the groups are equal"]}
    return found | ({"evaluation": measured(k)} if k % 10 == 0 else {})


def run(path: Path, grids_alone: bool) -> None:
    folder = RunFolder.create(path, CONFIG)
    for k in range(41):
        folder.append(line(k))
        if k % 10 == 0:
            images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(k + len(path.name)))
            marks = ["", "2 objects instead of 3", None] * 4
            samples = Samples(images, PROMPTS * 2, ["counting"] * 12, marks, scores={"scenes": [0.5] * 12})
            groups = grouped(PROMPTS[:2], members(images, torch.rand(12), torch.randn(12)))
            folder.save_sample(k, samples.grid(), record=None if grids_alone else samples.record(k, groups))
    folder.write_summary("flowward train --prompts '<b>mine</b>.txt'", finished=True)
    report.write(path)


def agent(path: Path) -> None:
    """A run over episodes whose questions, tools and results are the awkward texts."""
    lines = [agent_runs.line(k) for k in range(41)]
    for k in (0, 20, 40):
        wrong = {"unreadable": 0.1, "<i>own": 0.05}
        how = agent_runs.behaviour(0.5 - 0.01 * k, troubles=wrong, cut=0.1, used={"<b>mine": 0.5, "search": 1.0})
        lines[k]["evaluation"] = agent_runs.evaluation(0.2 + 0.01 * k, behaviour={"sampled": how, "greedy": how})
    lines[3]["tool/<b>mine"], lines[5]["health"] = 0.2, ["40% of the turns use no tool"]
    shown = {k: [episode(number, text, k) for number, text in enumerate(PROMPTS)] for k in (0, 20, 40)}
    run = agent_runs.made(path, lines, shown, model="/models/<b>Own")
    run.write_summary("flowward agent train --questions '<b>mine</b>.jsonl'", finished=True)
    report.write(path)


def episode(number: int, text: str, k: int) -> dict:
    given = {"expression": "1 + " * 200, "about": text, "nested": [1, {"<b>": None}]}
    turns = [
        agent_runs.turn("search", text * 40, said=text, stop=False, verdict=text),
        agent_runs.turn(
            None,
            "",
            said=f"{text} I will not plan.",
            arguments=None,
            context="",
            trouble="unreadable",
            stop=None,
            verdict="",
        ),
        agent_runs.turn("<b>mine", "Error: " + "x" * 500, arguments=given, goal=text, trouble="error"),
    ]
    if number == 3 and k:
        return agent_runs.episode(text, False, end="failed", why=f"{text}: no answer", turns=turns[:1], answer="")
    return agent_runs.episode(text, k > 0, f"kind {number % 2}", turns=turns, expected=[text, "9"])


def compared(path: Path) -> None:
    found = []
    for name in ("runs/<i>base", "run & more", "a model with a name that is rather long"):
        one = made(name, {"strict": [0.0, 1, 1, 0, 1, 1], "soft": torch.rand(6).tolist()}, guard=["soft"])
        found.append(replace(one, texts=PROMPTS, pictures=tuple(thumbnails(torch.rand(6, 3, 32, 32)))))
    path.write_text(evaluation.of(found, differences(found), "flowward eval 'a' <b>"), "utf-8")


def fronts_of_two(path: Path) -> None:
    """A palette and a soup, with two scores."""
    mixtures = tuple((k / 4, 1 - k / 4) for k in range(5))
    grids = []
    for name in ("runs/<i>palette", "soup & more"):
        points = [made(name, {"strict": torch.rand(6).tolist(), "soft": torch.rand(6).tolist()}) for _ in mixtures]
        grids.append(fronts.Grid(name, ("strict", "<b>soft"), mixtures, points))
    found = fronts.compared(grids, [0.0, 0.0])
    about = {"images": 6, "prompts": "<b>mine", "seed": 1234}
    path.write_text(front.of(found, about, "flowward front 'a' <b>"), "utf-8")


def study_of(path: Path) -> None:
    """Twelve algorithms, of which one failed, with a search."""
    names = [f"algorithm_{k}" for k in range(11)] + ["one_with_a_rather_long_name"]
    each = {"mean": 0.4, "low": 0.35, "high": 0.45}
    row = {
        **each,
        "seeds": [0.4, 0.4],
        "to_target": [100.0, None],
        "below_best": {**each, "mean": -0.1},
        "collapsed": 1,
        "beside": {"balance": 0.5, "a-rather-long-name-of-a-reward": 0.25},
    }
    budget = {"amount": 5760, "target": 0.5, "best": names[0], "algorithms": dict.fromkeys(names, row)}
    curve = {"images": [0.0, 2880.0, 5760.0]} | {key: [0.3, value, value] for key, value in each.items()}
    reward = {"reward": "both", "base": each, "budgets": {"images": budget, "seconds": budget},
              "curves": dict.fromkeys(names, curve), "base_beside": row["beside"],
              "nats": {name: [3.5, None] for name in names}}  # fmt: skip
    cost = {"images": 288, "forward": 14.0, "trained": 2.0, "evaluations": 20.0, "seconds": 0.01}
    search = {"scores": {"both/algorithm_0": [0.4, None]}, "chosen": {"both/algorithm_0": 0},
              "settings": {"both/algorithm_0/0": {}}}  # fmt: skip
    about = {"model": "<b>mine", "seeds": [0, 1], "images": 1200, "score": "scenes-strict"}
    whole = {"study": about, "costs": dict.fromkeys(names, cost), "search": search, "rewards": [reward],
             "machine": "2 CPU cores", "hours": 1.5}  # fmt: skip
    path.write_text(study.of(whole, "flowward study 'a' <b>"), "utf-8")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    run(folder / "runs" / "new", grids_alone=False)
    run(folder / "runs" / "older", grids_alone=True)
    agent(folder / "agents" / "agent")
    agent(folder / "agents" / "<i>other")
    index.write(folder / "agents")
    compare.write([folder / "runs" / "new", folder / "agents" / "agent"], folder / "both.html")
    compare.write([folder / "agents" / name for name in ("agent", "<i>other")], folder / "agents.html")
    (folder / "runs" / "damaged").mkdir()
    (folder / "runs" / "damaged" / "config.yaml").write_text("model: 7\n")
    index.write(folder / "runs")
    run(folder / "runs" / "<img src=x onerror=alert(1)>", grids_alone=False)
    compare.write(
        [folder / "runs" / name for name in ("new", "older", "<img src=x onerror=alert(1)>")], folder / "compare.html"
    )
    compared(folder / "evaluation.html")
    fronts_of_two(folder / "front.html")
    study_of(folder / "study.html")
    (folder / "pretraining").mkdir()
    steps = [{"stage": stage, "step": k, "loss": 1 / k} for stage in ("autoencoder", "flow") for k in range(1, 50)]
    (folder / "pretraining" / "log.jsonl").write_text("\n".join(map(json.dumps, steps)))
    report.write_loss_curve(folder / "pretraining")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
