"""The page says what the run folder says: right numbers, nothing from the network, nothing taken for markup."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest
import torch

from flowward.evaluation import outcome
from flowward.evaluation.evaluate import interval
from flowward.evaluation.images import labelled_grid
from flowward.pages import report, samples
from flowward.pages.page import duration
from flowward.training import glossary
from flowward.training.folder import RunFolder
from flowward.training.log import headline


def score(mean: float, half: float = 0.04, n: int = 128) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def evaluation(mean: float, balance: float = 0.6, name: str = "scenes-strict", **settings) -> dict:
    used = {"weights": "policy", "solver": "euler", "steps": 10, "guidance": None, "seed": 1234, "images": 768}
    categories = {"counting": score(mean - 0.1), "colors": score(mean + 0.1)}
    scores = {
        name: {"overall": score(mean, n=768), "categories": categories},
        "balance": {"overall": score(balance), "categories": {"all": score(balance)}},
    }
    return {**used, "prompts": "scenes-held-out", **settings, "scores": scores}


def iteration(index: int, **more) -> dict:
    numbers = {"reward": 0.6 + index / 1000, "zero_variance": 0.1, "gradient_norm": 0.3, "loss": -0.01}
    seconds = {"rollout": 1.0, "reward": 0.5, "train": 2.5, "total": 4.0}
    return {"iteration": index, "images": 256 * index, **numbers, "health": [], "seconds": seconds, **more}


def base(mean: float = 0.451) -> dict:
    return {"iteration": 0, "images": 0, "evaluation": evaluation(mean)}


def folder(path: Path, lines: list[dict], config: dict | None = None) -> RunFolder:
    algorithm = {"name": "advantageflow", "gamma": "1-A"}
    run = RunFolder.create(path / "run", config or {"model": "scenes", "reward": ["scenes"], "algorithm": algorithm})
    for line in lines:
        run.append(line)
    return run


def words(run: RunFolder) -> str:
    """What a reader sees, charts aside."""
    markup = re.sub(r"<(script|style).*?</\1>", "", page(run), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", markup)).split())


def page(run: RunFolder) -> str:
    return report.write(run.path).read_text("utf-8")


def test_the_numbers_are_those_of_the_run(tmp_path: Path) -> None:
    lines = [base(), *[iteration(k) for k in range(1, 40)], iteration(40, evaluation=evaluation(0.683, 0.59))]
    run = folder(tmp_path, lines)
    run.write_summary("flowward train --iterations 40", finished=True)
    said = words(run)
    assert (
        "Strict accuracy on held-out prompts rose from 45.1 % [41.1, 49.1] before training to 68.3 % [64.3, 72.3] "
        "after 40 iterations; the 95 % intervals do not overlap." in said
    )
    assert "advantageflow on scenes, reward scenes Finished after 40 iterations." in said
    assert "+23.2 points change 10,240 training images 2 min 40 s total time" in said
    assert "4 s per iteration" in said
    assert "counting 35.1 % [31.1, 39.1] 58.3 % [54.3, 62.3] +23.2 points no 128" in said
    assert "balance 0.600 [0.560, 0.640] 0.590 [0.550, 0.630] −0.010 yes 128" in said
    assert "Evaluation settings, iterations 0, 40: weights policy, solver euler, steps 10, guidance none, seed" in said
    assert "rollout 40.0 s (25%) reward 20.0 s (12%) train 1 min 40 s (62%)" in said
    assert "No problems found." in said
    assert "flowward train --iterations 40 copy" in said and "gamma: 1-A" in said


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    run = folder(tmp_path, [base(), iteration(1, evaluation=evaluation(0.5))])
    run.save_sample(0, labelled_grid(torch.rand(1, 3, 8, 8), ["a circle"]))
    html = page(run)
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)\s*=\s*[\"']?(https?:)?//", html)
    assert not re.search(r"@import|url\(\s*[\"']?https?:", re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL))
    assert html.count("plotly.js (basic - minified) v") == 1
    assert [path.name for path in run.path.glob("*.html")] == ["report.html"]
    assert not list(run.path.glob(".*"))


@pytest.mark.parametrize(
    ("after", "change", "verdict"),
    [
        (0.50, "went from 45.1 % [41.1, 49.1]", "overlap, so this is not evidence of a change."),
        (0.30, "fell from 45.1 % [41.1, 49.1]", "do not overlap."),
        (0.60, "rose from 45.1 % [41.1, 49.1]", "do not overlap."),
    ],
)
def test_a_change_is_claimed_only_where_intervals_part(after: float, change: str, verdict: str) -> None:
    said = outcome.sentence(outcome.of([base(), iteration(1, evaluation=evaluation(after))]))
    assert said.startswith(f"Strict accuracy on held-out prompts {change} before training to {100 * after:.1f} %")
    assert said.endswith(f"after 1 iteration; the 95 % intervals {verdict}")


def test_evaluations_with_other_settings_are_not_compared(tmp_path: Path) -> None:
    run = folder(tmp_path, [base(), iteration(1, evaluation=evaluation(0.9, steps=40, weights="ema"))])
    said = words(run)
    assert "differ in weights, steps and cannot be compared" in said
    for index, weights in enumerate(("policy", "ema")):
        assert f"Evaluation settings, iteration {index}: weights {weights}" in said


def test_the_last_evaluation_counts_and_not_the_best() -> None:
    lines = [base(), iteration(1, evaluation=evaluation(0.9)), iteration(2, evaluation=evaluation(0.46))]
    assert "to 46.0 % [42.0, 50.0] after 2 iterations" in outcome.sentence(outcome.of(lines))


def test_a_score_that_is_no_verdict_is_a_plain_number() -> None:
    lines = [{"iteration": 0, "evaluation": evaluation(21.7, name="pickscore", prompts="drawn.txt")}]
    assert outcome.sentence(outcome.of(lines)) == (
        "No evaluation after training yet; before training, pickscore on drawn.txt was 21.70 [21.66, 21.74]."
    )
    assert not outcome.Measure.of(
        "x-strict", outcome.of([base() | {"evaluation": evaluation(3, name="x-strict")}])
    ).percent


def test_the_terminal_and_the_report_write_a_score_alike() -> None:
    for name, shown in (("scenes-strict", "91.7 % [87.7, 95.7]"), ("balance", "0.917 [0.877, 0.957]")):
        measured = evaluation(0.917, name=name, prompts="mine.txt")
        measured["scores"] = {name: measured["scores"][name] if name != "balance" else {"overall": score(0.917)}}
        assert headline(measured) == f"{name} {shown} on mine.txt"
        assert shown in outcome.sentence([(0, measured)])


def test_a_score_of_one_image_bounds_nothing(tmp_path: Path) -> None:
    one = {"overall": interval(torch.tensor([0.25])), "categories": {c: interval(torch.tensor([0.25])) for c in "ab"}}
    lines = [base(), iteration(1, evaluation=evaluation(0.5))]
    for line in lines:
        line["evaluation"]["scores"]["balance"] = one
    said = words(folder(tmp_path, lines))
    assert "balance 0.250 [–] 0.250 [–] +0.000 – 1" in said
    lines = [{**line, "evaluation": {**line["evaluation"], "scores": {"balance": one}}} for line in lines]
    assert "one image has no interval, so this is not evidence of a change" in outcome.sentence(outcome.of(lines))
    assert "0.250 [–]" in words(folder(tmp_path / "other", lines))


def test_a_share_is_not_a_timing(tmp_path: Path) -> None:
    lines = [base(), iteration(1)]
    before = words(folder(tmp_path / "before", lines))
    lines[1]["seconds"]["cpu_share"] = 0.59
    after = words(folder(tmp_path / "after", lines))
    assert after.replace("/after/", "/before/") == before


def test_text_is_never_markup(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    config = {"model": evil, "reward": [f"{evil}=1"], "algorithm": {"name": "awm"}}
    trained = iteration(1, health=[evil], **{evil: 1.0})
    trained["seconds"][evil] = 1.0
    measured = base() | {"evaluation": evaluation(0.5, name=evil, prompts=evil)}
    run = folder(tmp_path, [measured, trained], config)
    run.write_summary(f"flowward train --prompts '{evil}'", finished=True)
    assert "<script>alert" not in page(run)
    assert words(run).count(evil) >= 8


def test_health_names_each_message_once_with_its_iterations(tmp_path: Path) -> None:
    lines = [iteration(k, health=[f"{50 + k}% of the groups are equal"] * (k in (2, 3, 4, 7))) for k in range(1, 9)]
    assert "57% of the groups are equal 4 2–4, 7" in words(folder(tmp_path, lines))


def test_each_metric_is_explained_below_its_curve(tmp_path: Path) -> None:
    """By the glossary: once, and not again for each rollout step; a key of somebody's own algorithm has no line."""
    more = {"pull": 0.1, "pull@0": 0.2, "reward/ocr": 0.5, "reward/jpeg": 0.4, "correlation/ocr/jpeg": 0.3, "mine": 1.0}
    said = words(folder(tmp_path, [iteration(1, **more)]))
    for key in ("zero_variance", "gradient_norm", "loss", *(key for key in more if key not in ("pull@0", "mine"))):
        metric = glossary.find(key)
        assert metric and said.count(f"{key} : {metric.line}. Healthy: {metric.healthy}.") == 1
    assert said.index("Metrics of each rollout step") < said.index("pull@0")


def test_grids_can_be_stepped_through(tmp_path: Path) -> None:
    run = folder(tmp_path, [base()])
    assert "No sample images have been saved." in words(run)
    for index in range(0, 1200, 20):  # more than a page should hold
        run.save_sample(index, labelled_grid(torch.zeros(1, 3, 8, 8), ["a circle"]))
    html = page(run)
    assert html.count('<img class="grid"') == 2  # before, and what the slider moves
    assert html.count("data:image/png;base64,") == samples.MOST_GRIDS
    assert "Before training" in html and "After 1,180 iterations" in html


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "There is no evaluation yet."),
        ([base()], "No evaluation after training yet; before training, strict accuracy on held-out prompts was 45.1 %"),
        ([iteration(1)], "There is no evaluation yet."),
        ([iteration(5, evaluation=evaluation(0.5))], "Only one evaluation, so no comparison; after 5 iterations,"),
        ([{"iteration": 0}, {"iteration": 1}], "No timings have been recorded."),
        ([iteration(1, reward=float("nan"), loss=None)], "1 iteration so far"),
    ],
)
def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path, lines: list[dict], expected: str) -> None:
    assert expected in words(folder(tmp_path, lines))


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    run = folder(tmp_path, [base(), iteration(1)])
    with open(run.metrics, "a") as file:
        file.write(json.dumps(iteration(2))[:40])
    assert "Not finished (still running or interrupted): 1 iteration so far." in words(run)


def test_the_status_follows_the_summary_unless_the_run_went_on(tmp_path: Path) -> None:
    run = folder(tmp_path, [iteration(1), iteration(2)])
    run.write_summary("flowward train --resume runs/x", finished=False)
    said = words(run)
    assert "Stopped early, after 2 iterations." in said
    assert "--resume" not in said and "flowward train --config" in said  # going on is not repeating
    run.append(iteration(3))
    assert "Not finished" in words(run)


def test_another_folder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=r"is not a run folder"):
            report.write(path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"is not a pretraining folder"):
        report.write_loss_curve(tmp_path)


def test_the_loss_curve_of_pretraining(tmp_path: Path) -> None:
    steps = [{"stage": stage, "step": k, "loss": 1 / k} for stage in ("autoencoder", "flow") for k in (1, 2)]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, steps)))
    html = report.write_loss_curve(tmp_path).read_text("utf-8")
    assert "Loss of the autoencoder" in html and "Loss of the flow" in html


def test_figures_as_people_write_them() -> None:
    assert [duration(s) for s in (9.44, 59.97, 348, 3599.8, 7512)] == [
        "9.4 s", "1 min 00 s", "5 min 48 s", "1 h 00 min", "2 h 05 min",
    ]  # fmt: skip
