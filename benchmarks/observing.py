"""What observing a pipeline costs beside a rollout: rows through the network, and seconds, on tiny pipelines.

OMP_NUM_THREADS=1 PYTHONPATH=tests:. python benchmarks/observing.py
"""

from __future__ import annotations

import time
from typing import Any

import torch
from tiny_pipelines import FRAMES, tiny  # type: ignore[import-not-found]

from flowward.models.diffusers import DiffusersPolicy
from flowward.models.observed import family_of
from flowward.process.noise import Noise
from flowward.process.rollout import Sampler

NAMES = ("StableDiffusion3Pipeline", "FluxPipeline", "QwenImagePipeline", "ZImagePipeline", "WanPipeline")
PROMPTS, GROUP, STEPS, GUIDANCE = 48, 6, 20, 3.0  # of one iteration


def counted(pipe: Any) -> list[int]:
    """Rows that went through the transformer; it grows."""
    rows, usual = [0], pipe.transformer.forward

    def forward(*args: Any, **named: Any) -> Any:
        first = args[0] if args else named["hidden_states"]
        rows[0] += len(first)
        return usual(*args, **named)

    pipe.transformer.forward = forward
    return rows


def main() -> None:
    torch.set_num_threads(1)
    print("| pipeline | rows to observe | seconds | rows for 48 prompts | seconds | rows of a rollout | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in NAMES:
        pipe = tiny(name)
        rows, begun = counted(pipe), time.perf_counter()
        policy = DiffusersPolicy(name, family_of(name)(pipe, 32, 32, **FRAMES.get(name, {})), 2, "float32")
        seen, seconds = rows[0], time.perf_counter() - begun
        texts, begun = [f"a {'red ' * (k % 3)}cat {k}" for k in range(PROMPTS)], time.perf_counter()
        condition = policy.encode(texts)
        read, reading = rows[0] - seen, time.perf_counter() - begun
        guidance = 1.0 if policy.family.guidance == "none" else GUIDANCE
        before, begun = rows[0], time.perf_counter()
        velocity = policy.under("policy", guidance)
        with torch.no_grad():
            for start in range(0, PROMPTS * GROUP, 24):
                own = condition[torch.arange(start, start + 24) // GROUP]
                keys = tuple(("bench", start + k) for k in range(24))
                Sampler(STEPS)(velocity, own, Noise(policy.latent_shape, keys, policy.device))
        drawn, drawing = rows[0] - before, time.perf_counter() - begun
        print(f"| {name} | {seen} | {seconds:.1f} | {read} | {reading:.2f} | {drawn} | {drawing:.1f} |", flush=True)


if __name__ == "__main__":
    main()
