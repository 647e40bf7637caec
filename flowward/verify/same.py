"""What is the same as what: one form of gradient that the losses of the forward process share (docs/same.md).

Per point, with u = eps - x0 and means over N elements,

    (N / 2) dl/dv = w [b (v' - u) + k_old (v - v_old) + k_ref (v - v_ref)]

where v' is v or v_old. A `Row` has the numbers of one loss. Each is checked against the loss itself, away from the old
policy and from the reference model, where all terms differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..algorithms import objectives
from ..process.flow import mean, over
from .check import Check, Equation, Kind, N, Setting, compared, slope

SOURCE = "docs/same.md"


@dataclass(frozen=True)
class Row:
    """A loss in the common form; numbers are [B] or one for all."""

    name: str
    said: str  # the form in words
    loss: Callable[[Setting, Kind], Equation]
    w: Callable[[Setting], Tensor | float]
    b: Callable[[Tensor], Tensor]  # of the advantages
    fit: Literal["v", "v_old"]
    k_old: Callable[[Tensor], Tensor | float]  # of the advantages
    k_ref: float
    bare_reference: bool = False  # the reference term is not weighted by w
    on_policy: bool = False  # only where the policy is the one that drew the samples

    @property
    def law(self) -> str:
        where = "on policy, " if self.on_policy else ""
        return f"{where}row of docs/same.md, {self.name}: (N/2) gradient = {self.said}"

    def setting(self) -> Setting:
        """Points that are their own images, since V-GRPO averages over an image."""
        s = Setting.random(group=1)
        return replace(s, v=s.old) if self.on_policy else s

    def expected(self, s: Setting) -> Tensor:
        """w [b (v' - u) + k_old (v - v_old) + k_ref (v - v_ref)], [B, ...]."""
        a, one = s.points.advantage, torch.ones_like(s.points.t)
        w, fit = one * self.w(s), s.v if self.fit == "v" else s.old
        fitted = over(w * self.b(a), s.v) * (fit - s.u) + over(w * self.k_old(a), s.v) * s.d
        return fitted + over((one if self.bare_reference else w) * self.k_ref, s.v) * (s.v - s.reference)


def _made(**setting: object) -> Callable[[Setting, Kind], Equation]:
    return lambda s, kind: s.of(kind(**setting))


def _nft(beta: float) -> Callable[[Setting, Kind], Equation]:
    """DiffusionNFT without denominators, which no setting of the class has."""

    def loss(s: Setting, kind: Kind) -> Equation:
        p = s.points
        return lambda v: objectives.diffusion_nft(
            v, s.old, s.reference, p.x_t, p.t, p.x0, p.advantage, beta, k_ref=0.25, denominator=False
        )

    return loss


def _own_error(s: Setting) -> Tensor:
    """t / mean|v - u|: what a loss in x0 space weighs by if it is divided by mean|f - x0|."""
    return s.points.t / mean((s.v - s.u).abs())


def _one(s: Setting) -> float:
    return 1.0


def _zero(a: Tensor) -> float:
    return 0.0


def _itself(a: Tensor) -> Tensor:
    return a


_PULLS = "A (v - u) + 1.1 (v - v_old) + 0.4 (v - v_ref)"
_X0 = {"gamma": 1.1, "lam": 0.4}
_VELOCITY = {**_X0, "denominator": False, "space": "velocity"}

ROWS: dict[str, list[Row]] = {
    "advantageflow": [
        Row("bare", f"t^2 [{_PULLS}]", _made(**_X0, denominator=False), lambda s: s.points.t**2, _itself, "v",
            lambda a: 1.1, 0.4),
        Row("with denominator", f"t / mean|v - u| [{_PULLS}]", _made(**_X0), _own_error, _itself, "v",
            lambda a: 1.1, 0.4),
        Row("1-A", "t^2 [A (v - u) + (1 - A) (v - v_old)]", _made(lam=0.0, denominator=False),
            lambda s: s.points.t**2, _itself, "v", lambda a: 1 - a, 0.0),
        Row("velocity space", _PULLS, _made(**_VELOCITY), _one, _itself, "v", lambda a: 1.1, 0.4),
        Row("gamma 0, signed, velocity space", "A (v - u) + 0.4 (v - v_ref)",
            _made(**{**_VELOCITY, "gamma": 0.0}, signed=True), _one, _itself, "v", _zero, 0.4),
    ],
    "flowawr": [
        Row("velocity", "A (v_old - u) + (v - v_old) + 0.25 (v - v_ref)", _made(form="velocity", k_ref=0.25), _one,
            _itself, "v_old", lambda a: 1.0, 0.25),
        Row("released", "t / mean|v - u| [A (v_old - u) + (v - v_old)] + 0.25 (v - v_ref)",
            _made(form="released", k_ref=0.25), _own_error, _itself, "v_old", lambda a: 1.0, 0.25, bare_reference=True),
        Row("exact", "t^2 [A (v - u) + (v - v_old)] + 0.25 (v - v_ref)", _made(form="exact", k_ref=0.25),
            lambda s: s.points.t**2, _itself, "v", lambda a: 1.0, 0.25, bare_reference=True),
    ],
    "diffusion_nft": [
        Row("bare, beta 0.5", "5 t^2 [A/5 (v_old - u) + 0.5 (v - v_old)] + 0.25 (v - v_ref)", _nft(0.5),
            lambda s: 5 * s.points.t**2, lambda a: a / 5, "v_old", lambda a: 0.5, 0.25, bare_reference=True),
    ],
    "awm": [
        Row("uniform", "A/5 (v - u) + 1.3 (v - v_old) + 0.3 (v - v_ref)",
            _made(weighting="uniform", k_old=1.3, k_ref=0.3), _one, lambda a: a / 5, "v", lambda a: 1.3, 0.3),
    ],
    "ram": [
        Row("residual policy, m 3", "1/2m [m A (v - u) + (v - v_ref)]", _made(m=3.0), lambda s: 1 / 6,
            lambda a: 3 * a, "v", _zero, 1.0),
        Row("residual old, m 3", "1/2m [m A (v_old - u) + (v - v_ref)]", _made(m=3.0, residual="old"),
            lambda s: 1 / 6, lambda a: 3 * a, "v_old", _zero, 1.0),
    ],
    "rvm": [
        Row("beta 0.4", "1/2 [0.1 A (v - u) + 0.4 (v - v_ref)]", _made(beta=0.4), lambda s: 0.5,
            lambda a: a / 10, "v", _zero, 0.4),
    ],
    "vgrpo": [
        Row("ratio 1", "t / mean|v - u| [A (v - u)]", _made(), _own_error, _itself, "v", _zero, 0.0,
            on_policy=True),
    ],
    "meanflow_advantage": [
        Row("s = t", f"t / mean|v - u| [{_PULLS}]", _made(**_X0), _own_error, _itself, "v", lambda a: 1.1, 0.4),
    ],
}  # fmt: skip


def laws(name: str, kind: Kind) -> Iterator[Check]:
    """Check the rows of an algorithm; those that compare images of a prompt have none."""
    for row in ROWS.get(name, []):
        s = row.setting()
        yield compared(row.law, SOURCE, N / 2 * slope(row.loss(s, kind), s.v), row.expected(s))
