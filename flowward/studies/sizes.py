"""How large a model is: memory by batch, and the work of a network pass; counted from its configuration.

The count is that of `flowward memory`. Models of the recipes were counted once (`shipped/sizes.yaml`,
`benchmarks/sizes.py`), so nothing has to be downloaded for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..system import tables

SHIPPED = Path(__file__).parent / "shipped" / "sizes.yaml"
SIDE = 512  # pixels, where a recipe names no size
RANK = 32  # of the adapters that were counted
ROWS = (2, 8)  # batches that are counted; memory grows in proportion
WAYS: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "--gradient-checkpointing": {"gradient_checkpointing": True},
    "--gradient-checkpointing --quantise nf4": {"gradient_checkpointing": True, "quantise": "nf4"},
}
"""options that make a model fit, in the order in which they are tried"""


@dataclass(frozen=True)
class Line:
    """GB at most of a batch: what is there without it, and what each row adds."""

    fixed: float
    each: float

    def __call__(self, rows: float) -> float:
        return self.fixed + self.each * rows

    @classmethod
    def through(cls, rows: tuple[int, int], bytes: tuple[float, float]) -> Line:
        each = (bytes[1] - bytes[0]) / (rows[1] - rows[0])
        return cls(round((bytes[0] - each * rows[0]) / 1e9, 3), round(each / 1e9, 4))


@dataclass(frozen=True)
class Memory:
    """Of a model that is loaded in one way."""

    sampling: Line  # by images sampled at once
    training: Line  # by network passes forward and backward at once


@dataclass(frozen=True)
class Size:
    """A model at one image size, with LoRA adapters."""

    side: int  # pixels
    text_tokens: int
    doubles: bool  # guidance takes a second network pass
    forward: float  # TFLOP of a network pass
    both: float  # TFLOP of a pass forward and backward
    memory: Mapping[str, Memory]  # by the options of WAYS

    def evaluations(self, guidance: float) -> int:
        """Network passes of a velocity."""
        return 2 if self.doubles and guidance != 1 else 1

    @property
    def written(self) -> dict[str, Any]:
        """For sizes.yaml."""
        return asdict(self)


def known(model: str) -> Size | None:
    """The size of a model that was counted before; None for others."""
    given = tables.load(SHIPPED).get(model) if SHIPPED.is_file() else None
    return None if given is None else of(given)


def of(given: Mapping[str, Any]) -> Size:
    memory = {way: Memory(Line(**own["sampling"]), Line(**own["training"])) for way, own in given["memory"].items()}
    return Size(**{**given, "memory": memory})


def counted(folder: str, side: int = SIDE, ways: Mapping[str, Mapping[str, Any]] = WAYS) -> Size:
    """Count a model from the configuration in its folder. It takes about half a minute for each way.

    Raises:
        ValueError: the configuration cannot be read, or the family is unknown.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from ..models import blueprint
    from ..models.loading import Loading
    from ..system.footprint import counted as watched
    from ..training.speed import Speedometer

    memory, one = {}, None
    for way, options in ways.items():
        with watched() as counter:
            policy = blueprint.load(folder, RANK, "bf16", Loading(size=(side, side), **options))
            policy.prepare(["a cat"])
            memory[way] = _memory(policy, counter.peak)
        one = one or policy
    assert one is not None
    with sdpa_kernel(SDPBackend.MATH):  # matrix products, which are counted; fused attention of fake tensors is not
        forward, both = Speedometer(one, "a cat").flops
    tokens = int(getattr(one.family, "text_tokens", 0))
    doubles = one.evaluations(2.0) > 1
    return Size(side, tokens, doubles, round(forward / 1e12, 3), round(both / 1e12, 3), memory)


def _memory(policy: Any, peak: Callable[[Callable[[], None]], float]) -> Memory:
    """With the default algorithm, whose two frozen copies of the adapters are there."""
    from ..prompts import of as prompts_of
    from ..rewards.images.jpeg import Compressible
    from ..training import fit
    from ..training.assembly import Parts
    from ..training.config import settings_type
    from ..training.run import Run

    algorithm = settings_type("advantageflow", "paper")().algorithm
    run = Run(images_per_update=ROWS[1] * 4, group_size=4, memory="auto")
    trainer = Parts(algorithm, policy, Compressible(), prompts_of("one", ["a cat"])).trainer(run)
    more = fit.beside(trainer)
    drawn = [peak(lambda n=n: fit.sample(trainer, n)) + more for n in ROWS]  # type: ignore[misc]
    learnt = [peak(lambda n=n: fit.learn(trainer, n)) + more for n in ROWS]  # type: ignore[misc]
    return Memory(Line.through(ROWS, (drawn[0], drawn[1])), Line.through(ROWS, (learnt[0], learnt[1])))
