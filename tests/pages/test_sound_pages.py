"""Players on pages: in the report of a run and on the page of an evaluation, inside the one file."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_policies import policy

from flowward import prompts
from flowward.evaluation.evaluate import LISTENED, Evaluation, measure
from flowward.evaluation.samples import Samples
from flowward.evaluation.saved import Saved
from flowward.pages import evaluation as page
from flowward.pages import samples
from flowward.process import medium
from flowward.process.rollout import Sampler
from flowward.rewards.sound.levels import Sounding

RATE = 8000
PLAYER = re.compile(r'<audio controls preload="none"[^>]* src="data:audio/wav;base64,([A-Za-z0-9+/=]+)"></audio>')


def saved(folder: Path, iteration: int, sounds: int = LISTENED) -> None:
    made = medium.waveforms(1, RATE, RATE)
    waves = 0.1 * torch.randn(10, 1, RATE, generator=torch.Generator().manual_seed(iteration))
    texts = [f"sound {k}" for k in range(10)]
    found = Samples(made.draw(waves, texts), texts, ["all"] * 10, [None] * 10, longest=made.longest,
                    sounds=made.heard(waves[:sounds]))  # fmt: skip
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "samples" / f"{iteration:06d}.json").write_text(json.dumps(found.record(iteration)))


def test_the_first_samples_of_an_evaluation_can_be_heard(tmp_path: Path) -> None:
    saved(tmp_path, 0)
    found = Saved.model_validate_json((tmp_path / "samples" / "000000.json").read_text())
    assert [bool(each.sound) for each in found.samples] == [True] * LISTENED + [False] * (10 - LISTENED)
    assert base64.b64decode(found.samples[0].sound)[:4] == b"RIFF"
    assert found.samples[0].heard.startswith("data:audio/wav;base64,") and found.samples[9].heard == ""


def test_the_slider_of_a_report_changes_the_players(tmp_path: Path) -> None:
    for iteration in (0, 1, 2):
        saved(tmp_path, iteration)
    values: dict[str, Any] = samples.of(tmp_path)
    shots = values["before"].cards[0].shots
    assert len({shot.sound for shot in shots}) == 2 and all(shot.sound for shot in shots)
    between, last = values["frames"]["frames"][0]
    assert between["sound"].startswith("data:audio/wav") and "sound" not in last  # the page has that one already


def test_a_page_keeps_few_sounds_of_a_long_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for iteration in (0, 1, 2):
        saved(tmp_path, iteration)
    monkeypatch.setattr(samples, "SOUND_ROOM", 100_000)
    values: dict[str, Any] = samples.of(tmp_path)
    assert all(shot.sound for shot in values["before"].cards[0].shots)
    assert "sound" not in values["frames"]["frames"][0][0]


def test_the_page_of_an_evaluation_has_players() -> None:
    one = policy("LongCatAudioDiTPipeline")
    how = Evaluation(images=4, sampler=Sampler(2, grid="model"))
    found = measure(one, prompts.of("mine", ["a cat", "two dog"]), how, {"sounding": Sounding()}, pictures=True)
    assert len(found.sounds) == len(found.pictures) == 4 and found.settings["rate"] == 200
    written = page.of([found], [])
    assert len(PLAYER.findall(written)) == 4  # the best and the worst of two prompts
    assert "4 sounds per model" in written and 'aria-label="listen: a cat' in written
    assert "http" not in "".join(re.findall(r'src="([^"]{0,30})', written))
