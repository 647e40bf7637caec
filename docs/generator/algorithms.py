"""One page per algorithm, from its docstring, its facts and presets, and what was measured (docs/learning.json)."""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from flowward.algorithms import CLASSES
from flowward.algorithms.presets import FOLDER as PRESETS
from flowward.algorithms.presets import Facts, Family, facts

from . import config, equations
from .markdown import code, fenced, plain, table

FOLDER = "algorithms"
CODE = PRESETS.parent
RUNS = Path(__file__).parents[1] / "learning.json"
SHARED = "policy_gradient"  # the file with the equation of the reverse-process algorithms
FAMILIES = {
    "forward process": "These add fresh noise to finished images and train the velocity there. Any sampler will do.",
    "differentiated reward": "These take the gradient of the reward itself, through the decoder. The reward needs one.",
    "reverse process": "These are policy gradients on the random steps of the sampler.",
    "distillation": "These learn from trained models, so rewards are only watched: "
    "[Merge experts](../howto/merge_experts.md).",
}
TAUGHT = {"distillation": " --teachers counting=runs/counting ..."}  # options that a family cannot do without


def docstring(module: str) -> list[str]:
    """The paragraphs of a module's docstring after its first line."""
    text = ast.get_docstring(ast.parse((CODE / f"{module}.py").read_text("utf-8"))) or ""
    return text.split("\n\n")[1:]


def prose(paragraphs: list[str]) -> Iterator[str]:
    """Paragraphs as Markdown; those that are indented are equations."""
    for each in paragraphs:
        yield equations.html(textwrap.dedent(each)) if each.startswith("  ") else _linked(plain(each))


def _linked(text: str) -> str:
    text = re.sub(r"docs/(\w+)\.md", r"[\1.md](../\1.md)", text)
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def _equation(name: str, own: Facts) -> Iterator[str]:
    yield "## Equation"
    yield from prose(docstring(name))
    if own.family == "reverse process":
        yield "### The shared equation"
        yield "All reverse-process algorithms have this loss, with other values:"
        yield from prose(docstring(SHARED))
    yield f"Source: `flowward/algorithms/{name}.py`"


def _cost(own: Facts) -> str:
    cost = own.cost
    return table(
        ["network passes per image, preset `scenes`", "number"],
        [
            ["to sample: forward", f"{cost.sampling:g}"],
            ["to train: forward and backward", f"{cost.training:g}"],
            ["of frozen copies (old policy, reference): forward", f"{cost.copies:g}"],
        ],
    )


def runs(name: str) -> list[dict[str, Any]]:
    """The measured runs of an algorithm."""
    return [run for run in json.loads(RUNS.read_text("utf-8")) if run["algorithm"] == name]


def _measured(name: str) -> Iterator[str]:
    yield "## Measured"
    if not runs(name):
        yield "No runs on the [built-in world](../scenes.md) are recorded yet; see [benchmarks.md](../benchmarks.md)."
        return
    lines = []
    for run in runs(name):
        (_, before, *_), (images, after, low, high) = run["strict"][0], run["strict"][-1]
        accuracy = [f"{before} %", f"**{after} %** [{low}, {high}]"]
        lines.append([str(run["seed"]), f"{images:,}", *accuracy, run["precision"], run["date"]])
    yield (
        "Strict accuracy on prompts of the [built-in world](../scenes.md) that were not trained on, with 95 % "
        "intervals. Preset `scenes`. Method, commands and all other algorithms: [benchmarks.md](../benchmarks.md)."
    )
    yield table(["seed", "images", "before", "after", "precision", "date"], lines) if lines else "Not measured yet."


def _presets(own: Facts) -> Iterator[str]:
    yield "## Presets"
    yield table(
        ["`--preset`", "model", "source"],
        [[code(key), plain(each.model), _linked(plain(each.source))] for key, each in own.presets.items()],
    )


def _settings(name: str) -> Iterator[str]:
    own = [each for each in config.settings(name) if each.group.partition(".")[0] == "algorithm"]
    yield "## Settings"
    yield (
        "Each key of `config.yaml` is also an option: `algorithm.clip` is `--algorithm.clip`. "
        "Defaults: preset `scenes`."
    )
    yield table(["key", "meaning", "default", "values"], config.rows(own))


def _page(name: str) -> str:
    own = facts(name)
    real = next(key for key in own.presets if key != "scenes")
    more, reward = TAUGHT.get(own.family, ""), own.presets[real].settings.get("reward", ["ocr"])[0]
    commands = (
        f"# train the built-in model\nflowward train --algorithm {name} --output runs/{name}{more}\n"
        f"# train a real model with a published preset\n"
        f"flowward train --algorithm {name} --preset {real} --model owner/name --reward {reward}{more or ' ...'}\
"
        f"# see its presets side by side\nflowward algorithms {name}"
    )
    parts = [
        f"# {own.title}",
        f"{own.paper}, {_linked('arXiv:' + own.arxiv)}. Family: {own.family}.",
        f"**When to use it.** {plain(own.when)}",
        fenced(commands),
        _cost(own),
        *_equation(name, own),
        *_measured(name),
        *_presets(own),
        *_settings(name),
    ]
    return "\n\n".join(parts) + "\n"


def _index() -> str:
    parts = [
        "# Algorithms",
        "This page is for choosing an algorithm. Start with [AdvantageFlow](advantageflow.md), the default:",
        fenced(
            "flowward train --output runs/first                          # AdvantageFlow\n"
            "flowward train --algorithm flow_grpo --output runs/grpo     # another one"
        ),
        "Cost is in network passes per image with the preset `scenes`: forward passes to sample, forward and backward "
        "passes to train, forward passes of frozen copies. Accuracy on the built-in world starts at 38.2 %; the table "
        "gives the lowest and the highest of the seeds, and the images that each was trained on.",
    ]
    for family in get_args(Family):
        parts += [f"## {family.capitalize()}", FAMILIES[family]]
        parts.append(table(["algorithm", "cost", "accuracy", "when to use it"], map(_line, _of(family))))
    return "\n\n".join(parts) + "\n"


def _of(family: str) -> list[str]:
    return [name for name in CLASSES if facts(name).family == family]


def _line(name: str) -> list[str]:
    own, ends = facts(name), [run["strict"][-1] for run in runs(name)]
    if not ends:
        return [f"[{own.title}]({name}.md)", _passes(own), "[not yet](../benchmarks.md)", plain(own.when)]
    scores, images = sorted(end[1] for end in ends), sorted({end[0] for end in ends})
    many = f"{images[0]:,}" if len(images) == 1 else f"{images[0]:,}–{images[-1]:,}"
    accuracy = f"{scores[0]}–{scores[-1]} % after {many}"
    return [f"[{own.title}]({name}.md)", _passes(own), accuracy, plain(own.when)]


def _passes(own: Facts) -> str:
    return f"{own.cost.sampling:g} + {own.cost.training:g} + {own.cost.copies:g}"


def pages() -> dict[str, str]:
    """The table of all algorithms, and a page for each."""
    return {f"{FOLDER}/index.md": _index(), **{f"{FOLDER}/{name}.md": _page(name) for name in CLASSES}}
