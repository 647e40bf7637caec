"""flowward memory"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from .. import models, prompts
from ..algorithms.algorithm import differentiates
from ..process.policy import Policy
from ..rewards import Sum
from ..rewards.images.jpeg import Compressible
from ..system import distributed
from ..system.footprint import Counter, counted
from ..training import config, fit, teachers
from ..training.assembly import Parts
from . import train
from .help import Option, Page
from .options import asks_help, count_of_processes, given, take

PROCESSES = Option("processes", "N", "processes of the run; with --shard node those of one machine (default: 1)")
PAGE = Page(
    about="Estimate the GPU memory that training takes, and the batch sizes that fit. It needs no GPU and no weights: "
    "only the model's configuration is read. Every option of `flowward train` is accepted.",
    examples=(
        (
            "memory --model stabilityai/stable-diffusion-3.5-medium --size 512 512 --lora-rank 32",
            "which batches fit on cards of 16 to 80 GB",
        ),
        (
            "memory --model black-forest-labs/FLUX.1-dev --gradient-checkpointing --memory 22",
            "the same for 22 GB of memory",
        ),
        (
            "memory --model black-forest-labs/FLUX.1-dev --lora-rank none --gradient-checkpointing --shard all "
            "--processes 8",
            "the same for each of 8 GPUs that split all weights",
        ),
    ),
    first=(
        *(
            "model",
            "size",
            "frames",
            "seconds",
            "text-tokens",
            "lora-rank",
            "algorithm",
            "preset",
            "config",
            "prompts",
            "memory",
        ),
        *("images-per-update", "group-size", "gradient-checkpointing", "vae-tiling", "quantise"),
        *("optimiser", "precision", "shard", "processes"),
    ),
    beside=(*train.START, PROCESSES),
    title=train.PAGE.title,
)
CARDS = (16, 24, 32, 48, 80)  # GB
USABLE = 0.9  # of a card, as `--memory auto` has it
COLUMNS = 9
COUNTED = (1, 2, 8)  # batches, in units of the smallest; between and beyond them memory grows in proportion


def run(words: list[str]) -> int:
    if not asks_help(words) and not (given(words, "reward") or given(words, "preferences")):
        words = [*words, "--reward", "jpeg-compressibility"]  # which is never asked
    given_processes, words = take(words, "processes")
    settings, _ = train.chosen(words, "memory", PAGE)
    processes = count_of_processes(given_processes)
    if not models.is_pipeline(settings.model):
        raise ValueError("give --model owner/name (the built-in model needs less than 1 GB)")
    if differentiates(settings.algorithm):
        raise ValueError(
            f"{type(settings.algorithm).__name__} differentiates its reward, whose memory is not counted without its "
            "weights: start the run with --memory auto instead"
        )
    asked = settings.run.memory
    limits = {f"{card:.0f} GB": USABLE * card for card in CARDS}
    if asked not in (None, "auto"):
        limits = {f"{asked:g} GB": asked}
    found = batches(settings, processes)
    print(f"{found.what}, counted from its configuration")
    print(", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in found.weights.items()))
    if (team := settings.layout.context_parallel) > 1:
        print(f"not counted: {team} processes share each sequence, so activations take less than this")
    sizes, taken = found.sizes, found.taken
    for what, law in taken.items():
        shown = [size for size in sizes[what] if law(size) <= 1.5e9 * max(limits.values())][-COLUMNS:]
        print(f"\n{what:16}" + "".join(f"{size:8}" for size in shown))
        print(f"{'GB at most':16}" + "".join(f"{law(size) / 1e9:8.1f}" for size in shown))
    print()
    for card, limit in limits.items():
        held = {what: [n for n in sizes[what] if law(n) <= 1e9 * limit] for what, law in taken.items()}
        chosen = ", ".join(f"{what} {most[-1]}" if most else f"no {what}" for what, most in held.items())
        print(f"{card} hold {chosen}")
    return 0


@dataclass(frozen=True)
class Batches:
    """What a run takes in a process, by the size of its two batches."""

    what: str  # the model, for people
    weights: Mapping[str, int]  # bytes of each network
    taken: Mapping[str, Callable[[int], float]]  # `rollout_batch`, `microbatch`: its size -> bytes at most
    sizes: Mapping[str, list[int]]  # those that divide the images and points of an update


def batches(settings: Any, processes: int = 1) -> Batches:
    """Count the batches of a run from the configuration of its model.

    Raises:
        ValueError: the prompts or the configuration cannot be read, or they do not fit together.
    """
    texts = prompts.load(settings.prompts, settings.prompt_column).weighted(settings.prompt_weights)
    from ..models import blueprint  # after the flags, so that --help does not wait for diffusers

    with counted() as counter:
        policy = blueprint.load(
            settings.model, settings.adapters, settings.precision, settings.loading, settings.layout, processes
        )
        what, weights = _what(settings, policy, processes), _weights(policy.family.pipe)
        policy.prepare([fit.longest(texts)])
        run = replace(settings.run, memory=settings.run.memory or "auto")  # batches are to be found
        taught = teachers.imagined(policy, teachers.parsed(settings.teachers, settings.teacher_guidance))
        each = tuple((name, 1.0, Compressible()) for name in policy.weights.palette)
        reward = Sum(each) if each else Compressible()
        trainer = Parts(settings.algorithm, policy, reward, texts, teachers=taught).trainer(run)
        counter.forget(policy.offloaded())
        more = fit.beside(trainer)
        taken = {
            "rollout_batch": _law(counter, lambda n: fit.sample(trainer, n), trainer.rollout.leaves, more),
            "microbatch": _law(counter, lambda n: fit.learn(trainer, n), trainer.indivisible, more),
        }
    sizes = {
        "rollout_batch": fit.divisors(trainer.run.images, trainer.rollout.leaves),
        "microbatch": fit.divisors(trainer.points_per_update, trainer.indivisible),
    }
    return Batches(what, weights, taken, sizes)


def _law(counter: Counter, work: Callable[[int], None], unit: int, beside: float) -> Callable[[int], float]:
    """Bytes at most by the size of a batch, `beside` what work does not show."""
    sizes = [unit * each for each in COUNTED]
    peaks = [counter.peak(partial(work, size)) + beside for size in sizes]

    def law(size: int) -> float:
        later = next((k for k, each in enumerate(sizes[1:-1], 1) if size <= each), len(sizes) - 1)
        (a, b), (low, high) = sizes[later - 1 : later + 1], peaks[later - 1 : later + 1]
        return low + (high - low) * (size - a) / (b - a)

    return law


def _what(settings: Any, policy: Policy, processes: int) -> str:
    loading, layout = settings.loading, settings.layout
    size = [f"{loading.size[0]} x {loading.size[1]}"] if loading.size else []
    rank = config.recorded(policy).get("lora_rank")
    weights = "all weights trained" if rank is None else f"LoRA of rank {rank}"
    shared = list[str]()
    if layout.shard != "none":
        where = "all processes" if layout.shard == "all" else "the processes of a machine"
        shared = [f"each of {processes} processes, transformer sharded among {where}"]
        shared += ["reference and EMA copy on the host"] if layout.offload_copies and rank is None else []
    elif processes > 1:
        shared = [f"each of {processes} processes, whole model"]
    return ", ".join([settings.model, *size, weights, *shared])


def _weights(pipe: Any) -> dict[str, int]:
    """Bytes of the networks of a pipeline in this process."""
    return {
        name: sum(distributed.part(each).nbytes for each in part.parameters())
        for name, part in pipe.components.items()
        if isinstance(part, nn.Module)
    }
