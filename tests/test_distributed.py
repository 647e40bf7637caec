"""Several processes do what one does: the same samples, rewards, metrics and weights."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny_runs import TEXTS, bright, small, snapshot
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from flowward import checkpoint, cli, distributed, models, prompts
from flowward.algorithms import DGPO, FDFO, AdvantageFlow, FlowGRPO, TempFlowGRPO
from flowward.folder import RunFolder
from flowward.plans import Branches, Chain
from flowward.points import Renoise, RenoiseGroups
from flowward.rewards import RewardError
from flowward.rollout import Drawn, Pairs, Sampler, Steps
from flowward.trainer import Trainer

PROCESSES = 2
ENTRANTS: dict[str, Any] = {
    "advantageflow": AdvantageFlow(rollout=Sampler(2), points=Renoise(1)),
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
    return {"metrics": [one.step().metrics for _ in range(2)], "weights": snapshot(one.policy)}


def fails_for_dark_ones(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
    """Only in the last process."""
    if distributed.rank() == PROCESSES - 1:
        raise RewardError("the scorer has gone")
    return bright(images, texts)


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
    mine = torch.arange(3.0 + number).view(-1, 1) + 10 * number
    steps = Steps(mine, mine, mine, torch.tensor([[[number]]]), torch.tensor([number]), torch.zeros(1, 4), 1)
    every = distributed.everyone(Drawn(mine, steps=steps))
    found["everyone"] = {str(rank): [each.x0, each.steps.sample] for rank, each in enumerate(every) if each.steps}
    found["shares"] = [distributed.share(torch.arange(12), unit) for unit in (1, 2, 4)]
    found["merged"] = distributed.merged({"both": 1.0 + number, f"only {number}": 5.0})
    found["stop"] = [distributed.any_of(number == 1), distributed.any_of(False)]
    checkpoint.save(Path(where) / f"{number}.safetensors", found)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    where = tmp_path_factory.mktemp("processes")
    start_processes(process, (tiny, str(where)), PROCESSES, start_method="spawn")
    return [checkpoint.load(where / f"{number}.safetensors") for number in range(PROCESSES)]


@pytest.mark.parametrize("name", ENTRANTS)
def test_two_processes_do_what_one_does(results: list[dict[str, Any]], tiny: str, name: str) -> None:
    """Three groups over two processes: the figures of an iteration agree, and so do the weights after two."""
    alone = two_iterations(tiny, name)
    first, second = (each[name] for each in results)
    for now, then in zip(alone["metrics"], first["metrics"], strict=True):
        assert now.keys() == then.keys()
        for key in now.keys() - {"first_ratio_max", "first_ratio_in_clips_max"}:  # rounding errors, of other batches
            assert math.isclose(now[key], then[key], rel_tol=1e-4, abs_tol=1e-6), key
    moved = snapshot(models.load(tiny, None, "float32"))
    assert max((alone["weights"][key] - moved[key]).abs().max() for key in moved) > 1e-5
    for key, tensor in alone["weights"].items():
        torch.testing.assert_close(first["weights"][key], tensor, rtol=0, atol=1e-6)
        assert torch.equal(first["weights"][key], second["weights"][key])


def test_a_reward_that_fails_in_one_process_ends_all(results: list[dict[str, Any]]) -> None:
    assert [each["said"] for each in results] == ["the scorer has gone"] * PROCESSES


def test_what_is_told_to_everyone(results: list[dict[str, Any]]) -> None:
    """Tensors of different sizes arrive in the order of the processes, those inside of others too."""
    for each in results:
        assert each["everyone"]["0"][0].flatten().tolist() == [0, 1, 2]
        assert each["everyone"]["1"][0].flatten().tolist() == [10, 11, 12, 13]
        assert [each["everyone"][rank][1].item() for rank in ("0", "1")] == [0, 1]
        assert each["merged"] == {"both": 3.0, "only 0": 5.0, "only 1": 5.0}
        assert each["stop"] == [True, False]


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
    "6", "--reward", "jpeg-incompressibility", "--precision", "float32",
]  # fmt: skip


def test_the_command_starts_processes(tiny: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One run folder, one set of lines, and the same numbers; the command that is recorded starts it again."""
    words = ["train", "--model", tiny, *WORDS]
    assert cli.main([*words, "--output", str(tmp_path / "one")]) == 0
    capfd.readouterr()
    assert cli.main([*words, "--output", str(tmp_path / "two"), "--processes", "2"]) == 0
    said = capfd.readouterr().out
    assert said.count("report:") == 1 and said.count("[1/2]") == 1
    one, two = (RunFolder.open(tmp_path / name) for name in ("one", "two"))
    for a, b in zip(one.lines(), two.lines(), strict=True):
        assert a.get("reward") == pytest.approx(b.get("reward"), abs=1e-4)
    assert json.loads((two.path / "summary.json").read_text())["command"].endswith("--processes 2")


def test_what_cannot_be_shared_is_refused(
    tiny: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "--model", tiny, *WORDS, "--output", str(tmp_path / "run")]
    assert cli.main([*words, "--processes", "none"]) == 2
    assert "--processes must be a whole number of at least 1, not 'none'" in capfd.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert cli.main([*words, "--processes", "2"]) == 2
    assert "2 processes need as many CUDA devices, here are 1" in capfd.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(distributed, "count", lambda: 3)
    with pytest.raises(ValueError, match="2 prompts an iteration are too few for 3 processes"):
        Trainer(ENTRANTS["advantageflow"], models.load(tiny), bright, prompts.of("mine", TEXTS), small())
