"""Teams of processes that share the sequence of each sample compute what one process does."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import together
from tiny_pipelines import tiny
from tiny_runs import TEXTS, few_steps, small
from torch import Tensor

from flowward import models, prompts
from flowward.models.layout import Layout
from flowward.models.loading import Loading
from flowward.system import distributed
from flowward.system.launching import joined
from flowward.training.trainer import Trainer

PIPELINES = {
    "flux": "FluxPipeline",
    "flux2": "Flux2KleinPipeline",
    "qwen": "QwenImagePipeline",
    "wan": "WanPipeline",
    "two": "of two",
}
LAYOUTS = {  # processes, layout
    "one team": (2, Layout(context_parallel=2)),
    "split": (2, Layout("all", context_parallel=2)),
    "two teams": (4, Layout(context_parallel=2)),
}


def bright(images: Tensor, texts: Any, metadata: Any = None) -> Tensor:
    return images.flatten(1).mean(1)


def made(folder: Path, name: str, rank: int | None, layout: Layout | None) -> Trainer:
    video = name in ("wan", "two")
    how = Loading(size=(32, 32), device="cpu", frames=5 if video else None)
    policy = models.load(str(folder / name), rank, "float32", loading=how, layout=layout)
    run = small(images_per_update=4, group_size=2, microbatch=2, rollout_batch=2, warmup=0)
    one = Trainer(few_steps("flow_grpo"), policy, bright, prompts.of("mine", TEXTS), run)
    one.optimiser = torch.optim.SGD(one.parameters, 0.01)
    one.run = replace(one.run, learning_rate=0.01)
    return one


def trained(folder: Path, name: str, rank: int | None, layout: Layout | None) -> dict[str, Any]:
    """Weights, and what is told of two iterations."""
    one = made(folder, name, rank, layout)
    steps = [one.step() for _ in range(2)]
    one.refuse_apart()
    told = ("loss", "reward", "gradient_norm", "latent_rms")
    weights = {key: distributed.whole(tensor).detach() for key, tensor in one.policy.weights.tensors("policy").items()}
    return {"weights": weights, **{key: torch.tensor([step.metrics[key] for step in steps]) for key in told}}


def process(number: int, folder: Path, layout: str, port: int) -> None:
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # on a CPU it is 0, and diffusers divides by it
    processes, how = LAYOUTS[layout]
    init = f"tcp://127.0.0.1:{port}"
    with distributed.grouped(60.0, how.context_parallel, init_method=init, rank=number, world_size=processes):
        names = PIPELINES if layout == "one team" else ("flux",)
        found: dict[Any, Any] = {name: trained(folder, name, 2, how) for name in names}
        if layout == "split":
            found["full"] = trained(folder, "flux", None, how)
        if number == processes - 1:
            (folder / f"{layout}.pickle").write_bytes(pickle.dumps(found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("pipelines")
    for name, kind in {**PIPELINES, "sd3": "StableDiffusion3Pipeline"}.items():
        tiny(kind).save_pretrained(where / name)
    return where


def port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_team_learns_what_one_process_does(folder: Path, layout: str) -> None:
    together(process, (folder, layout, port()), LAYOUTS[layout][0])
    for name, found in pickle.loads((folder / f"{layout}.pickle").read_bytes()).items():
        whole = trained(folder, *(("flux", None) if name == "full" else (name, 2)), None)
        for key, tensor in whole.pop("weights").items():
            assert torch.allclose(found["weights"][key], tensor, atol=2e-6), (name, key)
        for key, told in whole.items():
            assert torch.allclose(found[key], told, atol=1e-5, rtol=1e-5), (name, key, found[key], told)


def test_models_without_a_plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="SD3Transformer2DModel cannot share a sequence among processes: leave out"):
        made(folder, "sd3", 2, Layout(context_parallel=2))
    with pytest.raises(ValueError, match="2 attention heads cannot be shared equally by --context-parallel 3"):
        made(folder, "flux", 2, Layout(context_parallel=3))
    with pytest.raises(ValueError, match="--context-parallel 2 needs a number of processes that is a multiple of 2"):
        joined(team=2).__enter__()
