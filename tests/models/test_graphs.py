"""Passes that a GPU replays have one batch size and weights that stay where they are; what cannot is told once.

There is no GPU here. So a function in the place of torch.compile watches what would be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_policies import SMALL, policy
from tiny_runs import bright, close, few_steps, plain, snapshot
from torch import Tensor

from flowward import models, prompts
from flowward.algorithms import AdvantageFlow
from flowward.evaluation.drawing import draw
from flowward.learning.points import Renoise
from flowward.models import Adapters, Layout, Loading, compiling
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.models.lora import LoRA
from flowward.process.filled import filled
from flowward.process.noise import Noise
from flowward.process.policy import Condition
from flowward.process.rollout import Sampler
from flowward.training.run import Run
from flowward.training.trainer import Trainer

SD3 = "StableDiffusion3Pipeline"


class Recorder:
    """In the place of torch.compile: remembers the shapes of what would be CUDA graphs, and computes as it is."""

    def __init__(self) -> None:
        self.shapes: set[tuple[tuple[int, ...], ...]] = set()
        self.calls = self.marks = 0

    def compile(self, call: Callable[..., Any], options: Any = None, **more: Any) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if (options or {}).get("triton.cudagraphs"):
                assert not torch.is_grad_enabled()
                self.calls += 1
                tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
                self.shapes.add(tuple(tuple(each.shape) for each in tensors))
            return call(*args, **kwargs)

        return called

    def mark(self) -> None:
        self.marks += 1


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    one = Recorder()
    monkeypatch.setattr(torch, "compile", one.compile)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", one.mark)
    yield one


def learned(one: DiffusersPolicy) -> tuple[Trainer, Tensor]:
    """Two iterations of 6 images, sampled 4 at once, with anchors in blocks of 4 points; then an evaluation of 6."""
    run = Run(iterations=2, images_per_update=6, group_size=2, microbatch=2, rollout_batch=4)
    how = AdvantageFlow(rollout=Sampler(3, grid="model"), points=Renoise(1))
    trainer = plain(Trainer(how, one, bright, prompts.of("mine", ["a red cat", "dog", "a"]), run))
    trainer.step()
    trainer.step()
    return trainer, draw(one, ["a red cat", "dog", "a"] * 2, Sampler(2), 0, batch=4)


@pytest.mark.parametrize("merge", [True, False])
def test_all_replayed_passes_have_one_batch_size_and_change_nothing(recorder: Recorder, merge: bool) -> None:
    one, other = policy(SD3), policy(SD3)
    one.weights.merge = other.weights.merge = merge  # type: ignore[attr-defined]
    one.replay(compiling.Graphs())
    (_, images), (_, expected) = learned(one), learned(other)
    close(snapshot(one), snapshot(other))
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)
    blocks = len(one.family.pipe.transformer.transformer_blocks)
    # 2 iterations of 2 batches of 3 steps, at least 2 blocks of an anchor, and 2 batches of 2 steps
    assert recorder.marks >= 2 * (2 * 3 + 2) + 2 * 2 and recorder.calls == recorder.marks * blocks
    assert {shapes[0][0] for shapes in recorder.shapes} == {4}


def test_a_batch_of_less_than_half_is_not_filled_and_not_replayed(recorder: Recorder) -> None:
    one = policy(SD3)
    one.replay(compiling.Graphs())
    numbers = torch.arange(10)
    for many, expected in ((4, 4), (3, 4), (2, 4), (1, 1)):
        rows, repeated = filled(one, numbers[:many], 4)
        assert rows[:many].tolist() == list(range(many)) and len(rows) == expected
        with repeated:
            assert one._graphs is not None and one._graphs.on == (expected == 4)
    rows, _ = filled(one, numbers[:4], 8, unit=2)
    assert rows.tolist() == [0, 1, 2, 3, 2, 3, 2, 3]
    assert filled(policy(SD3), numbers[:3], 4)[0].tolist() == [0, 1, 2]  # where nothing is replayed


@pytest.mark.parametrize("name", ["advantageflow", "fdfo", "flow_grpo", "tempflow_grpo", "branch_grpo"])
def test_the_first_samples_of_a_filled_batch_are_those_of_the_batch_alone(name: str) -> None:
    """Also the states of pairs and the random steps of trees."""
    rollout = few_steps(name).rollout
    rollout = rollout.bound(lambda steps: tuple(torch.linspace(1, 0, steps + 1).tolist()))
    many = rollout.leaves
    keys = [("noise", 0, 0, 0, number) for number in range(many)]

    def drawn(times: int) -> Any:
        condition = Condition({"": torch.empty(1)})[torch.zeros(times * many, dtype=torch.long)]
        return rollout.at(0, 0)(lambda x, t, c: 0.5 * x, condition, Noise((2, 3), tuple(keys * times)))

    whole, alone = drawn(3).first(many), drawn(1)
    parts = ("x0", "states", "velocities", "cohort")
    pairs = [(getattr(whole, part), getattr(alone, part)) for part in parts]
    pairs += [(getattr(whole.steps, part), getattr(alone.steps, part)) for part in ("x", "v", "z", "sample", "number")
              if alone.steps is not None]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in pairs if b is not None)
    assert [a is None for a, _ in pairs] == [b is None for _, b in pairs]


def test_merged_weights_stay_where_they_are() -> None:
    """For all copies, in every rollout; the network has its own weights again after it."""
    one = policy(SD3)
    weights, x, t, condition = one.weights, torch.randn(1, *one.latent_shape), torch.ones(1), one.encode(["dog"])
    assert isinstance(weights, LoRA)
    weights.add("old")
    places, base = list[list[int]](), [layer.get_base_layer().weight for layer in weights._layers]
    weights.stay = True
    for number, name in enumerate(("policy", "old", "policy")):
        with torch.no_grad():
            for tensor in weights.tensors(name).values():
                tensor.normal_(std=0.3, generator=torch.Generator().manual_seed(number))
        weights.merge = False
        apart = one.velocity(x, t, condition, name).detach()
        weights.merge = True
        with weights.still(name):
            places.append([layer.get_base_layer().weight.data_ptr() for layer in weights._layers])  # type: ignore[operator,union-attr]
            torch.testing.assert_close(one.velocity(x, t, condition, name), apart, rtol=0, atol=1e-5)
    assert places[0] == places[1] == places[2]
    assert all(layer.get_base_layer().weight is own for layer, own in zip(weights._layers, base, strict=True))


def test_without_memory_for_merged_adapters_in_half_precision_nothing_is_replayed() -> None:
    one = policy(SD3)
    weights = one.weights
    assert isinstance(weights, LoRA)
    for half, stay in ((None, True), (torch.bfloat16, False)):
        weights.stay, weights.merge, weights.half = True, True, half
        weights._merge_if(False)
        assert weights.stay == stay  # float32 adapters are not rounded, so they lie where they lay


@pytest.mark.parametrize("name", list(FAMILIES))
def test_families_say_whether_the_length_of_text_varies(name: str) -> None:
    one = policy(name)
    if not one.edits:  # these inherit it
        assert one.family.masks_text == ("mask" in one.family.encode(["a red cat"]))


CUDA = SimpleNamespace(type="cuda")
FIXED: Any = SimpleNamespace(masks_text=False, transformers={"transformer": None})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"device": torch.device("cpu")}, "need a CUDA device"),
        ({"layout": Layout(shard="all")}, "gathered anew"),
        ({"layout": Layout(context_parallel=2)}, "gathered anew"),
        ({"layout": Layout(offload_copies=True)}, "moves weights between devices"),
        ({"loading": Loading(quantise="int8")}, "unpacked anew"),
        ({"family": SimpleNamespace(masks_text=True, transformers={"transformer": None})}, "shapes vary"),
        ({"family": SimpleNamespace(masks_text=False, transformers={"a": None, "b": None})}, "batch sizes vary"),
        ({"loading": Loading(merge_lora="never")}, "need --merge-lora auto or always"),
        ({"adapters": Adapters(2, palette=("a", "b"))}, "a palette is not merged"),
        ({}, None),
        ({"loading": Loading(merge_lora="never"), "half": False}, None),
        ({"loading": Loading(merge_lora="never"), "adapters": None}, None),
    ],
)
def test_what_cannot_be_a_cuda_graph_is_named(given: dict[str, Any], says: str | None) -> None:
    usual = {"loading": Loading(), "layout": Layout(), "family": FIXED, "adapters": 2, "half": True, "device": CUDA}
    found = compiling.unrecordable(**{**usual, **given})
    assert found is None if says is None else says in str(found)


def test_without_a_gpu_blocks_are_compiled_and_it_is_told_once(
    saved: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiling, "uncompilable", lambda device: None)
    one: Any = models.load(str(saved), 2, "float32", loading=replace(SMALL, compile_blocks="graphs"))
    said = capsys.readouterr().err
    assert "--compile-blocks graphs: CUDA graphs need a CUDA device. The blocks are compiled and run without" in said
    assert said.count("flowward:") == 1
    assert one.family.pipe.transformer.transformer_blocks[0]._compiled_call_impl is not None and not one.repeats


@pytest.mark.parametrize("compiled", ["auto", "never"])
def test_nothing_is_compiled_unasked(saved: Path, compiled: Any, capsys: pytest.CaptureFixture[str]) -> None:
    one: Any = models.load(str(saved), 2, "float32", loading=replace(SMALL, compile_blocks=compiled))
    assert one.family.pipe.transformer.transformer_blocks[0]._compiled_call_impl is None
    assert capsys.readouterr().err == ""


def test_copies_of_all_weights_are_compiled_too() -> None:
    one = policy(SD3, None)
    compiling.compile_all(one.weights, partial(compiling.compile_blocks, backend="eager"))
    one.weights.add("old")
    blocks = [network.transformer_blocks[0] for network in one.weights.networks()]
    assert len(blocks) == 2 and all(block._compiled_call_impl is not None for block in blocks)
    compiling.undo(one.weights)
    one.weights.add("ema")
    assert all(network.transformer_blocks[0]._compiled_call_impl is None for network in one.weights.networks())


def test_both_transformers_of_a_network_are_compiled() -> None:
    one = policy("WanPipeline")
    compiling.compile_blocks(one.family.network, "eager")
    for transformer in one.family.transformers.values():
        assert all(block._compiled_call_impl is not None for block in transformer.blocks)
