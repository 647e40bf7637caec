"""Stable Diffusion 3.5 Medium at full size on one GPU: images/s, points/s, memory, and the share of a matmul's speed.

    python benchmarks/gpu.py [--size 512] [--images 8] [--steps 10] [--only plain checkpointing ...] [--limit 24]
    python benchmarks/gpu.py --small --device cpu         # the same program in seconds, to see that it runs

Weights are random, so nothing is downloaded; text embeddings are random too (205 tokens). Every option is measured
alone, beside `plain` (bf16, LoRA 32, no option). The share is the FLOPs of the network's forward passes, as torch
counts them, over time and over what one large matmul of the same run reaches; a backward pass counts as one forward
(the base is frozen), two with activations computed again. With --limit, a training iteration is then run under a hard
limit of so many GB, with checkpointing and the batches that `flowward.fit` finds.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from flowward.algorithms import AdvantageFlow
from flowward.fit import fitted
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families.sd3 import StableDiffusion3
from flowward.points import Renoise
from flowward.prompts import of
from flowward.rewards.jpeg import Compressible
from flowward.rollout import Sampler
from flowward.run import Run
from flowward.streams import Noise
from flowward.trainer import Trainer

PROMPTS = [f"prompt {number}" for number in range(64)]
FULL: dict[str, Any] = {
    "sample_size": 128, "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24,
    "joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
}  # fmt: skip
SMALL: dict[str, Any] = {
    "sample_size": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 64,
    "caption_projection_dim": 32, "pooled_projection_dim": 32, "pos_embed_max_size": 64, "dual_attention_layers": (0,),
}  # fmt: skip
OPTIONS: dict[str, Callable[[Any], None]] = {
    "plain": lambda pipe: None,
    "checkpointing": lambda pipe: pipe.transformer.enable_gradient_checkpointing(),
    "vae slicing": lambda pipe: pipe.vae.enable_slicing(),
    "compiled blocks": lambda pipe: pipe.transformer.compile_repeated_blocks(),
    "attention _native_cudnn": lambda pipe: pipe.transformer.set_attention_backend("_native_cudnn"),
    "attention _native_flash": lambda pipe: pipe.transformer.set_attention_backend("_native_flash"),
}


class RandomText(StableDiffusion3):
    """Stable Diffusion 3 that was given embeddings instead of encoders."""

    text_tokens = 128

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        known = self.pipe.transformer.config
        like = torch.zeros((), device=self.pipe.transformer.device)
        shape = (len(prompts), 77 + self.text_tokens, known.joint_attention_dim)
        return {
            "words": torch.randn(shape).to(like),
            "pooled": torch.randn(len(prompts), known.pooled_projection_dim).to(like),
        }


def policy(size: int, device: str, small: bool, option: Callable[[Any], None]) -> DiffusersPolicy:
    torch.manual_seed(0)
    width = (8, 8) if small else (128, 256, 512, 512)
    with torch.device(device):
        transformer = diffusers.SD3Transformer2DModel(
            patch_size=2, in_channels=16, out_channels=16, qk_norm="rms_norm", **(SMALL if small else FULL)
        )
        vae = diffusers.AutoencoderKL(
            block_out_channels=width, down_block_types=("DownEncoderBlock2D",) * len(width),
            up_block_types=("UpDecoderBlock2D",) * len(width), latent_channels=16, norm_num_groups=4 if small else 32,
            layers_per_block=2, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False,
            use_post_quant_conv=False,
        )  # fmt: skip
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer.to(dtype), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae.to(dtype), text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    option(pipe)
    precision = "float32" if device == "cpu" else "bf16"
    return DiffusersPolicy("sd3.5-medium, random", RandomText(pipe, size, size), 32, precision)


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


def matmul(device: str, size: int) -> float:
    """FLOP/s of one product of square matrices."""
    a = torch.randn(size, size, device=device, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    return 2 * size**3 / seconds(lambda: a @ a, device, 10)


@dataclass(frozen=True)
class Measured:
    images: float  # per second, network and decoder
    points: float  # per second, forward and backward
    memory: float  # bytes at most
    rollout_share: float  # of the matmul's speed
    training_share: float


def measure(one: DiffusersPolicy, options: argparse.Namespace, speed: float, passes: int) -> Measured:
    device, many = options.device, options.images
    condition = one.encode(PROMPTS[:many])
    noise = Noise(one.latent_shape, tuple(("gpu", number) for number in range(many)), one.device)
    sampler = Sampler(options.steps, grid="model").bound(one.times)
    t = torch.full((many,), 0.5, device=one.device)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()

    def rollout() -> None:
        one.decode(sampler(one.under("policy"), condition, noise).x0)

    def training() -> None:
        x = noise.start()
        one.velocity(x, t, condition).square().mean().backward()

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        one.velocity(noise.start(), t, condition)
    forward = counter.get_total_flops()
    sampled, trained = seconds(rollout, device), seconds(training, device)
    return Measured(
        many / sampled,
        many / trained,
        torch.cuda.max_memory_allocated() if device != "cpu" else float("nan"),
        forward * options.steps / sampled / speed,
        forward * passes / trained / speed,
    )


def limited(options: argparse.Namespace) -> None:
    """An iteration of AdvantageFlow under a hard limit of memory."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, options.limit * 1e9 / total))
    one = policy(options.size, options.device, options.small, OPTIONS["checkpointing"])
    run = Run(images_per_update=48, group_size=12, microbatch=1, rollout_batch=1, iterations=2)
    algorithm = AdvantageFlow(rollout=Sampler(options.steps, grid="model"), points=Renoise(1))
    trainer = Trainer(algorithm, one, Compressible(), of("random", PROMPTS), run)
    fitting, said = fitted(trainer, 0.95 * options.limit * 1e9)
    trainer = Trainer(algorithm, one, Compressible(), of("random", PROMPTS), fitting)
    print(f"\nunder a limit of {options.limit} GB: {said}")
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        step = trainer.step()
    spent = ", ".join(f"{name} {value:.1f} s" for name, value in step.seconds.items())
    print(f"an iteration of {run.images} images: {spent}; {torch.cuda.max_memory_allocated() / 1e9:.1f} GB at most")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="height and width in pixels")
    parser.add_argument("--images", type=int, default=8, help="per batch")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--limit", type=float, help="GB of memory for a training iteration")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="two layers, to try the program")
    options = parser.parse_args()
    diffusers.logging.set_verbosity_error()
    speed = matmul(options.device, 512 if options.small else 8192)
    name = torch.cuda.get_device_name() if options.device != "cpu" else "CPU"
    print(f"{name}, torch {torch.__version__}: a matmul reaches {speed / 1e12:.3g} TFLOP/s")
    print(f"{options.size} px, batches of {options.images}, {options.steps} steps, LoRA 32")
    print(f"{'':26}{'images/s':>10}{'points/s':>10}{'GB':>8}{'rollout':>10}{'training':>10}")
    for option in options.only:
        passes = 3 if option == "checkpointing" else 2
        try:
            one = policy(options.size, options.device, options.small, OPTIONS[option])
            found = measure(one, options, speed, passes)
        except (RuntimeError, ValueError, ImportError) as error:
            print(f"{option:26}not here: {str(error).splitlines()[0][:80]}")
            continue
        print(
            f"{option:26}{found.images:10.2f}{found.points:10.2f}{found.memory / 1e9:8.1f}"
            f"{found.rollout_share:10.0%}{found.training_share:10.0%}"
        )
        del one
        gc.collect()
        if options.device != "cpu":
            torch.cuda.empty_cache()
    if options.limit:
        limited(options)


if __name__ == "__main__":
    main()
