"""The reference of the Python API: what mkdocstrings reads in the source, without importing it."""

from __future__ import annotations

from collections.abc import Mapping

from .markdown import fenced, table

FOLDER = "reference/api"
START = """
import flowward

policy = flowward.load("scenes", lora_rank=16)
run = flowward.fit("advantageflow", policy, "scenes", "scenes", iterations=20)
print(run.evaluate())
"""
PAGES: Mapping[str, tuple[str, tuple[str, ...]]] = {  # page: what it is for, and what it shows
    "training": (
        "Train from Python in one call or in your own loop: settings, and what each iteration returns.",
        (
            *("flowward.session.fit.fit", "flowward.session.fitted.Fitted"),
            *("flowward.training.assembly.train", "flowward.training.run.Run", "flowward.training.metrics.Step"),
            "flowward.training.run.Training",
        ),
    ),
    "models": (
        "Load models and runs, sample from them, and set LoRA adapters.",
        (
            *("flowward.models.load", "flowward.models.adapters.Adapters", "flowward.models.loading.Loading"),
            *("flowward.export.trained.load", "flowward.process.policy.Policy", "flowward.process.policy.Models"),
        ),
    ),
    "policies": (
        "Make a policy of any torch module that predicts a velocity.",
        ("flowward.models.modules.of", "flowward.process.medium.Medium"),
    ),
    "rewards": (
        "Load rewards, and the interface of your own.",
        ("flowward.rewards.loading.load", "flowward.rewards.loading.Sum", "flowward.rewards.reward"),
    ),
    "prompts": (
        "Load prompt sets, or make them from your own texts.",
        ("flowward.prompts.loading.load", "flowward.prompts.given.of", "flowward.prompts.prompt"),
    ),
    "algorithms": (
        "The interface of an algorithm. Each algorithm's own settings are on its page.",
        ("flowward.algorithms.algorithm", "flowward.algorithms.anchored"),
    ),
    "credit": ("From rewards to advantages.", ("flowward.learning.credit",)),
    "flow": ("The flow-matching convention and its formulas.", ("flowward.process.flow",)),
    "objectives": (
        "Loss equations as functions of plain tensors.",
        (
            *("flowward.algorithms.advantageflow", "flowward.algorithms.flowawr", "flowward.algorithms.diffusion_nft"),
            *("flowward.algorithms.awm", "flowward.algorithms.fdfo", "flowward.algorithms.dgpo"),
            *("flowward.algorithms.crd", "flowward.algorithms.dpo", "flowward.algorithms.ram"),
            *("flowward.algorithms.rvm", "flowward.algorithms.vgrpo", "flowward.algorithms.policy_gradient"),
            *("flowward.algorithms.meanflow_advantage", "flowward.algorithms.opd"),
            *("flowward.algorithms.ascent", "flowward.algorithms.adjoint_matching"),
            "flowward.learning.terms",
        ),
    ),
}


def _page(name: str) -> str:
    what, shown = PAGES[name]
    parts = [f"# {name.capitalize()}", what, *(f"::: {each}" for each in shown)]
    return "\n\n".join(parts) + "\n"


def _index() -> str:
    listed = [[f"[{name}]({name}.md)", what] for name, (what, _) in PAGES.items()]
    return "\n\n".join(
        [
            "# Python API",
            "This page lists what can be imported; [From Python](../../python.md) explains it. Start from this:",
            fenced(START, "python"),
            "Public names are imported from `flowward`: `fit`, `load`, `train`, `Run`, `ALGORITHMS`, `trained`, and "
            "the modules `policies`, `rewards`, `prompts`, `credit`, `flow` and `objectives`. The pages below show "
            "them under the file that defines them.",
            table(["page", "what it is for"], listed),
        ]
    )


def pages() -> dict[str, str]:
    """The index, and a page per topic."""
    return {f"{FOLDER}/index.md": _index() + "\n", **{f"{FOLDER}/{name}.md": _page(name) for name in PAGES}}
