"""Load a planner: the built-in one, a folder, a model of the hub, or a run with its trained weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ..training.folder import RunFolder
from . import config, planners
from .assembly import language_of, models_of
from .config import Settings
from .episode import SAME
from .language import Language

At = int | Literal["best"]


def settings_of(name: str, preset: str | None = None) -> Settings:
    """The settings of a run, those beside an exported planner, or those that fit any other model.

    Args:
        preset: start from these settings instead (None: as above).

    Raises:
        ValueError: it is a run over images, a preset is named for a run, or the file with the settings is damaged.
    """
    path = Path(name)
    if (path / "config.yaml").is_file():
        if preset:
            raise ValueError(f"{name} is a run and has its own settings: leave out --preset")
        found = RunFolder.open(path).config()
        if found.get("kind") != config.KIND:
            raise ValueError(f"{name} is a run over images, not of an agent: use flowward sample, eval or export")
        return config.from_dict(found)
    planners.refuse(name)
    if preset is None and (own := planners.agent_of(name)):
        try:
            return replace(config.from_dict(own), model=name)
        except ValueError as error:
            raise ValueError(f"{path / planners.AGENT}: {error}") from error
    return config.starting(preset, name)


def is_run(name: str) -> bool:
    """Whether a name is that of a run folder."""
    return (Path(name) / "config.yaml").is_file()


def load(
    name: str, settings: Settings, weights: str = "policy", at: At | None = None
) -> tuple[Language, dict[str, Any]]:
    """The planner with these weights as its policy, and what identifies it.

    Args:
        settings: those of the run (`settings_of`), perhaps with other modules, tools and devices.
        weights: `policy`, `ema`, or `reference`, the model before training.
        at: the checkpoint of a run (None: the newest).

    Raises:
        ValueError: the model, the run or the checkpoint does not exist, or does not fit.
    """
    path = Path(name)
    is_run = (path / "config.yaml").is_file()
    if at is not None and not is_run:
        raise ValueError(f"{name} is not a run, so it has no checkpoints: leave out --at")
    language = language_of(settings)
    if SAME in models_of(settings, language):
        language.weights.add("reference")
    if not is_run or weights == "reference":
        return language, {"name": name} | ({"weights": weights} if is_run else {})
    folder = RunFolder.open(path)
    state = folder.state("identity", "iteration", "weights", at=at, within=f"weights.{weights}.")
    if state is None:
        raise ValueError(f"{path} contains no checkpoint yet: wait for the first one, or set --checkpoint-every lower")
    with folder.explained():
        if other := language.unlike(state["identity"]):
            raise ValueError(
                f"the checkpoint of {path} does not belong to the model '{settings.model}': different "
                f"{', '.join(other)}"
            )
        if weights not in state["weights"]:
            raise ValueError(f"{path} has no weights '{weights}': choose one of {', '.join(state['weights'])}")
        language.weights.load("policy", state["weights"][weights])
    language.name = f"{name} ({weights}, iteration {state['iteration']})"
    return language, {"name": name, "weights": weights, "iteration": state["iteration"]}


def changed(settings: Settings, given: Any) -> Settings:
    """The settings with what a command's options name: fields of `given` with a value that Settings has too."""
    named = {name: value for name in config.FIELDS if (value := getattr(given, name, None)) not in (None, "")}
    limits = {
        name: value
        for name in ("max_turns", "max_tokens", "max_time")
        if (value := getattr(given, name, None)) is not None
    }
    settings = replace(settings, server=None, correct=None)  # the trained weights are here
    return replace(settings, **named, limits=replace(settings.limits, **limits))
