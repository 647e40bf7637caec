"""What each key of metrics.jsonl means and which values are healthy: data for the report page and docs/metrics.md.

Write the page anew with `python -m flowward.training.glossary > docs/metrics.md`.
"""

from __future__ import annotations

from .adapted_metrics import ADAPTED
from .agent_metrics import AGENTS
from .explanation import SHARES, Metric
from .health import DRIFT, NO_SIGNAL, SPIKE, WINDOW
from .loss_metrics import FORWARD, REVERSE

RUN = {
    "iteration": Metric(
        "Iteration", "number of the finished iteration; 0 is the evaluation before training", "rises by 1"
    ),
    "images": Metric(
        "Images", "images trained on since the start of the run", "rises by the images per iteration", "images"
    ),
    "samples": Metric(
        "Samples",
        "samples trained on since the start of the run (only models that make no images, in the place of images)",
        "rises by the samples per iteration",
        "samples",
    ),
    "sounds": Metric(
        "Sounds",
        "sounds trained on since the start of the run (only models of sound, in the place of images)",
        "rises by the sounds per iteration",
        "sounds",
    ),
    "episodes": Metric(
        "Episodes",
        "episodes trained on since the start of the run (only agents, in the place of images)",
        "rises by the episodes per iteration",
        "episodes",
    ),
    "health": Metric("Health", "warnings of this iteration, each with a remedy", "an empty list"),
    "seconds.rollout": Metric(
        "Rollout time",
        "sampling: of images, with decoding, or by an agent's planner",
        "most of the total, together with seconds.train",
        "s",
    ),
    "seconds.reward": Metric(
        "Reward time",
        "waiting for rewards after the rollout, and computing advantages",
        "a small part of the total",
        "s",
    ),
    "seconds.train": Metric("Training time", "forward and backward passes and optimiser steps", "steady", "s"),
    "seconds.evaluate": Metric(
        "Evaluation time", "the evaluation after this iteration, if there was one", "steady", "s"
    ),
    "seconds.total": Metric("Total time", "sum of the times above", "steady", "s"),
    "seconds.slowest": Metric(
        "Slowest process",
        "this iteration in the process that worked longest, without waiting for others (only with several processes)",
        "close to seconds.fastest",
        "s",
    ),
    "seconds.fastest": Metric(
        "Fastest process",
        "this iteration in the process that worked shortest, without waiting for others (only with several processes)",
        "close to seconds.slowest; otherwise a slow device or reward holds the others up",
        "s",
    ),
    "speed.images_per_second": Metric(
        "Images per second", "training images of this iteration per second, without the evaluation", "steady", "1/s"
    ),
    "speed.evaluations_per_second": Metric(
        "Network evaluations per second",
        "network_evaluations per second of this iteration, without the evaluation",
        "steady",
        "1/s",
    ),
    "speed.mfu": Metric(
        "Model FLOP utilisation",
        "FLOPs of the network evaluations, as a share of the GPU's peak (only if the peak is known)",
        "steady; a low value often means small batches",
        SHARES,
    ),
    "speed.gpu_memory": Metric(
        "Peak GPU memory", "most GPU memory that tensors used in this iteration (only on CUDA)", "steady", "GB"
    ),
    "network_evaluations": Metric(
        "Network evaluations",
        "evaluations of the velocity network in this iteration, one per sample, without the evaluation",
        "constant; lower in the first iteration, whose copies equal the policy",
        "evaluations",
    ),
}

REWARDS = {
    "reward": Metric(
        "Reward",
        "mean weighted sum of all rewards over the samples of this iteration",
        "rises, with noise between iterations",
    ),
    "reward_std": Metric(
        "Standard deviation of rewards",
        "standard deviation of the summed reward over the samples of this iteration",
        "clearly above 0: equal rewards teach nothing",
    ),
    "reward/NAME": Metric(
        "One reward",
        "mean of one reward, before its weight (only with several rewards)",
        "rises; a reward that falls is traded for the others",
    ),
    "correlation/NAME/NAME": Metric(
        "Correlation of two rewards",
        "correlation of two rewards among samples of the same group, from -1 to 1 (only with several rewards)",
        "above 0; below 0 the two rewards conflict",
    ),
    "reward_histogram.counts": Metric(
        "Histogram of rewards",
        "images in each of ten equal bins between the lowest and the highest reward",
        "no single bin with nearly all images",
        "images",
    ),
    "reward_histogram.edges": Metric("Edges of the bins", "edges of these bins, one more than bins", "any"),
    "best.prompt": Metric("Best image", "prompt of the image with the highest reward", "any"),
    "best.reward": Metric("Highest reward", "summed reward of the best image", "rises"),
    "worst.prompt": Metric("Worst image", "prompt of the image with the lowest reward", "any"),
    "worst.reward": Metric("Lowest reward", "summed reward of the worst image", "rises"),
    "zero_variance": Metric(
        "Share of groups with equal rewards",
        "share of samples in groups whose advantages are all 0",
        f"below {NO_SIGNAL:g}",
        SHARES,
    ),
    "semigroup": Metric(
        "Semigroup residual",
        "RMS distance between one jump from noise to data and two half jumps, at evaluations (meanflow_advantage)",
        "does not grow: 0 is an exact flow map",
    ),
    "latent_rms": Metric(
        "RMS of the final latents",
        "root mean square of the sampled latents, before decoding",
        f"within {DRIFT:.0%} of its first value",
    ),
    "duplicate_prompts": Metric(
        "Duplicates", "prompts or questions that occurred more than once in this iteration", "0", "prompts"
    ),
    "missing_scores": Metric(
        "Missing scores",
        "answers of a judge that could not be read; the mean of the group's other samples is used (only with a judge)",
        "0, or now and then 1",
        "answers",
    ),
    "skipped": Metric(
        "Skipped by the curriculum",
        "share of prompts or questions skipped while choosing this iteration (only with --curriculum)",
        "any; near 1 few of them still give a learning signal",
        SHARES,
    ),
    "resting": Metric(
        "Resting",
        "share of all prompts or questions that are skipped at present (only with --curriculum)",
        "any; near 1 few of them still give a learning signal",
        SHARES,
    ),
}

OPTIMISATION = {
    "loss": Metric(
        "Loss",
        "mean loss over the training points",
        "no range: its level depends on the algorithm, so watch the reward and the scores instead",
    ),
    "skipped_steps": Metric(
        "Skipped steps",
        "optimiser steps of this iteration that were skipped for a NaN or infinite gradient (--skip-nonfinite)",
        "0; now and then 1",
    ),
    "learning_rate": Metric(
        "Learning rate", "learning rate of the last optimiser step of this iteration", "follows --warmup and --schedule"
    ),
    "clipped_steps": Metric(
        "Clipped steps",
        "share of optimiser steps whose gradient was longer than --gradient-clip and was scaled down",
        "any; always 1 means that the clip sets the step length",
        SHARES,
    ),
    "alpha/NAME": Metric(
        "Weight of a reward's gradient",
        "weight of one reward in the common descent direction, averaged over the optimiser steps (only with --mix "
        "descent)",
        "between 0 and 1; near 1 the other rewards' gradients are longer or point the same way",
        SHARES,
    ),
    "cosine/NAME/NAME": Metric(
        "Cosine of two rewards' gradients",
        "cosine between the gradients of two rewards, averaged over the optimiser steps (only with --mix descent)",
        "above 0; near -1 no step helps both",
    ),
    "gradient_norm": Metric(
        "Gradient norm, before clipping",
        "global norm of the gradient, averaged over the optimiser steps of this iteration",
        f"below {SPIKE:g} times the median of the last {WINDOW} iterations",
    ),
}

EVALUATION = {
    "evaluation.SETTING": Metric(
        "Settings",
        "settings that the scores depend on: prompts, seed, solver, steps, guidance, versions and others",
        "constant",
    ),
    "evaluation.scores.NAME.verdicts": Metric("Pass/fail", "true if each score is pass (1) or fail (0)", "constant"),
    "evaluation.scores.NAME.bounds": Metric(
        "Bounds", "lowest and highest score that there can be, if the reward declares them", "constant"
    ),
    "evaluation.scores.NAME.PART.mean": Metric("Mean", "mean score of all samples, or of one category", "rises"),
    "evaluation.scores.NAME.PART.low": Metric(
        "Lower end", "lower end of the 95 % interval over noise, or over episodes", "rises"
    ),
    "evaluation.scores.NAME.PART.high": Metric(
        "Upper end", "upper end of the 95 % interval over noise, or over episodes", "rises"
    ),
    "evaluation.scores.NAME.PART.n": Metric("Samples", "samples that were scored", "constant", "samples"),
    "evaluation.scores.NAME.PART.over_prompts": Metric(
        "Interval over prompts", "both ends of the 95 % interval over prompts, or null", "rises"
    ),
    "evaluation.scores.NAME.PART.prompts": Metric(
        "Prompts", "distinct prompts or questions of these samples", "constant", "prompts"
    ),
}

MODULES = ("tools", "executor", "verifier", "generator", "analyst")  # that a rollout waits for, beside the planner
PATTERNS = {  # the glossary's own key for keys of the form kind/name
    "reward": "reward/NAME",
    "correlation": "correlation/NAME/NAME",
    "alpha": "alpha/NAME",
    "cosine": "cosine/NAME/NAME",
    "end": "end/NAME",
    "tool": "tool/NAME",
    "trouble": "trouble/NAME",
}

SECTIONS: dict[str, dict[str, Metric]] = {
    "Every iteration": RUN,
    "Samples and rewards": REWARDS,
    "Optimisation": OPTIMISATION,
    "Forward-process algorithms": FORWARD,
    "Settings that the run chooses": ADAPTED,
    "Reverse-process algorithms": REVERSE,
    "Evaluations": EVALUATION,
    "Agents": AGENTS,
}
METRICS = {key: metric for section in SECTIONS.values() for key, metric in section.items()}


def entry(key: str) -> str | None:
    """The glossary's own key for a key of metrics.jsonl: tool/search -> tool/NAME, pull@3 -> pull@STEP."""
    if key in METRICS:
        return key
    name, at, step = key.partition("@")
    if at and step.isdigit() and name in METRICS and METRICS[name].by_step:
        return f"{name}@STEP"
    if key.removeprefix("seconds.") in MODULES:
        return "seconds.MODULE"
    kind, slash, names = key.partition("/")
    if slash and names:
        return PATTERNS.get(kind)
    return None


def find(key: str) -> Metric | None:
    """The metric of a key of metrics.jsonl; None if it is unknown, such as a figure of your own algorithm."""
    known = entry(key)
    return METRICS[known.removesuffix("@STEP")] if known else None


_HEAD = """# Metrics

This page explains every key of `metrics.jsonl` in a run folder, and which values are healthy. Plot them with

```sh
flowward report runs/first    # writes report.html, which repeats these explanations under each curve
```

Each line of the file is one JSON object: one iteration. A value outside its healthy range often prints a health warning
that says what to change.

- `KEY@STEP` is the same metric for one rollout step alone. Step 0 is the first, noisiest step.
- `seconds.train` is the key `train` of the object `seconds`.
- Each evaluation also saves `samples/ITERATION-best-worst.png`: the best and the worst image of that iteration, and
  `samples/ITERATION-scores.json`: the scores of all its images, as `flowward eval --json` writes them.
- A sample is an image, or an episode of an agent (`flowward agent train`).
- NAME is a reward, or what the line says. PART is `overall` or `categories.CATEGORY`.
- HOW is `sampled` or `greedy`. MODULE is a part of an agent.

This page is generated from `flowward/training/glossary.py`.
"""


def page() -> str:
    """docs/metrics.md."""
    parts = [_HEAD]
    for title, metrics in SECTIONS.items():
        parts.append(f"## {title}\n\n| key | meaning | healthy | unit |\n| --- | --- | --- | --- |")
        for key, metric in metrics.items():
            keys = f"`{key}`, `{key}@STEP`" if metric.by_step else f"`{key}`"
            parts.append(f"| {keys} | {metric.line} | {metric.healthy} | {metric.unit} |")
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
