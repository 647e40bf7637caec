"""An epoch of Flow-GRPO, DiffusionNFT and AWM on a tiny Stable Diffusion 3, a workload that other frameworks ran too.

    OMP_NUM_THREADS=1 python benchmarks/tiny_sd3.py [--epochs 7] [--plain]

A pipeline of 2.3 M parameters with random weights (4 layers, 4 heads of 32, patch 2, 16 latent channels; an autoencoder
of four blocks; two CLIP encoders, T5 and 205 text tokens), 64 x 64 pixels, 5 steps, no guidance, LoRA of rank 32 on the
8 attention projections, 2 prompts x 4 images an epoch, 4 training times per image, 2 optimiser steps (Flow-GRPO) or 1,
float32, the size as a JPEG as the reward. DiffusionNFT and AWM come twice: with an old policy that is the one that
sampled, and without a reference, which takes no evaluation beyond training; and as published, with the passes of an old
policy that lags behind (AWM: of the average) and of the reference. Printed: medians of the seconds that sampling and
training took, the network evaluations of an epoch, and the same evaluations alone (the floor). `--plain` leaves out
merged adapters; `--compile` compiles the blocks.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import diffusers
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_pipelines import clip, t5, tokenizer

from flowward.algorithms import AWM, DiffusionNFT, FlowGRPO
from flowward.learning.points import Renoise
from flowward.learning.snapshots import Decay
from flowward.models import gelu
from flowward.models.compiling import compile_blocks
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.process.plans import Chain
from flowward.process.rollout import Sampler
from flowward.process.times import Times
from flowward.prompts import of
from flowward.rewards.images.jpeg import Compressible
from flowward.training import bench
from flowward.training.run import Run
from flowward.training.trainer import Trainer

PROMPTS = ("a photo of a red dog", "two green cats on the left of a square")
GRID: dict[str, Any] = {"steps": 5, "grid": "model"}
TIMES = Times("levels", last=4)  # the four that Flow-GRPO trains on
ON_POLICY: dict[str, Any] = {"old": Decay(0.0), "k_ref": 0.0}
ENTRANTS = {  # algorithm, optimiser steps
    "flow_grpo": (FlowGRPO(rollout=Chain(**GRID), beta=0.0), 2),
    "diffusion_nft": (DiffusionNFT(rollout=Sampler(**GRID), points=Renoise(4, TIMES), **ON_POLICY), 1),
    "awm": (AWM(rollout=Sampler(**GRID), points=Renoise(4, TIMES), **ON_POLICY), 1),
    "diffusion_nft, published": (DiffusionNFT(rollout=Sampler(**GRID), points=Renoise(4, TIMES)), 1),
    "awm, published": (AWM(rollout=Sampler(**GRID), points=Renoise(4, TIMES)), 1),
}


def pipeline() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=4, attention_head_dim=32,
        num_attention_heads=4, joint_attention_dim=64, caption_projection_dim=128, pooled_projection_dim=64,
        pos_embed_max_size=8, qk_norm="rms_norm",
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=16, norm_num_groups=4, layers_per_block=1,
        scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae,
        text_encoder=clip(32, True), tokenizer=tokenizer(), text_encoder_2=clip(32, True), tokenizer_2=tokenizer(),
        text_encoder_3=t5(64), tokenizer_3=tokenizer(512),
    )  # fmt: skip


def policy(merge: bool = True, compiled: bool = False) -> DiffusersPolicy:
    family = FAMILIES["StableDiffusion3Pipeline"](pipeline(), 64, 64, text_tokens=128)
    if compiled:
        compile_blocks(family.pipe.transformer)
    else:
        gelu.quicken(family.pipe.transformer)  # as `models.load` does on a processor
    made = DiffusersPolicy("tiny-sd3", family, 32, "float32")
    made.weights.merge = merge
    return made


def trainer(name: str, merge: bool = True, microbatch: int = 32, compiled: bool = False) -> Trainer:
    algorithm, updates = ENTRANTS[name]
    run = Run(
        images_per_update=8 // updates, updates_per_iteration=updates, group_size=4, microbatch=microbatch,
        rollout_batch=8, learning_rate=3e-4, warmup=0,
    )  # fmt: skip
    one = Trainer(algorithm, policy(merge, compiled), Compressible(), of("tiny", PROMPTS), run)
    return one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--plain", action="store_true", help="adapters beside their layers in rollouts, too")
    parser.add_argument("--compile", action="store_true", help="compiled blocks; minutes before the first epoch")
    parser.add_argument("--only", nargs="+", default=list(ENTRANTS), choices=list(ENTRANTS))
    parser.add_argument("--microbatch", type=int, default=32, help="training points per pass")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':26}{'sample':>8}{'train':>8}{'epoch':>8}{'floor':>8}   network evaluations")
    for name in options.only:
        one = trainer(name, not options.plain, options.microbatch, options.compile)
        one.policy.prepare(list(PROMPTS))
        one.step()
        recorder = bench.Recorder(one.policy)
        one.step()
        calls = recorder.calls
        recorder.restore()
        steps, floors = [], []
        for _ in range(options.epochs):
            steps.append(one.step().seconds)
            floors.append(bench.seconds(lambda calls=calls: bench.repeat(calls)))  # type: ignore[misc]
        sample, train = (
            statistics.median(sum(each[part] for part in parts) for each in steps)
            for parts in (("rollout", "reward"), ("train",))
        )
        counts: Counter[str] = Counter()
        for call in calls:
            counts[call.what] += call.batch
        done = ", ".join(f"{number} {what}" for what, number in counts.items())
        print(f"{name:26}{sample:8.2f}{train:8.2f}{sample + train:8.2f}{statistics.median(floors):8.2f}   {done}")


if __name__ == "__main__":
    main()
