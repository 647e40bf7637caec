"""Several processes do what one does: the same samples, rewards, metrics and weights."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from collectives import counted
from processes import forked, together
from tiny_runs import TEXTS, bright, small, snapshot
from torch import Tensor

from flowward import cli, models, prompts
from flowward.algorithms import DGPO, FDFO, AdvantageFlow, FlowGRPO, TempFlowGRPO
from flowward.algorithms.auto_gamma import AutoGamma
from flowward.cli import _foreseen
from flowward.evaluation.evaluate import Evaluation, Evaluator, measure
from flowward.learning.points import Renoise, RenoiseGroups
from flowward.process.plans import Branches, Chain
from flowward.process.rollout import Drawn, Pairs, Sampler, Steps
from flowward.rewards import RewardError
from flowward.system import checkpoint, distributed
from flowward.training.folder import RunFolder
from flowward.training.metrics import Step
from flowward.training.trainer import Trainer

PROCESSES = 2
ENTRANTS: dict[str, Any] = {
    "advantageflow": AdvantageFlow(rollout=Sampler(2), points=Renoise(1)),
    "gamma auto": AdvantageFlow(
        gamma="auto", auto=AutoGamma(nats=1e-9, budget=1e-9), rollout=Sampler(2), points=Renoise(1)
    ),
    "dgpo": DGPO(rollout=Sampler(2), points=RenoiseGroups(2)),  # its groups are never torn apart
    "fdfo": FDFO(rollout=Pairs(3)),
    "flow_grpo": FlowGRPO(rollout=Chain(3), beta=0.01),
    "tempflow_grpo": TempFlowGRPO(rollout=Branches(3, fanout=2)),
}


def made(folder: str, name: str, reward: Any = bright, **changes: Any) -> Trainer:
    """A trainer of three prompts, which two processes cannot share evenly, in plain gradient steps."""
    policy = models.load(folder, None, "float32")
    run = small(
        images_per_update=12,
        updates_per_iteration=1,
        microbatch=2 if name in ("fdfo", "tempflow_grpo") else 4,
        rollout_batch=4,
        warmup=0,
        **changes,
    )
    one = Trainer(ENTRANTS[name], policy, reward, prompts.of("mine", TEXTS), run)
    one.optimiser = torch.optim.SGD(one.parameters, 0.1)
    one.run = replace(one.run, learning_rate=0.1)
    return one


def two_iterations(folder: str, name: str) -> dict[str, Any]:
    one = made(folder, name, group_size=2 if name == "fdfo" else 4)
    steps = [one.step() for _ in range(2)]
    assert one.shown
    return {
        "metrics": [step.metrics for step in steps],
        "weights": snapshot(one.policy),
        "extremes": one.shown.best_and_worst(),
        "told": [step.shown["best"]["prompt"] for step in steps],
    }


def fails_for_dark_ones(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
    """Only in the last process."""
    if distributed.rank() == PROCESSES - 1:
        raise RewardError("the scorer has gone")
    return bright(images, texts)


def evaluated(folder: str, reward: Any, images: int) -> Tensor:
    """The scores of so many images."""
    policy, how = models.load(folder, None, "float32"), Evaluation(images=images, sampler=Sampler(2))
    return measure(policy, prompts.of("mine", TEXTS), how, {"mine": reward}).scores["mine"]


def blown_up_in_the_last(folder: str) -> dict[str, Any]:
    """Whether weights are still worth saving where only the last process draws samples that are not finite."""
    found: dict[str, Any] = {}
    for what in ("measure", "grid"):
        one = made(folder, "advantageflow")
        how = Evaluation(images=4, sampler=Sampler(2))
        evaluator = Evaluator(one.policy, how, prompts.of("mine", TEXTS), pictures=4, rewards={"mine": bright})
        broken = replace(how, sampler=NoNumbers(2)) if distributed.rank() == PROCESSES - 1 else how
        there = replace(evaluator, evaluation=broken)
        try:
            one.measured(Step(1, {}, [], {}), there if what == "measure" else Whole(evaluator, there), None)
        except RewardError as error:
            found[what] = [one.sound, str(error)]
    return found


@dataclass(frozen=True)
class NoNumbers(Sampler):
    """Samples that are not finite."""

    def __call__(self, *given: Any) -> Drawn:
        drawn = super().__call__(*given)
        return replace(drawn, x0=drawn.x0 * math.nan)


class Whole(Evaluator):
    """One that measures, and another that draws the pictures."""

    def __init__(self, measures: Evaluator, draws: Evaluator):
        self.__dict__.update(measure=measures.measure, samples=draws.samples)


def added_up(number: int) -> dict[str, Any]:
    """Sums of many small tensors of two types, in buffers of 400 bytes; one tensor is larger than that."""
    tensors = [torch.full((size, 2), float(size + number)) for size in (*range(1, 20), 100)]
    halves = [torch.full((3,), 2.0 + number, dtype=torch.bfloat16) for _ in range(30)]
    turned = torch.arange(6.0).view(2, 3).t()  # its rows are not one after the other in memory
    before, distributed.BUFFER = distributed.BUFFER, 400
    try:
        with counted() as calls:
            distributed.add_up([*tensors, turned, *halves])
    finally:
        distributed.BUFFER = before
    return {"sums": [*tensors, *halves], "turned": turned, "calls": calls.sums, "bytes": calls.summed}


def process(number: int, folder: str, where: str) -> None:
    """What each of the processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{where}/meet", rank=number, world_size=PROCESSES)
    found: dict[str, Any] = {name: two_iterations(folder, name) for name in ENTRANTS}
    failing = made(folder, "advantageflow", fails_for_dark_ones)
    try:
        failing.step()
    except RewardError as error:
        found["said"] = str(error)
    found["few"] = evaluated(folder, bright, images=1)
    try:
        evaluated(folder, fails_for_dark_ones, images=4)
    except RewardError as error:
        found["said of an evaluation"] = str(error)
    found["blown up"] = blown_up_in_the_last(folder)
    mine = torch.arange(3.0 + number).view(-1, 1) + 10 * number
    steps = Steps(mine, mine, mine, torch.tensor([[[number]]]), torch.tensor([number]), torch.zeros(1, 4), 1)
    every = distributed.everyone(Drawn(mine, steps=steps))
    found["everyone"] = {str(rank): [each.x0, each.steps.sample] for rank, each in enumerate(every) if each.steps}
    found["shares"] = [distributed.share(torch.arange(12), unit) for unit in (1, 2, 4)]
    found["merged"] = distributed.merged({"both": 1.0 + number, f"only {number}": 5.0})
    found["sums"] = added_up(number)
    found["stop"] = [distributed.any_of(number == 1), distributed.any_of(False)]
    checkpoint.save(Path(where) / f"{number}.safetensors", found)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    where = tmp_path_factory.mktemp("processes")
    together(process, (tiny, str(where)), PROCESSES)
    return [checkpoint.load(where / f"{number}.safetensors") for number in range(PROCESSES)]


@pytest.mark.parametrize("name", ENTRANTS)
def test_two_processes_do_what_one_does(results: list[dict[str, Any]], tiny: str, name: str) -> None:
    """Three groups over two processes: the figures of an iteration agree, its best and worst images, and the
    weights after two."""
    alone = two_iterations(tiny, name)
    first, second = (each[name] for each in results)
    for now, then in zip(alone["metrics"], first["metrics"], strict=True):
        assert now.keys() == then.keys()
        for key in now.keys() - {"first_ratio_max", "first_ratio_in_clips_max"}:  # rounding errors, of other batches
            assert math.isclose(now[key], then[key], rel_tol=1e-4, abs_tol=1e-6), key
    torch.testing.assert_close(first["extremes"], alone["extremes"], rtol=0, atol=1e-4)
    assert torch.equal(first["extremes"], second["extremes"]) and first["told"] == alone["told"]
    moved = snapshot(models.load(tiny, None, "float32"))
    assert max((alone["weights"][key] - moved[key]).abs().max() for key in moved) > 1e-5
    for key, tensor in alone["weights"].items():
        torch.testing.assert_close(first["weights"][key], tensor, rtol=0, atol=1e-6)
        assert torch.equal(first["weights"][key], second["weights"][key])


def test_a_reward_that_fails_in_one_process_ends_all(results: list[dict[str, Any]]) -> None:
    for said in ("said", "said of an evaluation"):
        assert [each[said] for each in results] == ["the scorer has gone"] * PROCESSES


def test_samples_that_blow_up_in_one_process_are_saved_by_none(results: list[dict[str, Any]]) -> None:
    """The first process writes the checkpoint, and need not be the one whose samples are not finite."""
    for each in results:
        for what in ("measure", "grid"):
            sound, said = each["blown up"][what]
            assert not sound and "are NaN or infinite: its weights have diverged" in said


def test_an_evaluation_may_have_fewer_images_than_processes(results: list[dict[str, Any]], tiny: str) -> None:
    for each in results:
        torch.testing.assert_close(each["few"], evaluated(tiny, bright, images=1))


def test_what_is_told_to_everyone(results: list[dict[str, Any]]) -> None:
    """Tensors of different sizes arrive in the order of the processes, those inside of others too."""
    for each in results:
        assert each["everyone"]["0"][0].flatten().tolist() == [0, 1, 2]
        assert each["everyone"]["1"][0].flatten().tolist() == [10, 11, 12, 13]
        assert [each["everyone"][rank][1].item() for rank in ("0", "1")] == [0, 1]
        assert each["merged"] == {"both": 3.0, "only 0": 5.0, "only 1": 5.0}
        assert each["stop"] == [True, False]


def test_gradients_are_added_up_in_a_few_buffers(results: list[dict[str, Any]]) -> None:
    """Every tensor once, in its own type and shape: 21 of float32 in 7 buffers, 30 halves in 1."""
    sizes = (*range(1, 20), 100)
    wanted = [torch.full((size, 2), 2.0 * size + 1) for size in sizes]
    halves = [torch.full((3,), 5.0, dtype=torch.bfloat16)] * 30
    for each in results:
        found = each["sums"]
        for one, other in zip(found["sums"], [*wanted, *halves], strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other)
        assert torch.equal(found["turned"], 2 * torch.arange(6.0).view(2, 3).t())
        assert found["bytes"] == 8 * sum(sizes) + 6 * 4 + 30 * 6
        assert found["calls"] == 7 + 1


def test_shares_are_whole_and_leave_nothing_out(results: list[dict[str, Any]]) -> None:
    for number, unit in enumerate((1, 2, 4)):
        parts = [each["shares"][number] for each in results]
        assert torch.equal(torch.cat(parts), torch.arange(12))
        assert all(len(part) % unit == 0 for part in parts)
        assert len(parts[0]) - len(parts[1]) <= unit


def test_alone_nothing_is_shared() -> None:
    rows, figures = torch.arange(5), {"a": 1.0}
    assert torch.equal(distributed.share(rows), rows)
    assert distributed.everyone(rows)[0] is rows
    assert distributed.merged(figures) == figures
    assert distributed.messages("x") == ["x"] and distributed.messages(None) == []
    assert (distributed.rank(), distributed.count()) == (0, 1)


WORDS = [
    "--iterations", "2", "--images-per-update", "8", "--group-size", "4", "--microbatch", "4", "--evaluation.images",
    "6", "--reward", "jpeg-incompressibility", "--precision", "float32", "--algorithm.rollout.steps", "2",
    "--evaluation.sampler.steps", "2",
]  # fmt: skip


def test_the_command_starts_processes(tiny: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One run folder, one set of lines, and the same numbers; the command that is recorded starts it again.

    A hook is called in the first of them, with its share of the images.
    """
    seen, hook = tmp_path / "seen", tmp_path / "mine.py"
    hook.write_text(f"def note(step):\n    print(step.index, len(step.images), file=open({str(seen)!r}, 'a'))\n")
    words = ["train", "--model", tiny, *WORDS]
    assert cli.main([*words, "--output", str(tmp_path / "one")]) == 0
    capfd.readouterr()
    assert cli.main([*words, "--output", str(tmp_path / "two"), "--hook", f"{hook}:note", "--processes", "2"]) == 0
    assert seen.read_text().splitlines() == ["0 0", "1 4", "2 4"]
    said = capfd.readouterr().out
    assert said.count("report:") == 1 and said.count("[1/2]") == 1
    one, two = (RunFolder.open(tmp_path / name) for name in ("one", "two"))
    for a, b in zip(one.lines(), two.lines(), strict=True):
        assert a.get("reward") == pytest.approx(b.get("reward"), abs=1e-4)
    command = json.loads((two.path / "summary.json").read_text())["command"]
    assert command.endswith("--processes 2") and command.count("--output") == 1


def test_processes_without_a_device_are_refused(
    tiny: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "--model", tiny, *WORDS, "--output", str(tmp_path / "run")]
    assert cli.main([*words, "--processes", "none"]) == 2
    assert "--processes must be a whole number of at least 1, not 'none'" in capfd.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert cli.main([*words, "--processes", "2"]) == 2
    assert "2 processes need 2 CUDA devices, but this machine has 1" in capfd.readouterr().err


def test_a_process_that_is_left_alone_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:31148. GLHF!")

    monkeypatch.setattr(distributed, "count", lambda: 2)
    for name in ("all_gather_object", "all_gather", "all_reduce", "barrier"):
        monkeypatch.setattr(dist, name, gone)
    rows = torch.arange(3)
    for call in (
        lambda: distributed.everyone(rows),
        lambda: distributed.messages("x"),
        lambda: distributed.add_up([rows]),
        lambda: distributed.merged({"a": 1.0}),
        distributed.wait,
    ):
        with pytest.raises(distributed.Deserted, match="another process of this run has ended"):
            call()
    assert _foreseen(distributed.Deserted())


def test_what_ends_processes_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever of them it ends: the first one need not be among them. Without the others' store each says it."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    around = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_RUN_ID": "x"}
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    for rank, words in (("1", "trian"), ("0", "trian"), ("0", "samlpe"), ("1", "samlpe")):
        monkeypatch.setenv("RANK", rank)
        assert cli.main([words]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(";")[0] for line in said] == [
        "flowward: unknown command 'trian'",
        "flowward: unknown command 'samlpe'",
    ]
    del store
    assert cli.main(["trian"]) == 2
    assert "trian" in capsys.readouterr().err


def test_a_stopped_run_saves_and_says_how_to_go_on(
    tiny: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With as many processes; nothing but the one that started them is told to stop."""
    run, ended = tmp_path / "run", threading.Event()

    def stop() -> None:
        while not ended.wait(0.02):
            if len(RunFolder(run).lines()) > 1:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=stop, daemon=True).start()
    try:
        words = ["train", "--model", tiny, *WORDS, "--iterations", "500", "--output", str(run), "--processes", "2"]
        with forked():
            assert cli.main(words) == 130
    finally:
        ended.set()
    said = capfd.readouterr()
    assert "Traceback" not in said.err
    folder = RunFolder.open(run)
    (saved,) = folder.checkpoints()
    assert int(saved.stem) == folder.lines()[-1]["iteration"] >= 1
    advice = f"flowward train --resume {shlex.quote(str(run))} --processes 2"
    assert said.out.splitlines()[-1] == f"stopped and saved; go on with: {advice}"
