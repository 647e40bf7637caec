"""Is the run well? Each rule looks at the figures of an iteration and, where it trips, says in plain words what is
wrong and what to do about it. NaN is not a rule: the trainer stops before the weights are touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

NO_SIGNAL = 0.5  # share of groups whose rewards are all equal
FAR = 0.25  # mean(d^2) over mean(e^2): how far the policy has left `old`, against the noise of its targets
FLAT = 0.05  # curvature
DRIFT = 0.15  # relative change of the RMS of finished latents since the first iteration
UNFIT = 1.5  # mean(e^2) over its first value: the error of the velocity on the policy's own samples
APART = 0.1  # log ratio before the first update over the clip's: it should be 0
SPIKE = 5.0  # gradient norm over its recent median
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
    """The rules, and the little that they remember."""

    first_rms: float | None = None
    first_residual: float | None = None
    norms: list[float] = field(default_factory=list)

    def check(self, m: Mapping[str, float]) -> list[str]:
        """The lines that an iteration's metrics call for; usually none."""
        lines = []
        if m.get("reward_std", 1.0) < 1e-6:
            lines.append(f"every image got the reward {m['reward']:.3g}: there is nothing to learn from")
        elif m.get("zero_variance", 0.0) > NO_SIGNAL:
            lines.append(
                f"{m['zero_variance']:.0%} of the groups have equal rewards and teach nothing: "
                "use a softer reward, larger groups, or prompts that are neither solved nor hopeless"
            )
        if m.get("distance", 0.0) > FAR * m.get("residual", float("inf")):
            lines.append(
                f"the policy has left its old copy far behind (mean(d^2) = {m['distance']:.2g}): "
                "lower the learning rate, or let the old policy follow faster"
            )
        if m.get("curvature_min", 1.0) <= 0:
            lines.append(
                f"the loss of some points has no minimum (curvature {m['curvature_min']:.2g}), because some advantages "
                "are very low: set gamma to 1-A or raise it, or add rewards up before they are compared (--mix rewards)"
            )
        elif m.get("curvature_min", 1.0) < FLAT:
            lines.append(
                f"the flattest point has curvature {m['curvature_min']:.2g}: single bad samples can push very far; "
                "raise gamma"
            )
        if self.first_rms is None:
            self.first_rms = m.get("latent_rms")
        drift = m["latent_rms"] / self.first_rms - 1 if self.first_rms and "latent_rms" in m else 0.0
        if abs(drift) > DRIFT:
            lines.append(
                f"finished latents are {abs(drift):.0%} {'larger' if drift > 0 else 'smaller'} than at the start: "
                "images drift in brightness or contrast; look at the samples"
            )
        if "residual" in m:
            if self.first_residual is None:
                self.first_residual = m["residual"]
            if m["residual"] > UNFIT * self.first_residual:
                lines.append(
                    f"the velocity fits the policy's own samples {m['residual'] / self.first_residual:.1f} times worse "
                    "than at the start: lower the learning rate, or raise the weight of the reference model"
                )
        if m.get("first_ratio_in_clips_max", 0.0) > APART:
            lines.append(
                f"before the first update a ratio is already off 1 by {m['first_ratio_in_clips_max']:.2g} of the clip: "
                "the network answers differently in sampling and in training; give both the same batch size "
                "(--rollout-batch, --microbatch) and --precision float32"
            )
        if len(self.norms) >= 5 and m["gradient_norm"] > SPIKE * median(self.norms):
            lines.append(
                f"the gradient norm jumped to {m['gradient_norm']:.2g} (recently {median(self.norms):.2g}): "
                "it was clipped; if this goes on, lower the learning rate"
            )
        self.norms = [*self.norms, m["gradient_norm"]][-WINDOW:]
        if many := int(m.get("duplicate_prompts", 0)):
            lines.append(
                f"{many} prompt{'s' * (many > 1)} came twice in one iteration, counting double: a category was used up "
                "and began anew, or there are fewer prompts than groups"
            )
        return lines

    def state_dict(self) -> dict[str, Any]:
        return {"first_rms": self.first_rms, "first_residual": self.first_residual, "norms": list(self.norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.first_rms, self.first_residual = state["first_rms"], state.get("first_residual")
        self.norms = list(state["norms"])
