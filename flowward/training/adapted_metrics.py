"""The part of the glossary about settings that a run chooses for itself."""

from __future__ import annotations

from .explanation import SHARES, Metric

ADAPTED = {
    "gamma": Metric(
        "gamma", "weight of the old policy that the run chose for this iteration (only with gamma auto)", "any"
    ),
    "gamma_factor": Metric(
        "Factor of gamma",
        "factor by which feedback changes gamma, from 1/3 to 8 (only with gamma auto)",
        "below 8; at 8 the learning rate is too high; below 1: new samples confirm the direction of the policy",
    ),
    "ess": Metric(
        "Effective sample size",
        "effective sample size of the policy that this gamma aims at, as a share of the samples (only with gamma auto)",
        "near --algorithm.auto.ess or above",
        SHARES,
    ),
    "line_search": Metric(
        "Line search",
        "best step length from the old policy towards the policy, on new samples, over the actual one (only with gamma "
        "auto)",
        "near 1 or above; below 0.5 the policy has gone too far or follows noise, so the learning rate is too high",
    ),
    "lam": Metric(
        "lam", "weight of the reference model in this iteration (only with --algorithm.auto.budget)", "below 10"
    ),
}
