"""Every flow-matching pipeline of the installed diffusers, and what flowward does with it: data for docs/pipelines.md.

Write the page anew with `python -m flowward.models.catalogue > docs/pipelines.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from ..system import tables

HERE = tables.PACKAGE / "models" / "families"
FLOW = re.compile(
    r"FlowMatch|flow_shift|flow_prediction|use_flow_sigmas"
)  # a scheduler of flows, or one set up for them
ALSO = ("anyflow", "sana", "sana_video")  # folders whose pipelines follow a flow, and name a scheduler of any kind
PIPELINE = re.compile(r"^class (\w+Pipeline)\(", re.MULTILINE)
Status = Literal["written", "observed", "refused", "not tried"]
STATUSES: tuple[Status, ...] = ("written", "observed", "refused", "not tried")


@dataclass(frozen=True)
class Entry:
    """A pipeline, and what flowward does with it."""

    pipeline: str
    folder: str  # of diffusers
    status: Status
    reason: str = ""  # why it is refused, the name of the family that drives it, or what was observed


@cache
def entries() -> tuple[Entry, ...]:
    """All flow-matching pipelines of the installed diffusers by folder and name. Its files are read, not imported."""
    written = {each["pipeline"]: each["family"] for each in tables.load(HERE / "table.yaml")}
    observed = {each["pipeline"]: each.get("notes", "") for each in tables.load(HERE / "observed.yaml")}

    def entry(folder: str, name: str) -> Entry:
        if name in written:
            return Entry(name, folder, "written", written[name])
        if name in observed:
            return Entry(name, folder, "observed", observed[name])
        reason = refusal(name)
        return Entry(name, folder, "not tried") if reason is None else Entry(name, folder, "refused", reason)

    return tuple(sorted((entry(*each) for each in _found()), key=lambda each: (each.folder, each.pipeline)))


def refusal(pipeline: str) -> str | None:
    """Why flowward does not drive a pipeline; None: nobody has said that it cannot."""
    for each in tables.load(HERE / "refused.yaml"):
        if re.fullmatch(each["pipeline"], pipeline):
            return str(each["reason"])
    return None


def edits(pipeline: str) -> bool:
    """Whether an observed pipeline is for prompts with source images, though it also works without them."""
    return any(each["pipeline"] == pipeline and each.get("edits") for each in tables.load(HERE / "observed.yaml"))


def _found() -> Iterator[tuple[str, str]]:
    """Folder and class of each pipeline of a flow."""
    spec = find_spec("diffusers")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent / "pipelines"
    for file in root.rglob("pipeline_*.py"):
        text = file.read_text("utf-8")
        folder = file.relative_to(root).parts[0]
        for name in PIPELINE.findall(text) if folder in ALSO or FLOW.search(text) else ():
            yield folder, name


def page() -> str:
    """docs/pipelines.md"""
    every = entries()
    count = {status: sum(each.status == status for each in every) for status in STATUSES}
    rows = [f"| `{each.pipeline}` | {each.folder} | {each.status} | {each.reason} |" for each in every]
    return "\n".join(
        [
            "# Pipelines of diffusers",
            "",
            "This page is for finding out whether flowward can train a model. It lists every pipeline of diffusers "
            f"{version('diffusers')} that",
            f"follows a flow: {count['written']} are written (a family in `flowward/models/families/` drives them), "
            f"{count['observed']} are observed (a tiny one with random",
            f"weights passes all checks without a written family), {count['refused']} are refused, "
            f"{count['not tried']} are not tried. Those that are not tried",
            "may work too: [models.md](models.md#a-model-that-nobody-has-written). To add one: "
            "[models.md](models.md#adding-a-model-family).",
            "The page is written by `python -m flowward.models.catalogue`, and a test compares it with the installed "
            "diffusers. So the",
            "pipelines of a new version appear as not tried.",
            "",
            "| pipeline | folder of diffusers | status | family, or reason |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            "See also: [models.md](models.md), [few_step.md](few_step.md).",
        ]
    )


if __name__ == "__main__":
    print(page())
