"""Stable Diffusion 3.5 Medium at full size on one GPU: speed and memory, and what every option changes.

    python benchmarks/gpu.py [--size 512] [--images 8] [--steps 10] [--only plain "int8" ...] [--limit 24]
    python benchmarks/gpu.py --small --device cpu         # the same program in seconds, to see that it runs

Weights are random: benchmarks/full_size.py writes them to a folder, which is then loaded as a user loads it. Prompts
have 205 tokens; LoRA of rank 32, bf16. Printed, a table each:

- options, each alone: images/s sampled (network; decoding is told apart), points/s trained (forward and backward), the
  most memory of the three, and model FLOPs utilisation: the FLOPs that the model needs, as torch counts them, over time
  and over what a large matmul of the same run reaches. Work that checkpointing does twice counts once.
- batches: images/s forward without gradient, and forward and backward, at 1, 2, 4, ... in one pass.
- optimisers: an update of the adapters, and of all weights.
- with --limit, training iterations under a hard limit of so many GB, with the batches that `--memory` finds; for
  `--model flux.1-dev` with its frozen weights in 4 bits.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import full_size
import torch
from diffusers.models.normalization import RMSNorm
from full_size import WORDS
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flowward.algorithms import AdvantageFlow
from flowward.learning.optimisers import OPTIMISERS
from flowward.learning.points import Renoise
from flowward.models import Loading, hub, load
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.norms import FusedRMSNorm
from flowward.process.noise import Noise
from flowward.process.rollout import Sampler
from flowward.prompts import of
from flowward.rewards.images.jpeg import Compressible
from flowward.training.fit import fitted
from flowward.training.run import Run
from flowward.training.trainer import Trainer

PROMPTS = [f"{first} {second}" for first in WORDS[:8] for second in WORDS[8:16]]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no adapters": {},
    "adapters beside their layers": {"merge_lora": "never"},
    "under autocast": {"merge_lora": "never"},  # as it was until 2026-12: norms unfused, a cast per tensor
    "text of 256 tokens": {"text_tokens": 256},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "VAE slicing": {"vae_slicing": True},
    "VAE tiling": {"vae_tiling": True},
    "attention _native_flash": {"attention": "_native_flash"},
    "attention _native_cudnn": {"attention": "_native_cudnn"},
    "attention _native_efficient": {"attention": "_native_efficient"},
    "attention _native_math": {"attention": "_native_math"},
    "int8": {"quantise": "int8"},
    "nf4": {"quantise": "nf4"},
    "compiled blocks": {"compile_blocks": "always"},
    "compiled blocks, CUDA graphs": {"compile_blocks": "graphs"},
    "compiled blocks, int8": {"compile_blocks": "always", "quantise": "int8"},
}


def policy(folder: Path, options: argparse.Namespace, rank: int | None = 32, **how: Any) -> DiffusersPolicy:
    """The folder's, its prompts encoded and its text encoders gone."""
    loading = Loading(**{"size": (options.size, options.size), "device": options.device, "text_tokens": 128, **how})
    made = load(str(folder), rank, "float32" if options.device == "cpu" else "bf16", 0, loading)
    assert isinstance(made, DiffusersPolicy)
    made.prepare(PROMPTS)
    return made


def as_before(one: DiffusersPolicy) -> None:
    """Adapters are cast one by one under autocast, and norms are diffusers' own."""
    one.weights.half = None
    for module in one.family.network.modules():
        if isinstance(module, FusedRMSNorm):
            module.__class__ = RMSNorm


def synchronised(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], device: str, repeats: int = 3) -> float:
    """The median, after one that warms up."""
    work()
    found = []
    for _ in range(repeats):
        synchronised(device)
        started = time.perf_counter()
        work()
        synchronised(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


@contextmanager
def freed(device: str) -> Any:
    """Memory is given back at the end, and the most that was taken is counted from here."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    try:
        yield
    finally:
        gc.collect()
        if device != "cpu":
            torch.cuda.empty_cache()


def peak(device: str) -> float:
    """GB."""
    return torch.cuda.max_memory_allocated() / 1e9 if device != "cpu" else float("nan")


def matmul(device: str, size: int) -> float:
    """FLOP/s of one product of square matrices."""
    a = torch.randn(size, size, device=device, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    return 2 * size**3 / seconds(lambda: a @ a, device, 10)


@dataclass(frozen=True)
class Work:
    """What is repeated: a batch of inputs."""

    one: DiffusersPolicy
    many: int
    weights: str = "policy"

    def __post_init__(self) -> None:
        keys = tuple(("gpu", number) for number in range(self.many))
        object.__setattr__(self, "noise", Noise(self.one.latent_shape, keys, self.one.device))
        object.__setattr__(self, "x", self.noise.start())  # type: ignore[attr-defined]
        object.__setattr__(self, "t", torch.full((self.many,), 0.5, device=self.one.device))
        object.__setattr__(self, "condition", self.one.encode(PROMPTS[: self.many]))

    def forward(self) -> Tensor:
        with torch.no_grad(), self.one.weights.still(self.weights), self.one.repeated():
            return self.one.velocity(self.x, self.t, self.condition, self.weights)  # type: ignore[attr-defined]

    def sample(self, steps: int) -> Tensor:
        sampler = Sampler(steps, grid="model").bound(self.one.times)
        with self.one.weights.still(self.weights), self.one.repeated():
            return sampler(self.one.under(self.weights), self.condition, self.noise).x0  # type: ignore[attr-defined]

    def train(self) -> None:
        self.one.velocity(self.x, self.t, self.condition).square().mean().backward()  # type: ignore[attr-defined]


def flops(work: Work) -> tuple[float, float]:
    """Of a forward pass, and of one with its backward pass."""
    with FlopCounterMode(display=False) as forward:
        work.forward()
    with FlopCounterMode(display=False) as both:
        work.train()
    return forward.get_total_flops(), both.get_total_flops()


def row(name: str, folder: Path, options: argparse.Namespace, speed: float, needed: tuple[float, float]) -> str:
    device, many = options.device, options.images
    one = policy(folder, options, **OPTIONS[name])
    if name == "under autocast":
        as_before(one)
    work = Work(one, many, "reference" if name == "no adapters" else "policy")
    with freed(device):
        started = time.perf_counter()
        sampled = seconds(lambda: work.sample(options.steps), device)
        sampling = peak(device)
    with freed(device):
        x0 = work.sample(2)
        decoded = seconds(lambda: one.decode(x0), device)
        decoding = peak(device)
    with freed(device):
        trained = seconds(work.train, device) if name != "no adapters" else float("nan")
        training = peak(device)
    took = time.perf_counter() - started
    forward, both = (needed[0] * many, needed[1] * many)
    return (
        f"{name:28}{many / sampled:9.2f}{many / decoded:9.1f}{many / trained:9.2f}"
        f"{sampling:9.1f}{decoding:9.1f}{training:9.1f}"
        f"{forward * options.steps / sampled / speed:9.0%}{both / trained / speed:9.0%}{took:8.0f}"
    )


def table_of_options(folder: Path, options: argparse.Namespace, speed: float) -> None:
    plain = policy(folder, options)
    counted = tuple(each / options.images for each in flops(Work(plain, options.images)))
    del plain
    print(f"a point takes {counted[0] / 1e12:.2f} TFLOP forward, {counted[1] / 1e12:.2f} with its backward pass")
    print(f"{'':28}{'------- per second -------':^27}{'------- GB at most -------':^27}{'-- utilisation --':^18}")
    heads = ("sampled", "decoded", "trained", "sampled", "decoded", "trained", "sampled", "trained")
    print(f"{'':28}{''.join(f'{head:>9}' for head in heads)}{'took s':>8}")
    for name in options.only:
        try:
            with freed(options.device):
                print(row(name, folder, options, speed, counted), flush=True)
        except (RuntimeError, ValueError, ImportError) as error:
            print(f"{name:28}not here: {' '.join(str(error).split())[:120]}", flush=True)


def table_of_batches(folder: Path, options: argparse.Namespace) -> None:
    print(f"\n{'images or points in a pass':28}{'forward/s':>11}{'with backward/s':>17}{'GB':>8}")
    one = policy(folder, options)
    for many in (1, 2, 4, 8, 16, 32)[: 3 if options.small else None]:
        with freed(options.device):
            work = Work(one, many)
            forward, both = seconds(work.forward, options.device), seconds(work.train, options.device)
            print(f"{many:<28}{many / forward:11.1f}{many / both:17.1f}{peak(options.device):8.1f}", flush=True)


def table_of_optimisers(folder: Path, options: argparse.Namespace) -> None:
    print(f"\n{'optimiser':28}{'weights, millions':>18}{'ms an update':>14}{'GB of moments':>15}")
    for rank in (32, None):
        one = policy(folder, options, rank)
        parameters = list(one.weights.tensors("policy").values())
        for tensor in parameters:
            tensor.grad = torch.zeros_like(tensor)
        for name, made in OPTIMISERS.items():
            with freed(options.device):
                try:
                    optimiser = made(parameters, 1e-6)
                    took = seconds(optimiser.step, options.device)
                except (ImportError, ValueError, RuntimeError) as error:
                    print(f"{name:28}not here: {error}")
                    continue
                moments = sum(
                    value.numel() * value.element_size()
                    for state in optimiser.state.values()
                    for value in state.values()
                    if isinstance(value, Tensor)
                )
                count = sum(tensor.numel() for tensor in parameters) / 1e6
                print(f"{name:28}{count:18.1f}{1000 * took:14.1f}{moments / 1e9:15.2f}", flush=True)
                del optimiser
        del one, parameters


LIMITED: dict[str, list[dict[str, Any]]] = {
    "sd3.5-medium": [{}, {"gradient_checkpointing": True}],
    "flux.1-dev": [{"quantise": "nf4", "gradient_checkpointing": True}],
}


def limited(folder: Path, options: argparse.Namespace, **how: Any) -> None:
    """Iterations of AdvantageFlow under a hard limit of memory."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, options.limit * 1e9 / total))
    one = policy(folder, options, **how)
    run = Run(images_per_update=options.update, group_size=options.update // 4, microbatch=1, rollout_batch=1)
    algorithm = AdvantageFlow(rollout=Sampler(options.steps, grid="model"), points=Renoise(1))
    trainer = Trainer(algorithm, one, Compressible(), of("random", PROMPTS), run)
    started = time.perf_counter()
    fitting, said = fitted(trainer, 0.9 * options.limit * 1e9)
    print(f"\n{options.model} under a limit of {options.limit:g} GB, {how or 'plain'}: {said}", flush=True)
    print(f"found in {time.perf_counter() - started:.0f} s")
    trainer = Trainer(algorithm, one, Compressible(), of("random", PROMPTS), fitting)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        step = trainer.step()
    spent = ", ".join(f"{name} {value:.1f} s" for name, value in step.seconds.items())
    print(f"an iteration of {run.images} images: {spent}; {peak(options.device):.1f} GB at most", flush=True)
    torch.cuda.set_per_process_memory_fraction(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sd3.5-medium", choices=list(full_size.PIPELINES))
    parser.add_argument("--folder", type=Path, help="where its weights are, or are to be written")
    parser.add_argument("--size", type=int, default=512, help="height and width in pixels")
    parser.add_argument("--images", type=int, default=8, help="per batch")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--tables", nargs="*", default=["batches", "optimisers"], choices=["batches", "optimisers"])
    parser.add_argument("--limit", type=float, help="GB of memory for training iterations")
    parser.add_argument("--update", type=int, default=48, help="images of an iteration under the limit")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a few thousand weights, to try the program")
    options = parser.parse_args()
    hub.quiet()
    diffusers.logging.disable_progress_bar()
    speed = matmul(options.device, 512 if options.small else 8192)
    device = torch.cuda.get_device_name() if options.device != "cpu" else "CPU"
    print(f"{device}, torch {torch.__version__}: a matmul reaches {speed / 1e12:.3g} TFLOP/s")
    print(f"{options.model}, {options.size} px, batches of {options.images}, {options.steps} steps, LoRA 32")
    with tempfile.TemporaryDirectory() as own:
        folder = options.folder or Path(own) / options.model
        if not folder.exists():
            full_size.write(options.model, folder, options.device, options.small)
        if options.only:
            table_of_options(folder, options, speed)
        if "batches" in options.tables:
            table_of_batches(folder, options)
        if "optimisers" in options.tables:
            table_of_optimisers(folder, options)
        if options.limit:
            for how in LIMITED[options.model]:
                try:
                    limited(folder, options, **how)
                except (RuntimeError, ValueError) as error:
                    print(f"{options.model}, {how}: {' '.join(str(error).split())[:200]}")
                gc.collect()
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
