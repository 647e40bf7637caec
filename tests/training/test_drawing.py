"""Where images are drawn: options, what travels to drawers and back, and sentences about what does not go together."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny_runs import algorithm, small, trainer
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

from flowward.models.layout import Layout
from flowward.models.weights import Full
from flowward.process.policy import Condition
from flowward.process.rollout import Drawn, Steps
from flowward.system import distributed
from flowward.training import config
from flowward.training.drawing import Drawing
from flowward.training.rollouts import cluster
from flowward.training.rollouts.drawers import Block, Sheet
from flowward.training.rollouts.packing import packed, unpacked
from flowward.training.rollouts.ray import actors_of
from flowward.training.rollouts.versions import Versions, whole


def test_options_of_actors_need_actors() -> None:
    with pytest.raises(ValueError, match=r"^drawers and stale are about Ray actors: add --rollouts ray, or set --draw"):
        Drawing(drawers=2, stale=1)
    with pytest.raises(ValueError, match="unknown place of rollouts 'vllm'"):
        Drawing(rollouts="vllm")  # type: ignore[arg-type]
    for wrong in ({"drawers": 0}, {"stale": -1}, {"stale": 65}, {"reward_actors": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Drawing(rollouts="ray", **wrong)  # type: ignore[arg-type]
    assert config.from_dict({"drawing": {"rollouts": "ray", "stale": 1}}).drawing == Drawing("ray", 1, 1)


def test_the_run_says_where_its_images_are_drawn() -> None:
    assert Drawing().notes() == [] and Drawing().idle(small(), 1) == []
    assert Drawing("ray", 8, 2, 1).notes() == [
        "8 Ray actors draw the images with weights of 2 iterations before, and 1 scores"
    ]
    run = small(images_per_update=32, rollout_batch=8)
    assert Drawing("ray", 4).idle(run, 1) == Drawing("ray", 4).idle(run, 2) == []
    assert Drawing("ray", 5).idle(run, 1) == [
        "an iteration is drawn in 4 blocks of up to 8 images, so only 4 of 5 drawers work at a time: use a smaller "
        "--rollout-batch or fewer --drawers"
    ]


def settings(**changes: Any) -> Any:
    return replace(config.settings_type("advantageflow")(), drawing=Drawing("ray", 2), **changes)


def test_what_does_not_go_together_is_one_sentence(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer(tiny)

    def refused(given: Any) -> str:
        with pytest.raises(ValueError) as said:
            actors_of(given, one.policy, one.reward)
        return str(said.value)

    monkeypatch.delenv(cluster.ADDRESS, raising=False)
    with monkeypatch.context() as without:
        without.setattr(cluster, "find_spec", lambda name: None)
        assert refused(settings()) == "--rollouts ray needs Ray: pip install flowward[ray]"
    monkeypatch.setattr(cluster, "find_spec", lambda name: object())
    assert refused(settings(preferences="pairs.jsonl")).startswith("preferences bring their images")
    assert refused(settings(layout=Layout(context_parallel=2))).startswith("--context-parallel shares samples")
    assert actors_of(config.settings_type("advantageflow")(), one.policy, one.reward) is None
    monkeypatch.setattr(distributed, "count", lambda: 3)
    assert refused(settings()).startswith("several processes share drawers through a Ray cluster: run `ray start")
    monkeypatch.setenv(cluster.ADDRESS, "auto")
    assert refused(settings()) == "3 processes need a drawer each, not 2 in all: raise --drawers"
    few = replace(settings(), drawing=Drawing("ray", 7, 0, 2))
    assert refused(few) == "3 processes need a reward actor each, not 2 in all: raise --reward-actors"
    found = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        made = actors_of(replace(settings(), drawing=Drawing("ray", 7, 0, 4)), one.policy, one.reward)
        assert made is not None
        found.append((made(one.run).drawers, made(one.run).scorers))
    assert found == [(3, 2), (2, 1), (2, 1)]


def test_a_block_has_the_prompts_of_its_images_alone() -> None:
    condition = Condition({"words": torch.arange(8.0).view(4, 2), "one": torch.arange(4.0)})
    found = Block.of(3, torch.tensor([7, 8, 20]), ["a", "b", "c", "d"], condition, torch.tensor([3, 1, 3]))
    assert found.prompts == ("b", "d") and found.row.tolist() == [1, 0, 1]
    again = found.condition[found.row]
    assert torch.equal(again.tensors["words"], condition[torch.tensor([3, 1, 3])].tensors["words"])


def test_what_is_packed_comes_out_as_it_was() -> None:
    """Types that numpy lacks, empty tensors, tensors that ask for gradients; with memory of their own."""
    steps = Steps(
        *(torch.randn(4, 3) for _ in range(3)), *(torch.arange(4) for _ in range(2)), torch.randn(2, 4).double(), 2
    )
    sheet = Sheet(Drawn(torch.randn(2, 3).bfloat16(), steps=steps), torch.empty(0, 3), 5)
    given = {
        "sheet": sheet,
        "flag": torch.tensor([True]),
        "one": torch.tensor(1.5),
        "p": torch.nn.Parameter(torch.ones(2)),
    }
    found = unpacked(pickle.loads(pickle.dumps(packed(given))))
    assert torch.equal(found["sheet"].drawn.x0, sheet.drawn.x0) and found["sheet"].drawn.x0.dtype == torch.bfloat16
    for name in ("x", "v", "z", "sample", "number", "table"):
        assert torch.equal(getattr(found["sheet"].drawn.steps, name), getattr(steps, name))
    assert found["sheet"].drawn.steps.per_root == 2 and found["sheet"].drawn.cohort is None
    assert found["sheet"].evaluations == 5 and found["flag"].dtype == torch.bool and found["one"].shape == ()
    assert found["p"].requires_grad and not found["one"].requires_grad
    x = torch.zeros(3)
    copy = unpacked(packed({"x": x}))["x"]
    copy += 1
    assert not x.any()


@pytest.fixture
def alone() -> Iterator[Any]:
    """A mesh of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_weights_that_are_split_are_put_together_for_drawers(alone: Any) -> None:
    """And kept as they are split."""
    network = torch.nn.Linear(3, 2)
    for name, tensor in list(network.named_parameters()):
        split = distribute_tensor(tensor.detach(), alone, [Replicate()])
        network.register_parameter(name, torch.nn.Parameter(split))
    weights = Full(network)
    versions = Versions(weights, ["policy"], 1)
    versions.keep(0)
    before: dict[str, Tensor] = {key: value.full_tensor().clone() for key, value in weights.tensors("policy").items()}  # type: ignore[attr-defined]
    with torch.no_grad():
        network.weight.mul_(2)
    kept = versions.at(0, "policy")
    assert all(isinstance(tensor, DTensor) for tensor in kept.values())
    for key, tensor in whole(kept, weights.tensors("policy")).items():
        assert not isinstance(tensor, DTensor) and tensor.requires_grad and torch.equal(tensor, before[key])


def test_versions_of_another_model_are_refused(tiny: str) -> None:
    one = trainer(tiny, algorithm())
    versions = Versions(one.policy.weights, ["old"], 1)
    with pytest.raises(ValueError, match="the earlier weights 'old' of this checkpoint do not fit"):
        versions.load_state_dict({3: {"policy": {}}})
    with pytest.raises(ValueError, match="the earlier weights 'old' of this checkpoint do not fit"):
        versions.load_state_dict({3: {"old": {"strange": torch.zeros(1)}}})
