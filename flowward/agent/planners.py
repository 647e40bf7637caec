"""What the name of a planner stands for: the built-in one, a folder, owner/name on the hub; and the agent beside it.

No torch: a wrong name is refused before anything is loaded. An exported planner has a file `agent.yaml` beside its
weights, with the settings of the agent that it was trained in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..models import names
from ..system import tables, whole_files

WORLD = Path(__file__).parent / "start"
"""the folder of the built-in planner"""
AGENT = "agent.yaml"
ADAPTER = "adapter_config.json"  # peft's


def folder_of(name: str) -> str:
    """The folder or hub id of a planner; `world` is the built-in one."""
    return str(WORLD) if name == "world" else name


def refuse(name: str) -> None:
    """Raise ValueError for a name that cannot be that of a language model; it says what it is instead."""
    path = Path(name)
    if name == "world" or path.is_dir():
        if (path / "config.yaml").is_file():
            raise ValueError(
                f"{name} is a run folder, not a model: continue its training with --resume {name}, or write its "
                f"planner with flowward agent export {name}"
            )
        known = [path / file for file in ("config.json", ADAPTER)]
        if name == "world" or any(file.is_file() for file in known) or list(path.glob("*.gguf")):
            return
        raise ValueError(f"{name} is a folder, but not a language model: it has no config.json")
    if path.is_file():
        raise ValueError(f"{name} is a file, not a model: give the folder of a model, or owner/name on the hub")
    if names.is_path(name) or name.count("/") != 1 or path.suffix in (".safetensors", ".gguf", *names.PICKLES):
        raise ValueError(names.missing(name, ("world",)))


def base_of(folder: Path) -> str | None:
    """The model that the adapter in a folder is for; None if the folder holds no adapter.

    Raises:
        ValueError: the file of the adapter cannot be read.
    """
    file = folder / ADAPTER
    if not file.is_file() or (folder / "config.json").is_file():
        return None
    try:
        return str(json.loads(file.read_text("utf-8"))["base_model_name_or_path"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} does not name the model that the adapter is for") from error


def agent_of(name: str) -> Mapping[str, Any] | None:
    """The settings beside an exported planner; None if there are none.

    Raises:
        ValueError: the file is damaged.
    """
    file = Path(name) / AGENT
    if not file.is_file():
        return None
    found = tables.load(file)
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: it has no settings")
    return found


def write_agent(folder: Path, settings: Mapping[str, Any]) -> None:
    """Put the settings of an agent beside its planner."""
    whole_files.write(folder / AGENT, yaml.safe_dump(dict(settings), sort_keys=False))
