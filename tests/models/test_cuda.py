"""What only a CUDA device can show: run these wherever there is one. Nothing else depends on them.

pytest tests/test_cuda.py
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import TINY, small, tiny
from tiny_runs import bright, snapshot, taught
from torch import Tensor

from flowward import models, prompts
from flowward.algorithms.presets import PRESETS
from flowward.cli import main
from flowward.models import Loading, diffusers
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.system.memory import OutOfMemory
from flowward.training.fit import cuda_peak, fitted, limit
from flowward.training.run import Run
from flowward.training.trainer import Trainer
from flowward.verify import model

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

TEXTS = ["a red cat", "a small dog", "two blue squares"]
quantised = pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed")


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """No TF32: numbers are compared with those of the CPU."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("models") / "tiny-sd3"
    tiny("StableDiffusion3Pipeline").save_pretrained(folder)
    return folder


def policy(name: str, device: str, rank: int = 2) -> DiffusersPolicy:
    return DiffusersPolicy(name, FAMILIES[name](tiny(name).to(device), **small(name)), rank, "float32")


def close(found: Tensor, expected: Tensor, within: float = 1e-3) -> None:
    assert found.isfinite().all()
    assert (found.cpu() - expected.cpu()).norm() <= within * expected.norm()


@pytest.mark.parametrize("name", TINY)
def test_a_family_is_the_same_on_either_device(name: str, tmp_path: Path) -> None:
    """Velocities, their gradients, samples from the same noise, and images."""
    here, there = policy(name, "cpu"), policy(name, DEVICE)
    assert there.device.type == DEVICE
    found = []
    for one in (here, there):
        asked = model.asked_of(one, TEXTS[:2], tmp_path)
        x = torch.randn(2, *one.latent_shape, generator=torch.Generator().manual_seed(0)).to(one.device)
        v = one.velocity(x, torch.tensor([0.3, 0.8], device=one.device), one.encode(asked))
        v.square().mean().backward()
        gradients = [tensor.grad for tensor in one.weights.tensors("policy").values() if tensor.grad is not None]
        drawn = model.drawn(one, asked, x, 1.0)
        found.append((v.detach(), torch.cat([each.flatten() for each in gradients]), drawn, one.decode(drawn)))
    for ours, theirs in zip(*found, strict=True):
        close(theirs, ours)


@pytest.mark.parametrize("name", TINY)
def test_a_family_is_its_pipeline_on_the_device(name: str) -> None:
    failed = [check for check in model.laws(policy(name, DEVICE)) if not check.holds]
    assert not failed


@pytest.mark.parametrize("name", PRESETS)
def test_an_algorithm_is_the_same_on_either_device(name: str) -> None:
    """Two iterations in plain gradient steps: the same samples, metrics, and weights."""
    preset, found = PRESETS[name]["scenes"], []
    group = preset.run.get("group_size", 12)
    given = {**preset.run, "group_size": group, "microbatch": 2 * group, "rollout_batch": group}
    for device in ("cpu", DEVICE):
        one = policy("StableDiffusion3Pipeline", device)
        run = Run(**{**given, "images_per_update": 2 * group, "warmup": 0, "schedule": "constant"})
        run = replace(run, learning_rate=0.1, iterations=2)
        texts = prompts.of("mine", TEXTS)
        trainer = Trainer(preset.algorithm, one, bright, texts, run, teachers=taught(preset.algorithm, one, texts))
        trainer.optimiser = torch.optim.SGD(trainer.parameters, 0.1)
        metrics = [trainer.step().metrics for _ in range(2)]
        found.append((metrics, snapshot(one)))
    (said, ours), (told, theirs) = found
    for line, other in zip(said, told, strict=True):
        assert line["reward"] == pytest.approx(other["reward"], abs=1e-4)
        assert line["loss"] == pytest.approx(other["loss"], rel=0.05, abs=1e-3)
    whole = [torch.cat([tensor.flatten() for tensor in weights.values()]) for weights in (theirs, ours)]
    close(*whole)


WORDS = ["--size", "32", "32", "--lora-rank", "2", "--reward", "jpeg-compressibility", "--evaluation.images", "4",
         "--evaluation.sampler.steps", "2", "--algorithm.rollout.steps", "4", "--algorithm.rollout.grid", "model",
         "--images-per-update", "8", "--group-size", "4", "--evaluate-every", "0"]  # fmt: skip


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def words(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(diffusers, "CACHE", tmp_path / "cache")
    texts = tmp_path / "prompts.txt"
    texts.write_text("\n".join(TEXTS) + "\n")
    return ["--model", str(saved), "--prompts", str(texts), "--evaluation.prompts", str(texts), *WORDS]


@pytest.mark.parametrize("algorithm", ["advantageflow", "flow_grpo"])
def test_a_run_in_bf16_from_the_command_line(
    algorithm: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batches found on the device, trained, resumed as if never stopped, sampled and exported."""
    words = ["train", *words, "--algorithm", algorithm, "--memory", "auto"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert main([*words, "--iterations", "1", "--output", str(run)]) == 0
    assert main(["train", "--resume", str(run), "--iterations", "2"]) == 0
    assert main([*words, "--iterations", "2", "--output", str(whole)]) == 0
    halves, one = lines(run), lines(whole)
    assert [line["reward"] for line in halves[1:]] == pytest.approx([line["reward"] for line in one[1:]], rel=1e-3)
    assert main(["sample", str(run), TEXTS[0], "--steps", "2", "--output", str(tmp_path / "cat.png")]) == 0
    assert main(["export", str(run)]) == 0
    said = capsys.readouterr()
    assert "points per training pass; peak" in said.out
    assert "Traceback" not in said.err
    assert "precision: bf16" in (run / "config.yaml").read_text()


def test_one_process_of_torchrun_is_a_run(words: list[str], tmp_path: Path) -> None:
    """The collectives of NCCL and gloo, each with the tensors of its devices."""
    assert main(["train", *words, "--precision", "float32", "--iterations", "2", "--output", str(tmp_path / "a")]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m", "flowward",
               "train", *words, "--precision", "float32", "--iterations", "2"]  # fmt: skip
    command += ["--output", str(tmp_path / "b")]
    environment = {**os.environ, "FLOWWARD_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    alone, joined = lines(tmp_path / "a"), lines(tmp_path / "b")
    for line, other in zip(alone[1:], joined[1:], strict=True):
        assert line["reward"] == pytest.approx(other["reward"], rel=1e-4)
        assert line["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-2)


def load(folder: Path, precision: Any = "float32", **how: Any) -> DiffusersPolicy:
    one = models.load(str(folder), 2, precision, loading=Loading(size=(32, 32), device=DEVICE, **how))
    assert isinstance(one, DiffusersPolicy)
    return one


def asked(one: DiffusersPolicy) -> Tensor:
    """Velocities and the gradients of the adapters."""
    x = torch.randn(3, *one.latent_shape, generator=torch.Generator().manual_seed(0)).to(one.device)
    v = one.velocity(x, torch.tensor([0.2, 0.5, 0.9], device=one.device), one.encode(TEXTS))
    (v * x).mean().backward()
    gradients = [p.grad.flatten() for p in one.weights.tensors("policy").values() if p.grad is not None]
    return torch.cat([v.detach().flatten(), *gradients])


@quantised
@pytest.mark.parametrize(("how", "within"), [("int8", 0.05), ("nf4", 0.3)])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_quantised_base_is_near_and_trains_its_adapters(saved: Path, how: Any, within: float, precision: Any) -> None:
    whole, small = asked(load(saved, precision)), asked(load(saved, precision, quantise=how))
    assert whole.shape == small.shape and small.isfinite().all()
    assert 0 < (whole - small).norm() / whole.norm() < within


@quantised
def test_a_quantised_run_goes_on_where_it_stopped(words: list[str], tmp_path: Path) -> None:
    words = ["train", *words, "--quantise", "nf4", "--optimiser", "adamw8bit"]
    assert main([*words, "--iterations", "1", "--output", str(tmp_path / "a")]) == 0
    assert main(["train", "--resume", str(tmp_path / "a"), "--iterations", "2"]) == 0
    assert main([*words, "--iterations", "2", "--output", str(tmp_path / "b")]) == 0
    found, expected = lines(tmp_path / "a")[-1]["reward"], lines(tmp_path / "b")[-1]["reward"]
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "how", [{"gradient_checkpointing": True}, {"attention": "native"}, {"compile_blocks": "always"}]
)
def test_what_saves_memory_or_time_changes_nothing(saved: Path, how: dict[str, Any]) -> None:
    close(asked(load(saved, **how)), asked(load(saved)))


def test_replayed_passes_change_nothing(saved: Path) -> None:
    """Three rollouts and updates: warm-up, recording and replay, with weights that have changed in between."""
    found = []
    for compiled in ("never", "graphs"):
        one = trainer(load(saved, compile_blocks=compiled), images_per_update=24, microbatch=12, rollout_batch=12)
        for _ in range(3):
            one.step()
        assert one.policy.repeats == (compiled == "graphs")
        found.append(torch.cat([tensor.detach().flatten() for tensor in one.policy.weights.tensors("policy").values()]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-2)  # Adam makes steps of its rate from any rounding


def trainer(one: DiffusersPolicy, **changes: Any) -> Trainer:
    numbers: dict[str, Any] = {"images_per_update": 96, "group_size": 12, "microbatch": 1, "rollout_batch": 1}
    algorithm = PRESETS["advantageflow"]["scenes"].algorithm
    return Trainer(algorithm, one, bright, prompts.of("mine", TEXTS), Run(**{**numbers, **changes}))


def test_batches_are_as_large_as_memory_allows(saved: Path) -> None:
    """What was found stays within the limit when it is run, and twice as much would not."""
    one = load(saved)
    made = trainer(one)
    everything, _ = fitted(made, 1e12)
    assert (everything.rollout_batch, everything.microbatch) == (96, made.points_per_update)
    peak = cuda_peak(one.device)
    allowed = 0.4 * peak(lambda: trainer(one, microbatch=made.points_per_update, rollout_batch=96).step() and None)
    less, said = fitted(made, allowed)
    assert less.microbatch < made.points_per_update and "points per training pass; peak" in said
    run = trainer(one, microbatch=less.microbatch, rollout_batch=less.rollout_batch)
    assert peak(lambda: run.step() and None) <= 1.2 * allowed
    assert (limit("auto", one.device) or 0) > 1e9


def test_too_little_memory_is_said_in_a_sentence(saved: Path) -> None:
    one = load(saved)
    made = trainer(one, images_per_update=960, microbatch=960, rollout_batch=960)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 8e6) / total)
    try:
        with pytest.raises(OutOfMemory, match="out of memory with images of 32 x 32, 960 images sampled at once"):
            made.step()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert made.iteration == 0
