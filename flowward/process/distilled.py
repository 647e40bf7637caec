"""Signs that a model is step-distilled: a map in few steps, whose velocity is not E[u | x_t] of its own samples.

No torch. What a pipeline has of them is asked of its family; here is what its names and its scheduler say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

Sure = Literal["certain", "likely", "hint"]
SCHEDULERS = re.compile(r"(LCM|FlowMatchLCM|TCD|SCM|FlowMapEuler|PiFlow|HeliosDMD)")  # how their classes begin
PIPELINES = re.compile(r"(SanaSprint|AnyFlow|LatentConsistency)")
WORDS = re.compile(
    r"(?<![a-z])(turbo|schnell|lightning|hyper|lcm|tdm|dmd2?|flash|sprint|causvid|self[-_ ]?forcing)(?![a-z])"
    r"|(?<![\d.])(1|2|4|8|16)[-_ ]?steps?(?![a-z])"
)


@dataclass(frozen=True)
class Sign:
    """What was found, where, and how sure it is."""

    what: str
    where: str
    sure: Sure

    def __str__(self) -> str:
        return f"{self.what} in {self.where}, {self.sure}"


def of_names(names: Iterable[tuple[str, str]]) -> Iterator[Sign]:
    """Words for distilled models in names: pairs of a name (an id, a folder, a file) and what it is the name of."""
    for name, of in names:
        path = PurePath(name)
        kept = [path.name, *(part for part in path.parts[:-1] if part.startswith("models--"))]
        for part in kept:
            if found := WORDS.search(part.lower()):
                yield Sign(f"`{found[0]}`", f"the name of {of}", "hint")
                break


def of_pipeline(kind: str, index: Mapping[str, Any]) -> Iterator[Sign]:
    """What the class of a pipeline, and the settings in its model_index.json, say."""
    if PIPELINES.match(kind):
        yield Sign(f"`{kind}`", "model_index.json", "certain")
    if index.get("is_distilled") is True:
        yield Sign("`is_distilled: true`", "model_index.json", "certain")


def of_scheduler(kind: str, config: Mapping[str, Any]) -> Iterator[Sign]:
    """What the class of a scheduler and its settings say."""
    if SCHEDULERS.match(kind):
        yield Sign(f"`{kind}`", "scheduler_config.json", "certain")
    if config.get("stochastic_sampling") is True:
        yield Sign("`stochastic_sampling: true`", "scheduler_config.json", "certain")
