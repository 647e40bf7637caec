"""The result of a run's evaluations: the first compared with the last, with intervals, in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .code_hashes import code_differs, without_code

Score = dict[str, Any]  # mean, low and high (the 95 % interval; None if one image has no interval), n
Scores = list[tuple[int, Score]]  # (iteration, score), oldest first
Evaluations = list[tuple[int, dict[str, Any]]]  # (iteration, result of `evaluate`), oldest first
_OVERLAP = {True: "yes", False: "no", None: "–"}
LATER = ("prompts_sha256", "image_size", "latent_frames", "rewards", "guard")
GREEDY = "(greedy)"  # end of the name of a score of greedy episodes


@dataclass(frozen=True)
class Nouns:
    """What is scored, in words."""

    samples: str
    sample: str
    prompts: str
    prompt: str
    one: str  # sample, with its article
    pictures: str = "images"  # how samples are shown
    drift: str = "brightness or contrast may drift: check the sample images"  # what larger or smaller samples mean


NOUNS = {
    "images": Nouns("images", "image", "prompts", "prompt", "an image"),
    "samples": Nouns(
        "samples", "sample", "prompts", "prompt", "a sample", "plots", "their scale drifts: check the plots"
    ),
    "sounds": Nouns(
        "sounds",
        "sound",
        "prompts",
        "prompt",
        "a sound",
        "sounds",
        "their loudness drifts: listen to the sample sounds",
    ),
    "episodes": Nouns("episodes", "episode", "questions", "question", "an episode"),
}


def nouns(evaluation: Mapping[str, Any]) -> Nouns:
    """Of an evaluation. Those of images do not say what their samples are."""
    return NOUNS.get(str(evaluation.get("samples")), NOUNS["images"])


def of(lines: list[dict[str, Any]]) -> Evaluations:
    """The evaluations among the lines of metrics.jsonl."""
    return [(line["iteration"], line["evaluation"]) for line in lines if (line.get("evaluation") or {}).get("scores")]


def remarks(lines: list[dict[str, Any]]) -> list[str]:
    """Warnings about the whole run, from before its first iteration."""
    return [said for line in lines if line["iteration"] == 0 for said in line.get("health") or []]


@dataclass(frozen=True)
class Measure:
    """One score over a run, and its number format: percent for pass/fail scores, plain for others."""

    name: str
    overall: Scores
    categories: dict[str, Scores]  # empty if there is only one, since it would repeat `overall`
    percent: bool
    agents: bool = False  # success of agents, sampled or greedy

    @classmethod
    def of(cls, name: str, evaluations: Evaluations) -> Measure:
        found = [(iteration, said["scores"][name]) for iteration, said in evaluations if name in said["scores"]]
        categories: dict[str, Scores] = {}
        for iteration, score in found:
            for category, own in score.get("categories", {}).items():
                categories.setdefault(category, []).append((iteration, own))
        overall = [(iteration, score["overall"]) for iteration, score in found]
        own = [said for _, said in evaluations if name in said["scores"]]
        # pass/fail scores of images are named by their reward; evaluations of other samples say so
        named = {nouns(said).samples for said in own}
        shares = name.endswith("strict") or (
            "images" not in named and all(said["scores"][name].get("verdicts") for said in own)
        )
        verdicts = shares and all(0 <= score["mean"] <= 1 for _, score in overall)
        return cls(name, overall, categories if len(categories) > 1 else {}, verdicts, named == {"episodes"})

    @classmethod
    def every(cls, evaluations: Evaluations) -> list[Measure]:
        """One Measure per score of the last evaluation, the headline first."""
        return [cls.of(name, evaluations) for name in evaluations[-1][1]["scores"]]

    @property
    def label(self) -> str:
        if not self.percent:
            return self.name
        if self.name.endswith("strict"):
            return "strict accuracy"
        if not self.agents:
            return self.name
        reward = self.name.removesuffix(f" {GREEDY}")
        how = "sampled" if reward == self.name else "greedy"
        return f"{how} success" + (f" by {reward}" if reward != "exact" else "")

    def number(self, x: float) -> str:
        return f"{100 * x:.1f} %" if self.percent else f"{x:.{3 if abs(x) < 10 else 2}f}"

    def bounds(self, score: Score) -> str:
        """[41.2, 49.0], or [–] if there is no interval."""
        if not bounded(score):
            return "[–]"
        return "[" + ", ".join(self.number(score[end]).removesuffix(" %") for end in ("low", "high")) + "]"

    def interval(self, score: Score) -> str:
        """45.1 % [41.2, 49.0]"""
        return f"{self.number(score['mean'])} {self.bounds(score)}"

    def change(self, before: Score, after: Score) -> str:
        """+23.2 points"""
        by = after["mean"] - before["mean"]
        return (f"{100 * by:+.1f} points" if self.percent else f"{by:+.3f}").replace("-", "−")

    def difference(self, mean: float, low: float | None, high: float | None) -> str:
        """+23.2 points [20.1, 26.3]"""
        factor, form = (100, "+.1f") if self.percent else (1, "+.3f")
        size = f"{factor * mean:{form}}" + " points" * self.percent
        ends = "" if low is None or high is None else f" [{factor * low:{form}}, {factor * high:{form}}]"
        return (size + ends).replace("-", "−")

    def over_prompts(self, score: Mapping[str, Any]) -> str:
        """[40.1, 50.2], or a dash if there is no interval over prompts."""
        ends = score.get("over_prompts")
        return "–" if ends is None else self.bounds({"low": ends[0], "high": ends[1]})

    def row(self, label: str, scores: Scores) -> list[str]:
        """A table row: label, first value, then (if there are two) last value, change and overlap; samples."""
        before, after = scores[0][1], scores[-1][1]
        cells = [label, self.interval(before)]
        if len(self.overall) > 1:
            cells += [self.interval(after), self.change(before, after), _OVERLAP[overlap(before, after)]]
        return [*cells, f"{after['n']:,.0f}"]


def sentence(evaluations: Evaluations) -> str:
    """The result in one sentence: the first evaluation against the last one, never the best one."""
    if not evaluations:
        return "There is no evaluation yet."
    measure = Measure.every(evaluations)[0]
    (first, before), (last, after) = measure.overall[0], measure.overall[-1]
    words = nouns(evaluations[-1][1])
    prompts = str(evaluations[-1][1].get("prompts", f"unnamed {words.prompts}"))
    what = f"{measure.label} on {f'held-out {words.prompts}' if prompts.endswith('held-out') else prompts}"
    if first == last:
        prefix = "No evaluation after training yet" if first == 0 else "Only one evaluation, so no comparison"
        return f"{prefix}; {when(first)}, {what} was {measure.interval(before)}."
    change = f"from {measure.interval(before)} {when(first)} to {measure.interval(after)} {when(last)}"
    verb, verdict = "rose" if after["mean"] > before["mean"] else "fell", "the 95 % intervals do not overlap"
    if unlike := differing(evaluations):
        names = ", ".join(words.prompts if key == "prompts" else key for key in unlike)
        verb, verdict = "went", f"the two evaluations differ in {names} and cannot be compared"
    elif overlap(before, after) is None:
        verb, verdict = "went", f"one {words.sample} has no interval, so this is not evidence of a change"
    elif overlap(before, after):
        verb, verdict = "went", "the 95 % intervals overlap, so this is not evidence of a change"
    return f"{what[0].upper()}{what[1:]} {verb} {change}; {verdict}."


def bounded(score: Score) -> bool:
    """Whether a score has an interval."""
    return score["low"] is not None


def overlap(a: Score, b: Score) -> bool | None:
    """Whether two intervals overlap; None if one is missing."""
    if not (bounded(a) and bounded(b)):
        return None
    return not (a["high"] < b["low"] or b["high"] < a["low"])


def when(iteration: int) -> str:
    return "before training" if iteration == 0 else f"after {counted(iteration, 'iteration')}"


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def without_figures(message: str) -> str:
    """A warning without its numbers, to recognise the same kind of warning."""
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", message)


def settings(evaluation: dict[str, Any]) -> str:
    """The settings of an evaluation as text: weights policy, solver euler, steps 10, guidance none, ..."""
    words = nouns(evaluation)
    used = {
        {"prompts": words.prompts, "images": words.samples}.get(key, key): value
        for key, value in evaluation.items()
        if key != "samples" and not isinstance(value, dict | list)
    }
    return ", ".join(f"{key} {'none' if value is None else value}" for key, value in used.items())


def differing(evaluations: Evaluations) -> list[str]:
    """Settings in which the first and the last evaluation differ, so that they cannot be compared."""
    first, last = evaluations[0][1], evaluations[-1][1]
    settings = [key for key in first | last if key not in ("scores", "model", "versions", "behaviour")]
    return [key for key in settings if _differ(key, first, last)]


def _differ(key: str, first: dict[str, Any], last: dict[str, Any]) -> bool:
    if key in LATER and not (key in first and key in last):
        return False  # a setting that older evaluations did not store is not known to differ
    one, other = first.get(key), last.get(key)
    return without_code(one) != without_code(other) or code_differs(one, other)
