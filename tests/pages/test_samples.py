"""Pictures of a run: whole prompts as text, before and after, groups by reward; damaged and older folders too."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch

from flowward.evaluation.samples import Samples, grouped, members
from flowward.evaluation.saved import Saved
from flowward.pages import report, samples
from flowward.training.folder import RunFolder

PROMPTS = ("一只猫", "<script>alert('x')</script>", "قطة", "x" * 300)


def pictures(seed: int, number: int = len(PROMPTS)) -> Samples:
    images = torch.rand(number, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Samples(images, [PROMPTS[k % 4] for k in range(number)], ["any"] * number, ["", "2 rings, not 3", None, ""])


def saved(path: Path, *iterations: int) -> RunFolder:
    run = RunFolder.create(path / "run", {"model": "scenes"})
    for iteration in iterations:
        own = pictures(iteration)
        rewards, advantages = torch.tensor([0.1, 0.9, 0.5, 0.4]), torch.tensor([-1.0, 1.0, 0.5, -0.5])
        groups = grouped(["a ring", "a cross"], members(own.images, rewards, advantages))
        run.save_sample(iteration, own.grid(), record=own.record(iteration, groups if iteration else []))
    return run


def frames(html: str) -> dict[str, Any]:
    """What the slider moves through."""
    (found,) = re.findall(r'class="frames">(.*?)</script>', html, re.DOTALL)
    return json.loads(found)


def test_each_prompt_is_text_with_its_pictures_before_and_after(tmp_path: Path) -> None:
    run = saved(tmp_path, 0, 5, 10)
    html = report.write(run.path).read_text("utf-8")
    prompts = re.findall(r'<p class="prompt" dir="auto">(.*?)</p>', html)
    assert [unescape(each) for each in prompts[: len(PROMPTS)]] == list(PROMPTS)
    addresses = {
        k: [f"data:image/{each['kind']};base64,{each['image']}" for each in pictures(k).record(k)["samples"]]
        for k in (0, 5, 10)
    }
    shown = [unescape(each) for each in re.findall(r'<img[^>]*? src="(data:[^"]+)"', html)]
    assert shown[:8] == [each for pair in zip(addresses[0], addresses[10], strict=True) for each in pair]
    moves = frames(html)
    assert moves["moments"] == ["After 5 iterations", "After 10 iterations"]
    assert [each[0]["image"] for each in moves["frames"]] == addresses[5]
    assert all("image" not in each[1] for each in moves["frames"])  # the page has it already
    assert moves["frames"][1][0]["facts"] == [["", "2 rings, not 3", "wrong"]] and moves["frames"][2][0]["facts"] == []


def test_a_group_is_sorted_by_reward(tmp_path: Path) -> None:
    html = report.write(saved(tmp_path, 0, 5).path).read_text("utf-8")
    words = " ".join(unescape(re.sub(r"<[^>]+>", " ", html[html.index("Training groups of iteration 5") :])).split())
    assert "a ring reward 0.900 advantage +1.00 reward 0.100 advantage −1.00" in words
    assert "a cross reward 0.500 advantage +0.50 reward 0.400 advantage −0.50" in words


def test_many_evaluations_fit_with_fewer_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = saved(tmp_path, *range(0, 100, 10))
    whole = sum(len(each["image"]) for k in range(0, 100, 10) for each in pictures(k).record(k)["samples"])
    monkeypatch.setattr(samples, "ROOM", whole // 2 + 100)
    monkeypatch.setattr(samples, "FEWEST", 1)
    found = samples.of(run.path)
    assert "2 of 4 prompts are shown" in found["note"] and len(found["before"].cards) == 2
    assert len(found["moments"]) == 9
    monkeypatch.setattr(samples, "MOST", 4)
    assert samples.of(run.path)["moments"] == ["After 30 iterations", "After 60 iterations", "After 90 iterations"]


@pytest.mark.parametrize("damage", ["", "{", '{"iteration": 5}', '{"iteration": 5, "samples": [{"image": "<b>"}]}'])
def test_a_damaged_record_is_left_out(tmp_path: Path, damage: str) -> None:
    run = saved(tmp_path, 0, 5, 10)
    run.records()[1].write_text(damage)
    (run.path / "samples" / "000010.png").unlink()
    moves = frames(report.write(run.path).read_text("utf-8"))
    assert moves["moments"] == ["After 10 iterations"]
    for path in run.records():
        path.write_text(damage)
    html = report.write(run.path).read_text("utf-8")  # the grids are left
    assert (
        html.count('<img class="grid"') == 2
        and "<b>" not in html[html.index("Sample images") : html.index("Scores</h2>")]
    )


def test_a_prompt_that_is_missing_later_has_an_empty_place(tmp_path: Path) -> None:
    run = saved(tmp_path, 0, 5, 10)
    record = json.loads(run.records()[1].read_text())
    record["samples"].pop(0)
    run.records()[1].write_text(json.dumps(record))
    first = frames(report.write(run.path).read_text("utf-8"))["frames"][0]
    assert first[0]["alt"] == "no picture after 5 iterations" and "image" not in first[1]


def test_a_record_reads_back_and_is_forgotten_with_its_iteration(tmp_path: Path) -> None:
    run = saved(tmp_path, 0, 5)
    back = Saved.model_validate_json(run.records()[1].read_text("utf-8"))
    assert [each.prompt for each in back.samples] == list(PROMPTS) and len(back.groups) == 2
    run.forget_after(0)
    assert [path.name for path in (run.path / "samples").iterdir()] and len(run.records()) == len(run.samples()) == 1


def test_an_advantage_of_nothing_has_no_sign() -> None:
    assert [samples._signed(value) for value in (0.0, -0.001, 0.004, -0.25, 1.0)] == [
        "0.00", "0.00", "0.00", "−0.25", "+1.00",
    ]  # fmt: skip
