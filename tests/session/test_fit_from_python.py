"""One call trains, and what it returns measures, samples, saves and exports the weights that it trained."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import TEXTS, algorithm, equal, snapshot
from torch import Tensor

import flowward
from flowward.cli import main
from flowward.export import trained
from flowward.models.weights import Full
from flowward.process.rollout import Sampler
from flowward.session.fitted import Fitted
from flowward.training.folder import RunFolder
from flowward.training.hooks import HookError
from flowward.training.metrics import Step

pytestmark = pytest.mark.processor
FEW: dict[str, Any] = {"images_per_update": 8, "group_size": 4, "microbatch": 8, "learning_rate": 1e-3, "iterations": 3}
HOW: dict[str, Any] = {"images": 6, "sampler": Sampler(steps=1)}
NAMED = "jpeg-compressibility"


def bright(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.mean((1, 2, 3))


def fit(tiny: str, reward: Any = bright, rank: int | None = None, **changes: Any) -> Fitted:
    policy = flowward.load(tiny, lora_rank=rank, precision="float32")
    given = {"evaluation": False, "progress": False, **FEW, **changes}
    return flowward.fit(algorithm(), policy, reward, list(TEXTS), **given)


SEEN: list[Step] = []


@pytest.fixture(scope="module")
def done(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A run with LoRA, an output folder and evaluations; every step was seen by a hook."""
    folder = tmp_path_factory.mktemp("fit") / "run"
    return fit(tiny, NAMED, 2, output=folder, evaluation=HOW, hook=[SEEN.append])


@pytest.fixture(scope="module")
def kept(tiny: str) -> Fitted:
    """A run of all weights without an output folder."""
    return fit(tiny, evaluation=HOW, iterations=1)


def test_a_run_has_its_metrics_steps_and_folder(done: Fitted) -> None:
    folder = RunFolder.open(done.folder)
    assert [each["iteration"] for each in done.metrics] == [1, 2, 3] and done.iterations == 3 and not done.stopped
    assert [each["reward"] for each in done.metrics] == [line["reward"] for line in folder.lines()[1:]]
    assert all(isinstance(value, int | float) for each in done.metrics for value in each.values())
    assert [step.index for step in SEEN] == [0, 1, 2, 3] and SEEN[-1].metrics["reward"] == done.metrics[-1]["reward"]
    assert {*done.evaluations} == {0, 3} and (done.folder / "report.html").is_file()
    assert [path.stem for path in folder.checkpoints()] == ["000003"] and folder.summary()["finished"] is True
    frame = done.to_pandas()
    assert list(frame["reward"]) == [each["reward"] for each in done.metrics]


@pytest.mark.parametrize("name", ["done", "kept"])
def test_evaluating_measures_both_weights_and_changes_neither(name: str, request: pytest.FixtureRequest) -> None:
    """As during training, before and after it."""
    run: Fitted = request.getfixturevalue(name)
    now = snapshot(run.policy)
    found = run.evaluate()
    assert equal(snapshot(run.policy), now) and found.before is not None
    for at, own in ((0, found.before), (run.iterations, found.after)):
        assert own.summary()["scores"] == run.evaluations[at]["scores"]
    change = found.differences[0]
    moved = found.mean[change.score] - found.before.scores[change.score].mean().item()
    assert change.mean == pytest.approx(moved, abs=1e-6)
    assert change.mean != 0 and found.sentence in repr(found) and "<td>" in found._repr_html_()
    assert found.to_dict()["after"]["scores"] == found.after.summary()["scores"]


def test_an_evaluation_takes_other_prompts_rewards_and_settings(done: Fitted) -> None:
    found = done.evaluate(["a circle", "a cross"], bright, base=False, images=4, seed=7)
    assert found.before is None and not found.differences and [*found.mean] == ["bright"] and len(found.after) == 4
    assert {*found.after.texts} == {"a circle", "a cross"} and "before" not in found.to_dict()
    other = done.evaluate(base=False, weights="ema")
    assert other.mean != done.evaluate(base=False).mean
    with pytest.raises(ValueError, match="unknown setting of the evaluation 'imags'; did you mean 'images'"):
        done.evaluate(imags=4)
    with pytest.raises(ValueError, match="does not know the word 'any'"):
        done.evaluate(["any text"])


def test_samples_are_pictures_or_a_tensor(done: Fitted, tmp_path: Path) -> None:
    """And those of the command, for equal seeds."""
    pictures = done.sample(["a circle", "two rings"], count=2, seed=5)
    drawn = done.sample(["a circle", "two rings"], count=2, seed=5, tensor=True)
    assert [each.size for each in pictures] == [(32, 32)] * 4 and drawn.shape == (4, 3, 32, 32)
    shown = torch.from_numpy(np.asarray(pictures[2]).copy()).permute(2, 0, 1) / 255
    assert (shown - drawn[2]).abs().max() < 0.003
    same, other = (done.sample("a circle", 2, seed, tensor=True) for seed in (5, 6))
    assert torch.allclose(same, drawn[:2], atol=1e-5) and not torch.allclose(other, drawn[:2], atol=0.01)
    assert main(["sample", str(done.folder), "a circle", "--count", "1", "--seed", "5", "--steps", "1",
                 "--output", str(tmp_path / "one.png")]) == 0  # fmt: skip
    grid = Image.open(tmp_path / "one.png").convert("RGB")
    mine = done.sample("a circle", 1, 5)[0]
    assert {color for _, color in mine.getcolors(1024) or ()} <= {color for _, color in grid.getcolors(10**6) or ()}
    for wrong in ((), "a circle"):
        with pytest.raises(ValueError, match="name at least one prompt, and sample at least one image of it"):
            done.sample(wrong, count=0)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(done: Fitted, tiny: str, tmp_path: Path) -> None:
    """The first interrupt waits for the iteration; what is returned has the weights, and can be saved and resumed."""

    def press(step: Step) -> None:
        if step.index == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    run = fit(tiny, NAMED, 2, evaluation=HOW, hook=press)
    assert signal.getsignal(signal.SIGINT) is before
    assert run.stopped and run.iterations == 2 and [each["iteration"] for each in run.metrics] == [1, 2]
    saved = run.save(tmp_path / "saved")
    assert equal(snapshot(trained.load(saved)), snapshot(run.policy))
    assert main(["train", "--resume", str(saved)]) == 0
    assert equal(snapshot(trained.load(saved)), snapshot(done.policy))
    assert [line.get("reward") for line in RunFolder.open(saved).lines()] == [
        line.get("reward") for line in RunFolder.open(done.folder).lines()
    ]
    with pytest.raises(ValueError, match="already contains a run"):
        run.save(saved)
    assert done.save(done.folder) == done.folder


def test_an_interrupt_within_an_iteration_returns_the_last_whole_one(tiny: str, tmp_path: Path) -> None:
    calls: list[int] = []

    def pressed(images: Tensor, prompts: Sequence[str]) -> Tensor:
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return bright(images, prompts)

    run = fit(tiny, pressed, output=tmp_path / "run")
    assert run.stopped and run.iterations == 2
    assert [path.stem for path in RunFolder.open(tmp_path / "run").checkpoints()] == ["000002"]
    assert equal(snapshot(trained.load(tmp_path / "run")), snapshot(run.policy))


def test_a_second_interrupt_does_not_wait(tiny: str) -> None:
    def twice(images: Tensor, prompts: Sequence[str]) -> Tensor:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the reward went on")

    run = fit(tiny, twice)
    assert run.iterations == 0 and run.stopped


def test_weights_that_an_interrupt_has_torn_are_not_returned(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimiser has stepped, the copies of the policy have not followed: nothing of this iteration is kept."""

    def torn(weights: Full, name: str, decay: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Full, "follow", torn)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny, output=tmp_path / "run")
    assert not RunFolder.open(tmp_path / "run").checkpoints()


@pytest.mark.parametrize("what", ["reward", "hook"])
def test_who_fails_late_does_not_take_the_weights_along(tiny: str, what: str) -> None:
    calls: list[int] = []

    def fails(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("gone")
        return bright(*given[:2]) if what == "reward" else None

    given = {"reward": fails} if what == "reward" else {"hook": fails}
    kind = flowward.rewards.RewardError if what == "reward" else HookError
    with pytest.raises(kind, match=f"{what} 'fails' raised KeyError: 'gone'") as caught:
        fit(tiny, **given)  # type: ignore[arg-type]
    run: Fitted = caught.value.run  # type: ignore[attr-defined]
    assert run.iterations == (2 if what == "reward" else 3) and len(run.sample("a circle", 1)) == 1


def test_exports_are_those_of_the_command(done: Fitted, tmp_path: Path) -> None:
    """LoRA and merged weights, and the policy can be trained on after either."""
    now, drawn = snapshot(done.policy), done.sample("a circle", 2, tensor=True)
    assert main(["export", str(done.folder), "--output", str(tmp_path / "command")]) == 0
    files = done.export(tmp_path / "own")
    assert [path.name for path in files] == ["pytorch_lora_weights.safetensors", "README.md"]
    for path in (tmp_path / "command").iterdir():
        assert path.read_bytes() == (tmp_path / "own" / path.name).read_bytes(), path.name
    merged = done.export(tmp_path / "merged", merged=True)
    assert {path.name for path in merged} == {"pytorch_lora_weights.safetensors", "transformer", "README.md"}
    assert equal(snapshot(done.policy), now)
    assert torch.equal(done.sample("a circle", 2, tensor=True), drawn)
    with pytest.raises(ValueError, match="own holds something already; name another folder"):
        done.export(tmp_path / "own")


def test_the_average_can_be_exported(kept: Fitted, tmp_path: Path) -> None:
    now = snapshot(kept.policy)
    kept.export(tmp_path / "ema", weights="ema")
    assert equal(snapshot(trained.load(tmp_path / "ema")), snapshot(kept.policy, "ema"))
    assert equal(snapshot(kept.policy), now) and not equal(now, snapshot(kept.policy, "ema"))


def test_without_output_nothing_is_left_behind(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run = fit(tiny, iterations=1)
    folder = run.folder
    assert run.metrics and not RunFolder.open(folder).checkpoints()
    assert run.report(tmp_path / "deep" / "page.html") == tmp_path / "deep" / "page.html"
    assert "<html" in (tmp_path / "deep" / "page.html").read_text("utf-8") and run.report() == folder / "report.html"
    assert not [*Path().iterdir()] and "in memory" in repr(run)
    del run
    gc.collect()
    assert not folder.exists()


def test_a_policy_is_trained_on_from_where_it_is(kept: Fitted, tiny: str) -> None:
    policy = flowward.load(tiny, precision="float32")
    one = flowward.fit(algorithm(), policy, bright, TEXTS, **FEW, evaluation=False, progress=False)
    middle = snapshot(policy)
    two = flowward.fit(algorithm(), policy, bright, TEXTS, **FEW, evaluation=False, progress=False)
    assert equal(two._before, middle) and not equal(one._before, middle) and not equal(snapshot(policy), middle)


def test_a_notebook_shows_the_result(done: Fitted, kept: Fitted) -> None:
    for run in (done, kept):
        page = run._repr_html_()
        assert "before training" in page and "data:image/png;base64" in page and page.count("<tr>") >= 3
        assert "[" in page and "given prompts" in page


@pytest.mark.parametrize("notebook", [False, True])
def test_progress_is_lines_where_there_is_no_terminal(
    tiny: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, notebook: bool
) -> None:
    """A notebook's too, without a word about widgets; and nothing at all if nothing is wanted."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: notebook)
    fit(tiny, iterations=2, evaluation=HOW, progress=True)
    said = capsys.readouterr()
    assert not said.err and "[1/2] reward " in said.out and "iteration 2: bright " in said.out
    assert "warning: 5 of the 5 prompts of the evaluation are also training prompts" in said.out
    assert "run folder" not in said.out and "Bright on given prompts went from" in said.out
    fit(tiny, iterations=2, evaluation=HOW)
    assert capsys.readouterr() == ("", "")


def test_a_stop_is_said(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    press: Callable[[Step], None] = lambda step: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
    fit(tiny, output=tmp_path / "run", progress=True, hook=press)
    said = capsys.readouterr().out
    assert "stopping after this iteration" in said
    assert f"stopped after 1 iteration; go on with: flowward train --resume {tmp_path / 'run'}" in said
    assert f"report: {tmp_path / 'run' / 'report.html'}" in said
