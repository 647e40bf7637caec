"""flowward bench launches"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .. import models, prompts
from ..process.policy import Policy
from ..system.precision import resolve
from . import train
from .help import Page
from .options import asks_help, given

PAGE = Page(
    about="Count the GPU kernels that one pass through a network launches. It needs no GPU and no weights: only the "
    "model's configuration is read. A GPU waits if the processor cannot launch kernels fast enough, so fewer are "
    "faster. Every option of `flowward train` is accepted; --compile-blocks always counts compiled ones too.",
    examples=(
        ("bench launches --model stabilityai/stable-diffusion-3.5-medium --lora-rank 32", "kernels of each pass"),
        ("bench launches --model black-forest-labs/FLUX.1-dev --compile-blocks always", "also with compiled blocks"),
    ),
    first=("model", "size", "lora-rank", "precision", "quantise", "compile-blocks"),
    beside=train.START,
    title=train.PAGE.title,
)
KINDS = ("products", "casts", "norms", "attention", "fused", "other")


def run(words: list[str]) -> int:
    if not asks_help(words) and not (given(words, "reward") or given(words, "preferences")):
        words = [*words, "--reward", "jpeg-compressibility"]  # which is never asked
    settings, _ = train.chosen(words, "bench launches", PAGE)
    from ..models import launches  # after the flags, so that --help does not wait for diffusers

    compiled, loading = settings.loading.compiles, replace(settings.loading, compile_blocks="never")
    policy: Policy
    if models.is_pipeline(settings.model):
        from ..models import blueprint, lora, pipelines

        policy = blueprint.load(settings.model, settings.adapters, settings.precision, loading)
        if isinstance(policy.weights, lora.LoRA):
            policy.weights.merge = pipelines.merges(policy.weights, loading)
    else:
        policy = models.load(settings.model, precision=resolve(settings.precision, "cuda"))
    prompt = prompts.load(settings.prompts, settings.prompt_column).texts[0]
    policy.prepare([prompt])
    print(f"kernels of one pass through {settings.model}, one sample, {policy.precision}")
    _table("as it is", launches.count(policy, prompt))
    if compiled:
        _table("with compiled blocks", launches.count(policy, prompt, True))
    return 0


def _table(title: str, found: Mapping[str, Mapping[str, int]]) -> None:
    kinds = [kind for kind in KINDS if any(kind in each for each in found.values())]
    print(f"\n{title:<24}" + "".join(f"{name:>11}" for name in ("kernels", *kinds)))
    for name, each in found.items():
        numbers = [sum(each.values()), *(each.get(kind, 0) for kind in kinds)]
        print(f"{name:<24}" + "".join(f"{number:>11,}" for number in numbers))
