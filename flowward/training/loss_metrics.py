"""The part of the glossary about what losses measure: data for the report page and docs/metrics.md."""

from __future__ import annotations

from .explanation import SHARES, Metric
from .health import APART, FAR, FAR_NATS, FLAT, UNFIT

FORWARD = {
    "distance": Metric(
        "Distance from the old policy",
        "mean squared difference between the velocities of the policy and of its old copy (of the rollout in fdfo, of "
        "the reference in adjoint_matching)",
        f"below {FAR:g} times the residual, if old_nats is missing; 0 in the first update",
    ),
    "old_nats": Metric(
        "KL from the old policy",
        "KL divergence of whole samples between the old copy and the policy, estimated from their velocities (not with "
        "guidance)",
        f"below {FAR_NATS:g}; 1 is a long step, 0.1 a short one; 0 in the first update",
        "nats",
    ),
    "reference_nats": Metric(
        "KL from the reference model",
        "KL divergence of whole samples of the old copy, or else of the policy, from the reference (only if the loss "
        "evaluates it)",
        "rises slowly; the best of 100 samples of the reference would be at 3.6, so large values hint at hacking",
        "nats",
    ),
    "residual": Metric(
        "Flow-matching error",
        "mean squared error of the old copy's velocity on the policy's own samples (of the policy if there is no copy)",
        f"below {UNFIT:g} times its first value",
    ),
    "teacher_distance": Metric(
        "Distance from the teachers",
        "mean squared difference between the velocities of the policy and of the teacher of each prompt (opd)",
        "falls; what is left is what the teachers disagree about, or what the policy cannot hold",
    ),
    "point_reward": Metric(
        "Reward where it is differentiated",
        "mean reward at the pictures whose gradient is taken (draft, refl, srpo, adjoint_matching)",
        "rises with the reward, and so do the guards of the evaluation",
    ),
    "reward_slope": Metric(
        "Norm of the reward's gradient",
        "norm of the derivative of the reward by a whole latent sample (the same algorithms)",
        "steady; a rise means that small changes of a picture change its score",
    ),
    "above_ceiling": Metric(
        "Share above the ceiling",
        "share of pictures that score above --algorithm.ceiling, and so have no gradient",
        "below 0.9",
        SHARES,
    ),
    "adjoint": Metric(
        "Size of the adjoint",
        "norm of the velocity's change that a state is regressed on (adjoint_matching)",
        "steady; a rise over iterations means that the temperature is too low for this reward",
    ),
    "curvature_min": Metric(
        "Smallest curvature of the loss",
        "least curvature of the loss over all training points (advantageflow where every point shall have a minimum, "
        "and the exact form of flowawr)",
        f"above {FLAT:g}; at 0 or below the loss has no minimum",
    ),
    "outside": Metric(
        "Share outside the trust region",
        "share of training points whose ratio is outside 1 ± clip (fdfo)",
        "0 in the first update; near 1 the learning rate is too high or the clip too small",
        SHARES,
    ),
}

REVERSE = {
    "log_ratio": Metric(
        "Log-probability ratio",
        "mean log ratio of the policy to the rollout policy: in the units of --algorithm.ratio, per token, or per "
        "image (vgrpo)",
        "small against the clip; 0 with one update per iteration",
        by_step=True,
    ),
    "clipped_up": Metric(
        "Clipped, positive advantage",
        "share of steps, images or tokens with a positive advantage and a ratio above 1 + clip, or stopped by "
        "--algorithm.trust: they have no gradient",
        "0 with one update per iteration; near 1 the learning rate is too high or the clip too small",
        SHARES,
        by_step=True,
    ),
    "clipped_down": Metric(
        "Clipped, negative advantage",
        "share of steps, images or tokens with a negative advantage and a ratio below 1 - clip, or stopped by "
        "--algorithm.trust: they have no gradient",
        "0 with one update per iteration; near 1 the learning rate is too high or the clip too small",
        SHARES,
        by_step=True,
    ),
    "stopped": Metric(
        "Stopped by the trust region",
        "share of steps that are outward and further from the rollout policy than --algorithm.trust: they have no "
        "gradient (only with --algorithm.trust)",
        "0 with one update per iteration; near 0.5 the learning rate is too high or the trust too small",
        SHARES,
        by_step=True,
    ),
    "step_nats": Metric(
        "KL of a step from the rollout policy",
        "mean KL of a random step between the rollout policy and the policy, over the whole sample (only with "
        "--algorithm.trust)",
        "0 in the first update; near --algorithm.trust or below",
        "nats",
        by_step=True,
    ),
    "pull": Metric(
        "Gradient on the velocity",
        "norm of the loss gradient with respect to the velocity, without the ratio clip",
        "similar at all steps; a step with a much larger value dominates training",
        by_step=True,
    ),
    "divergence": Metric(
        "Divergence from the reference model",
        "mean divergence from the reference model, in the units of --algorithm.divergence (only with beta above 0)",
        "rises slowly; if it grows fast, raise --algorithm.beta",
        by_step=True,
    ),
    "first_ratio_max": Metric(
        "Largest log ratio before the first update",
        "largest absolute log ratio between sampling and training with the same weights",
        "0 or a rounding error",
    ),
    "first_ratio_in_clips_max": Metric(
        "Largest log ratio, relative to the clip", "first_ratio_max divided by log(1 + clip)", f"below {APART:g}"
    ),
    "first_nats_in_trust_max": Metric(
        "Largest KL before the first update, relative to the trust",
        "largest KL of a step between sampling and training with the same weights, divided by --algorithm.trust",
        f"below {APART:g}",
    ),
}
