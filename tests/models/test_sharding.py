"""A model whose weights are split among processes does what a whole one does."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.distributed as dist
from processes import together
from tiny_pipelines import tiny
from tiny_runs import TEXTS, few_steps, small
from torch import Tensor

from flowward import models, prompts
from flowward.evaluation.evaluate import Evaluation, measure
from flowward.models import compiling, pipelines, sharding
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.layout import Layout
from flowward.models.loading import Loading
from flowward.models.weights import Placement
from flowward.process.policy import Policy
from flowward.process.rollout import Sampler
from flowward.rewards import RewardError
from flowward.system import distributed
from flowward.system.distributed import part
from flowward.training import fit
from flowward.training.folder import RunFolder
from flowward.training.trainer import Trainer

PIPELINES = {"sd3": "StableDiffusion3Pipeline", "flux": "FluxPipeline", "wan": "of two"}
NAMES = ("policy", "old", "ema", "reference")
TRAINED = {  # algorithm, LoRA rank, optimiser steps, images per step and per group
    "forward": ("advantageflow", None, 1, 6, 2),  # 3 groups
    "groups": ("dgpo", None, 1, 6, 2),
    "reverse": ("flow_grpo", 2, 2, 4, 2),
    "tree": ("tempflow_grpo", 2, 1, 12, 4),
    "one tree": ("tempflow_grpo", None, 1, 4, 4),  # so one process has no points
}
SETTINGS = [(name, rank, True) for name in PIPELINES for rank in (None, 2)] + [("sd3", None, False)]


def dark(images: Tensor, texts: Any, metadata: Any = None) -> Tensor:
    """Darkness, or 0 for the first third of the images in a call: so some points teach nothing."""
    return -images.flatten(1).mean(1)


def loaded(folder: Path, name: str, rank: int | None, layout: Layout | None = None, **how: Any) -> Policy:
    size = {"size": (16, 16), "device": "cpu", "frames": 5 if name == "wan" else None, **how}
    return models.load(str(folder / name), rank, "float32", loading=Loading(**size), layout=layout)


def asked(policy: Policy, name: str) -> Tensor:
    """Velocities at three points of two prompts, at early and late times, but other ones in each process."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(4, *policy.latent_shape, generator=draw)
    t, condition = torch.tensor([0.95, 0.9, 0.3, 0.1]), policy.encode(["a red circle", "two dogs"])
    own = distributed.share(torch.arange(4))
    with torch.no_grad():
        v = policy.under(name)(x[own], t[own], condition[own % 2])
    return torch.cat(distributed.everyone(v))


@torch.no_grad()
def changed(policy: Policy, scale: float) -> None:
    """All trained weights, moved by a known amount."""
    for number, tensor in enumerate(policy.weights.tensors("policy").values()):
        part(tensor).mul_(1 + scale * (1 + number % 3))


def answers(policy: Policy) -> dict[str, Tensor]:
    """What the policy and its copies answer, in several orders, while the policy changes and copies follow it."""
    weights, found = policy.weights, {}
    for name in NAMES[1:]:
        weights.add(name)
    for turn, order in enumerate((NAMES, NAMES[::-1], ("old", "policy", "reference", "ema", "policy", "old"))):
        changed(policy, 0.02 * (turn + 1))
        for place, name in enumerate(order):
            with weights.still(name):
                found[f"{turn} {place} {name}"] = asked(policy, name)
        weights.follow("old", 0.0)
        weights.follow("ema", 0.5)
    found["same"] = torch.tensor([weights.same("old"), weights.same("ema")])
    return found


def gradient(policy: Policy) -> dict[str, Tensor]:
    """The gradient of a mean over four points of all processes, and its norm."""
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(4, *policy.latent_shape, generator=draw)
    own, t = distributed.share(torch.arange(4)), torch.tensor([0.95, 0.6, 0.3, 0.1])
    condition = policy.encode(["a red circle", "two dogs"])[own % 2]
    (policy.under("policy")(x[own], t[own], condition).square().sum() / x.numel()).backward()
    tensors = policy.weights.tensors("policy")
    plain = [each.grad for each in tensors.values() if each.grad is not None]
    distributed.add_up([each for each in plain if not distributed.is_split(each)])
    found = {key: distributed.whole(each.grad).clone() for key, each in tensors.items()}
    norm = torch.nn.utils.clip_grad_norm_(tensors.values(), 1.0)
    return {**found, "norm": distributed.whole(norm)}


def made(folder: Path, case: str, layout: Layout | None) -> Trainer:
    """A trainer in plain gradient steps: Adam would blow rounding errors up."""
    name, rank, updates, images, group = TRAINED[case]
    sizes = {"images_per_update": images, "group_size": group, "microbatch": 2, "rollout_batch": group}
    run = small(updates_per_iteration=updates, warmup=0, **sizes)
    policy = loaded(folder, "sd3", rank, layout)
    one = Trainer(few_steps(name), policy, dark, prompts.of("mine", TEXTS), run)
    one.optimiser = torch.optim.SGD(one.parameters, 0.01)
    one.run = replace(one.run, learning_rate=0.01)
    return one


def trained(folder: Path, case: str, layout: Layout | None) -> dict[str, Any]:
    one = made(folder, case, layout)
    steps = [one.step() for _ in range(2)]
    one.refuse_apart()
    weights = {key: distributed.whole(tensor).clone() for key, tensor in one.policy.weights.tensors("policy").items()}
    return {"weights": weights, "loss": [step.metrics["loss"] for step in steps],
            "norm": [step.metrics["gradient_norm"] for step in steps]}  # fmt: skip


def kept(folder: Path, case: str, layout: Layout | None) -> Path:
    """A run of two iterations with Adam, and a checkpoint after each."""
    one, path = made(folder, case, layout), folder / f"{case} {layout.shard if layout else 'whole'}"
    one.optimiser = torch.optim.AdamW(one.parameters, 1e-3)
    one.run = replace(one.run, iterations=2, checkpoint_every=1, output=path)
    found = RunFolder.create(path, {}) if distributed.rank() == 0 else None
    for _ in one.steps(None, found):
        pass
    return path


def resumed(folder: Path, case: str, path: Path, layout: Layout | None) -> dict[str, Tensor]:
    """The state of a run from another layout, after one more iteration."""
    one = made(folder, case, layout)
    one.optimiser = torch.optim.AdamW(one.parameters, 1e-3)
    state = RunFolder.open(path).state(shards=one.shards())
    assert state is not None
    one.load_state_dict(state)
    before = {name: one.policy.weights.tensors(name) for name in one._stored}
    found = {f"{name} {key}": distributed.whole(each).clone() for name in before for key, each in before[name].items()}
    moments = [one.optimiser.state[each] for each in one.parameters]
    found |= {f"moment {n}": distributed.whole(each["exp_avg_sq"]).clone() for n, each in enumerate(moments)}
    return {**found, "loss": torch.tensor(one.step().metrics["loss"])}


class Fussy:
    """A reward that fails on the images of one process."""

    def __init__(self, number: int):
        self.number = number

    def __call__(self, images: Tensor, texts: Any, metadata: Any = None) -> Tensor:
        if distributed.rank() == self.number:
            raise ValueError("no answer")
        return dark(images, texts)


def measured(folder: Path, layout: Layout | None) -> dict[str, Any]:
    """Five images, so one process has one batch more; then the same with a reward that fails at once in process 1."""
    policy, how = loaded(folder, "sd3", None, layout), Evaluation(images=5, sampler=Sampler(2), batch=1)
    policy.prepare(TEXTS, folder / "cache")
    found: dict[str, Any] = dict(measure(policy, prompts.of("mine", TEXTS), how, {"dark": dark}).scores)
    try:
        measure(policy, prompts.of("mine", TEXTS), how, {"fussy": Fussy(1)})
    except RewardError as error:
        found["said"] = str(error)
    return found


def halves(folder: Path, split: bool) -> dict[str, Tensor]:
    """Answers and gradient of float32 adapters on a base in bfloat16, as on a GPU."""
    where, kind = folder / "sd3", diffusers.SD3Transformer2DModel
    if split:
        mesh = sharding.mesh_of("all", "cpu")
        assert mesh is not None
        network: Any = sharding.Stored(kind, where / "transformer", None, torch.bfloat16, mesh, "cpu").read()
    else:
        network = kind.from_pretrained(where / "transformer", torch_dtype=torch.bfloat16)
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(where, transformer=network)
    family = pipelines.shaped(pipe, Loading(size=(16, 16)))
    policy = DiffusersPolicy("half", family, 2, "bf16", placement=Placement(collective=split, base="half"))
    assert all(tensor.dtype == torch.float32 for tensor in policy.weights.tensors("policy").values())
    assert not any(map(distributed.is_split, policy.weights.tensors("policy").values()))
    found = gradient(policy)
    return {**found, **answers(policy)}


def compiled(folder: Path, layout: Layout | None) -> dict[str, Tensor]:
    """Answers and gradient with compiled blocks."""
    policy: Any = loaded(folder, "sd3", 2, layout)
    compiling.compile_blocks(policy.family.network, "aot_eager")
    found = gradient(policy)
    return {**found, "answer": asked(policy, "policy")}


def fitted(folder: Path, layout: Layout) -> list[list[int]]:
    """The batches that every process finds, if the third size does not fit into process 1."""
    one, tried = made(folder, "forward", layout), []

    def peak(work: Any) -> float:
        work()
        tried.append(1)
        return float("inf") if len(tried) == 3 and distributed.rank() == 1 else 1e9

    run, _ = fit.fitted(one, 5e9, peak)
    return distributed.told([run.rollout_batch, run.microbatch])


def held(policy: Policy) -> float:
    """The share of the base model's weights that this process has."""
    every = list(policy.family.network.named_parameters())  # type: ignore[attr-defined]
    base = [each for name, each in every if "lora_" not in name]
    return sum(part(each).numel() for each in base) / sum(each.numel() for each in base)


def process(number: int, folder: Path, processes: int, shard: Any, port: int) -> None:
    torch.set_num_threads(1)
    import os

    os.environ["LOCAL_WORLD_SIZE"] = "2"
    init = f"tcp://127.0.0.1:{port}"
    with distributed.grouped(60.0, init_method=init, rank=number, world_size=processes):
        layout, found = Layout(shard), {}
        if processes == 2:
            for name, rank, checkpointing in SETTINGS:
                how = Layout(shard, offload_copies=True) if not checkpointing else layout
                policy = loaded(folder, name, rank, how, gradient_checkpointing=checkpointing)
                own = {"base": policy.identity["base"], "held": held(policy), "gradient": gradient(policy)}
                policy.weights.tensors("policy")
                for tensor in policy.weights.tensors("policy").values():
                    tensor.grad = None
                found[name, rank, checkpointing] = {**own, "answers": answers(policy)}
            found["compiled"], found["halves"] = compiled(folder, layout), halves(folder, True)
            found["measured"], found["fitted"] = measured(folder, layout), fitted(folder, layout)
            for case in ("forward", "reverse"):
                own = kept(folder, case, layout)
                found["resumed", case] = resumed(folder, case, folder / f"{case} whole", layout)
                assert all(file.suffix in (".safetensors", ".json") for file in own.glob("checkpoints/*.parts/*"))
        for case in TRAINED if processes == 2 else ("forward", "reverse"):
            found[case] = trained(folder, case, layout)
        if number == processes - 1:
            (folder / f"{shard} {processes}.pickle").write_bytes(pickle.dumps(found))


def port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("pipelines")
    for name, kind in PIPELINES.items():
        tiny(kind).save_pretrained(where / name)
    return where


def of_processes(folder: Path, shard: str, processes: int) -> dict[Any, Any]:
    path = folder / f"{shard} {processes}.pickle"
    if not path.exists():
        for case in ("forward", "reverse") if processes == 2 else ():
            kept(folder, case, None)
        together(process, (folder, processes, shard, port()), processes)
    found: dict[Any, Any] = pickle.loads(path.read_bytes())
    return found


def close(a: Any, b: Any, bound: float = 3e-6) -> None:
    """Sums in another order, in float32: 1e-6 on a Xeon, 1.3e-6 on an EPYC."""
    assert a.keys() == b.keys()
    for key in a:
        x, y = (torch.as_tensor(each[key]).detach().double() for each in (a, b))
        assert (x - y).abs().max() <= bound * max(1.0, float(y.abs().max())), (key, float((x - y).abs().max()))


@pytest.mark.parametrize(("name", "rank", "checkpointing"), SETTINGS)
def test_a_split_model_answers_as_a_whole_one(folder: Path, name: str, rank: int | None, checkpointing: bool) -> None:
    """In every order of asking, for the policy and all copies; with gradients, their norm, and half of the weights."""
    found, whole = of_processes(folder, "all", 2)[name, rank, checkpointing], loaded(folder, name, rank)
    assert found["base"] == whole.identity["base"]
    assert 0.45 < found["held"] < 0.6
    close(found["gradient"], gradient(whole))
    for tensor in whole.weights.tensors("policy").values():
        tensor.grad = None
    close(found["answers"], answers(whole), 2e-6)


@pytest.mark.parametrize("case", TRAINED)
def test_a_split_model_learns_the_same(folder: Path, case: str) -> None:
    """With 3 groups on 2 processes, and with a process that has no points."""
    found, whole = of_processes(folder, "all", 2)[case], trained(folder, case, None)
    close(found["weights"], whole["weights"])
    close({"loss": found["loss"], "norm": found["norm"]}, {"loss": whole["loss"], "norm": whole["norm"]})


@pytest.mark.parametrize("case", ["forward", "reverse"])
def test_split_among_two_on_each_of_two_machines(folder: Path, case: str) -> None:
    found, whole = of_processes(folder, "node", 4)[case], trained(folder, case, None)
    close(found["weights"], whole["weights"])


@pytest.mark.parametrize("case", ["forward", "reverse"])
def test_a_run_goes_on_in_another_layout(folder: Path, case: str) -> None:
    """From a whole model to a split one and back: weights, copies, moments, and the next loss."""
    to_split = of_processes(folder, "all", 2)["resumed", case]
    close(to_split, resumed(folder, case, folder / f"{case} whole", None), 2e-6)
    again = resumed(folder, case, folder / f"{case} all", None)
    apart = torch.cat([(to_split[name] - again[name]).abs().flatten().double() for name in again])
    # two iterations of Adam were split, whose step is of any sign where a gradient is 0: at a few numbers
    far = int((apart > 2e-4).sum())
    assert far <= len(apart) // 5000 and apart.max() < 1e-3, (far, len(apart), float(apart.max()))


def test_an_evaluation_of_a_split_model(folder: Path) -> None:
    found, whole = of_processes(folder, "all", 2)["measured"], measured(folder, None)
    assert torch.allclose(found["dark"], whole["dark"], atol=1e-6)
    assert "no answer" in found["said"]


def test_compiled_blocks_of_a_split_model(folder: Path) -> None:
    found, plain = of_processes(folder, "all", 2)["compiled"], loaded(folder, "sd3", 2)
    close(found, {**gradient(plain), "answer": asked(plain, "policy")})


def test_float32_adapters_on_a_split_base_in_half_precision(folder: Path) -> None:
    """As near as two batches of different sizes are: bfloat16 has 8 bits."""
    found, whole = of_processes(folder, "all", 2)["halves"], halves(folder, False)
    close(found, whole, 0.02)


def test_batches_that_fit_are_equal_in_all_processes(folder: Path) -> None:
    """Sizes of 1, 2, 3 and 6 images; the third does not fit into one of the processes."""
    (a, most), other = of_processes(folder, "all", 2)["fitted"]
    assert (a, most) == (2, 12) and other == [a, most]


def test_layouts_that_cannot_be(folder: Path) -> None:
    for how, rank, said in (
        ({"quantise": "int8"}, 2, "quantised weights cannot be split among processes"),
        ({"merge_lora": "always"}, 2, "adapters cannot be merged into weights that are split"),
    ):
        with pytest.raises(ValueError, match=said):
            loaded(folder, "sd3", rank, Layout("all"), **how)
    with pytest.raises(ValueError, match="--offload-copies is for runs that train all weights"):
        loaded(folder, "sd3", 2, Layout(offload_copies=True))
    with pytest.raises(ValueError, match="the built-in model does not support shard"):
        models.load("scenes", layout=Layout("all"))


def test_one_process_holds_all(folder: Path) -> None:
    assert not dist.is_initialized()
    assert not loaded(folder, "sd3", 2, Layout("all")).weights.collective
