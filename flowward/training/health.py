"""Health warnings: each rule checks the metrics of an iteration and says what is wrong and what to do.

There is no rule for NaN: training stops before the weights are updated (loop.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from ..evaluation.outcome import NOUNS, Nouns, counted

NO_SIGNAL = 0.5  # share of groups whose rewards are all equal
FAR_NATS = 64.0  # KL(old || policy): what FAR is for the 256 numbers of a sample of the built-in model
FAR = 0.25  # mean(d^2) / mean(e^2), where no KL is known: distance from the old policy, relative to its targets' noise
FLAT = 0.05  # curvature
DRIFT = 0.15  # relative change of the RMS of the final latents since the first iteration
UNFIT = 1.5  # mean(e^2) / its first value: error of the velocity on the policy's own samples
APART = 0.1  # log ratio before the first update / log(1 + clip): it should be 0
SPIKE = 5.0  # gradient norm / its recent median
CORES = 2 / 3  # the part of the time in which CPU threads that want to run have a core
WINDOW = 20  # iterations that count as recent


def held_up(cpu_share: float | None) -> list[str]:
    """The line for CPU threads that have to wait for a core; usually none. For `cpu_share` see metrics.Step."""
    if cpu_share is None or cpu_share >= CORES:
        return []
    return [
        f"another program uses this machine's cores: CPU threads of training wait for one {1 - cpu_share:.0%} of the "
        "time; a lower --threads is faster now"
    ]


@dataclass
class Health:
    """The rules and their state."""

    words: Nouns = NOUNS["images"]
    first_rms: float | None = None
    first_residual: float | None = None
    norms: list[float] = field(default_factory=list)

    def check(self, m: Mapping[str, float]) -> list[str]:
        """The warnings for an iteration's metrics; usually none."""
        lines = []
        if m.get("reward_std", 1.0) < 1e-6:
            lines.append(
                f"all {self.words.samples} got the same reward, {m['reward']:.3g}, so there is no learning signal: "
                "check the reward, or use a softer one"
            )
        elif m.get("zero_variance", 0.0) > NO_SIGNAL:
            lines.append(
                f"{m['zero_variance']:.0%} of the groups have equal rewards and teach nothing: "
                f"use a softer reward, larger groups, or {self.words.prompts} that are neither too easy nor too hard"
            )
        lines += [*_far(m), *_flat(m)]
        if self.first_rms is None:
            self.first_rms = m.get("latent_rms")
        drift = m["latent_rms"] / self.first_rms - 1 if self.first_rms and "latent_rms" in m else 0.0
        if abs(drift) > DRIFT:
            lines.append(
                f"the final latents are {abs(drift):.0%} {'larger' if drift > 0 else 'smaller'} than at the start, so "
                f"{self.words.drift}"
            )
        if "residual" in m:
            if self.first_residual is None:
                self.first_residual = m["residual"]
            if m["residual"] > UNFIT * self.first_residual:
                lines.append(
                    f"the flow-matching error on the policy's own samples is {m['residual'] / self.first_residual:.1f} "
                    "times its first value: lower the learning rate, or raise the weight of the reference model"
                )
        if m.get("first_ratio_in_clips_max", 0.0) > APART:
            lines.append(
                f"a ratio differs from 1 by {m['first_ratio_in_clips_max']:.2g} of the clip before the first update, "
                "because the network gives different outputs in sampling and in training: use equal batch sizes "
                "(--rollout-batch, --microbatch) and --precision float32"
            )
        if m.get("first_nats_in_trust_max", 0.0) > APART:
            lines.append(
                f"a step differs by {m['first_nats_in_trust_max']:.2g} of the trust before the first update, because "
                "the network gives different outputs in sampling and in training: use equal batch sizes "
                "(--rollout-batch, --microbatch) and --precision float32, or a larger trust"
            )
        if len(self.norms) >= 5 and m["gradient_norm"] > SPIKE * median(self.norms):
            lines.append(
                f"the gradient norm jumped to {m['gradient_norm']:.2g} (recent median {median(self.norms):.2g}) and "
                "was clipped: if this happens often, lower the learning rate"
            )
        self.norms = [*self.norms, m["gradient_norm"]][-WINDOW:]
        if many := int(m.get("duplicate_prompts", 0)):
            lines.append(
                f"{counted(many, self.words.prompt)} occurred more than once in this iteration and counted twice: use "
                f"more {self.words.prompts}, or fewer groups per iteration"
            )
        return lines + _missing(m, self.words) + _skipped(m)

    def state_dict(self) -> dict[str, Any]:
        return {"first_rms": self.first_rms, "first_residual": self.first_residual, "norms": list(self.norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first_rms, self.first_residual = state["first_rms"], state.get("first_residual") or None
        self.norms = list(state["norms"])


def _skipped(m: Mapping[str, float]) -> list[str]:
    """The warning for optimiser steps that were not taken."""
    if not (many := int(m.get("skipped_steps", 0))):
        return []
    some = "1 optimiser step was" if many == 1 else f"{many} optimiser steps were"
    return [
        f"{some} skipped because of a gradient that is NaN or infinite: if this happens often, lower the learning rate"
    ]


def _missing(m: Mapping[str, float], words: Nouns) -> list[str]:
    """The warning for samples without a score of their own."""
    if not (many := int(m.get("missing_scores", 0))):
        return []
    return [
        f"{many} answer{'s' * (many > 1)} of a judge could not be read, so the mean score of the other {words.samples} "
        f"of the {words.prompt} was used: if this happens often, check the judge's template and max_tokens"
    ]


def _far(m: Mapping[str, float]) -> list[str]:
    """The warning for a policy that is far from its old copy, in nats if they are known."""
    if "old_nats" in m:
        if m["old_nats"] <= FAR_NATS:
            return []
        how = f"{m['old_nats']:.3g} nats away, more than {FAR_NATS:g}, so samples of the old copy say little about it"
    elif m.get("distance", 0.0) > FAR * m.get("residual", float("inf")):
        how = f"mean(d^2) = {m['distance']:.2g}"
    else:
        return []
    return [f"the policy is far from its old copy ({how}): lower the learning rate, or the decay of the old copy"]


def _flat(m: Mapping[str, float]) -> list[str]:
    """The warning for a loss without a minimum, or with a very flat one."""
    curvature = m.get("curvature_min", 1.0)
    if curvature <= 0:
        return [
            f"the loss of some training points has no minimum (curvature {curvature:.2g}), because some advantages are "
            "very low: set gamma to 1-A, raise gamma, or use --mix rewards"
        ]
    if curvature < FLAT:
        return [
            f"the loss is almost flat at some training points (curvature {curvature:.2g}), so single bad samples can "
            "have a large effect: raise gamma"
        ]
    return []
