"""What the name of a model or LoRA stands for: a folder, a file, a hub id, a URL; and a sentence for anything else.

No torch: commands ask before they load anything.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..scenes.design import LARGE, SMALL
from ..system.errors import unknown
from ..system.whole_files import PARTS

BUILT_IN = ("scenes", "scenes-4step", "scenes-64")
WORLDS = {"scenes": SMALL, "scenes-64": LARGE}
RUNS = "runs"  # where runs without an --output go
INDEX = "model_index.json"
LORA_FILE = "pytorch_lora_weights.safetensors"  # what diffusers' load_lora_weights looks for in a folder
PEFT_FILE = "adapter_model.safetensors"
GIVE = f"give the folder of a diffusers pipeline (with {INDEX}), or owner/name on the hub"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)(?:/(.*))?")


def is_code(name: str) -> bool:
    """Whether a name is that of a function that makes a model: `path/to/file.py:NAME`."""
    return ".py:" in name and "://" not in name


def located(name: str) -> str:
    """The folder or hub id that a name stands for: of a hub URL, a hub cache folder, model_index.json, or `~`.

    Other names are returned as they are.

    Raises:
        ValueError: a URL is not that of a model, or a cache folder holds several versions.
    """
    if page := PAGE.fullmatch(name.removesuffix("/")):
        return _of_page(name, page[1], page[2] or "")
    if "://" in name:
        raise ValueError(f"{name} is not a model's page on huggingface.co; download the model, or {GIVE}")
    path = Path(name).expanduser()
    if path.name == INDEX and path.is_file():
        return str(path.parent)
    if (cache := path.parent if path.name == "snapshots" else path).name.startswith("models--") and cache.is_dir():
        return str(_snapshot(cache))
    name = str(path) if name.startswith("~") else name
    return name if path.exists() else name.rstrip("/")


def _of_page(name: str, model: str, rest: str) -> str:
    """owner/name of a page on the hub; `rest` is its path below the model."""
    owner = model.partition("/")[0]
    if owner in ("datasets", "spaces", "collections", "papers", "docs", "blog"):
        raise ValueError(f"{name} is not the page of a model (but one of {owner}); {GIVE}")
    kind, _, below = rest.partition("/")
    if kind == "tree" and below and below != "main":
        raise ValueError(f"{name} is a branch or folder of {model}; give {model}, and --revision for a branch")
    if kind in ("blob", "resolve"):
        raise ValueError(f"{name} is one file of {model}; give {model}, or download the file")
    return model


def _snapshot(cache: Path) -> Path:
    """The version in a cache folder of the hub: the one of its main branch, or the only one; else the folder."""
    main = cache / "refs" / "main"
    newest = cache / "snapshots" / main.read_text("utf-8").strip() if main.is_file() else cache
    every = [path for path in sorted(cache.glob("snapshots/*")) if (path / INDEX).is_file()]
    if newest in every or not every:
        return newest if newest in every else cache
    if len(every) > 1:
        raise ValueError(f"{cache} holds several versions of the model; give one of its folders, such as {every[0]}")
    return every[0]


def is_pipeline(name: str) -> bool:
    """Whether a name refers to a diffusers pipeline, in a folder or on the hub."""
    path = Path(name := located(name))
    if is_code(name):
        return False
    if (path / INDEX).is_file():
        return True
    return (
        not path.exists()
        and name.count("/") == 1
        and not is_path(name)
        and path.suffix not in (".safetensors", ".gguf", *PICKLES)
    )


def world_of(name: str) -> str:
    """The built-in world whose pictures a model draws: `scenes`, or another one, named or known by its picture size."""
    if name in WORLDS:
        return name
    side = (_json(Path(name) / "vae" / "config.json") or {}).get("sample_size")
    return next((world for world, design in WORLDS.items() if design.size == side), "scenes")


def is_path(name: str) -> bool:
    """Whether a name that does not exist is a path: by how it begins, or because its first folder is here."""
    first = name.partition("/")[0]
    return first in ("", ".", "..", "~", RUNS) or ("/" in name and Path(first).is_dir())


def refusal(name: str) -> str:
    """Why a name is no model: what it is instead, and what to give."""
    path = Path(name)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _file(path)
    return missing(name, BUILT_IN)


def missing(name: str, built_in: Sequence[str]) -> str:
    """Why a name that is no file or folder is no model, where these are built in."""
    path = Path(name)
    if path.suffix in (".safetensors", ".gguf", *PICKLES):
        return f"there is no file {name}"
    if is_path(name):
        near = difflib.get_close_matches(path.name, _beside(path), n=1)
        return f"there is no file or folder {name}" + (f"; did you mean {path.parent / near[0]}?" if near else "")
    what = " (or give the folder of a pretrained model, or owner/name for a model on the hub)"
    return unknown("model", name, built_in) + what


def _beside(path: Path) -> list[str]:
    """The names in the folder of a path."""
    return sorted(each.name for each in path.parent.iterdir()) if path.parent.is_dir() else []


def _file(path: Path) -> str:
    if path.suffix == ".safetensors":
        return _weights(path)
    if path.suffix == ".gguf":
        return (
            f"{path} holds quantised weights of one network, which cannot be trained; {GIVE} (--quantise saves memory)"
        )
    if path.suffix in PICKLES:
        return f"{path} is a pickle, which can run code when it is read; {GIVE}"
    return f"{path} is a file, not a model; {GIVE}"


def _weights(path: Path) -> str:
    try:
        header, keys = header_of(path), keys_of(path)
    except ValueError as error:
        return str(error)
    if path.parent.name == "checkpoints":
        return _checkpoint(path)
    if any("lora" in key for key in keys):
        return _lora(path, header)
    return (
        f"{path} holds weights in a single file, but flowward needs the folders of a whole pipeline; convert it with "
        f"diffusers (from_single_file, then save_pretrained), or {GIVE}"
    )


def _checkpoint(path: Path) -> str:
    run = path.parent.parent
    return f"{path} is a checkpoint of a run; continue with --resume {run}, or use `flowward export {run}`"


def _lora(path: Path, header: dict[str, str]) -> str:
    try:
        base = json.loads(header.get("flowward", "{}")).get("base_model")
    except (ValueError, AttributeError):
        base = None
    base = base or (_json(path.parent / "adapter_config.json") or {}).get("base_model_name_or_path")
    where = path.parent if path.name in (LORA_FILE, PEFT_FILE) else path
    return f"{where} is a LoRA, not a model; train from it with --model {base or 'BASE'} --init-lora {where}"


def _folder(path: Path) -> str:
    if (path / "config.yaml").is_file():
        return (
            f"{path} is a run folder, not a model; continue its training with --resume {path}, "
            "or load its policy in Python with flowward.trained.load"
        )
    if path.parent.name == "checkpoints" and path.suffix == PARTS:
        return _checkpoint(path)
    for file in (path / LORA_FILE, path / PEFT_FILE):
        if file.is_file():
            return _weights(file)
    if (facts := _json(path / "flowward.json")) is not None:
        base = facts.get("base_model", "its base model")
        return (
            f"{path} holds trained weights of {base} without the rest of its pipeline; to train on from them, save "
            "a pipeline that has them (docs/models.md)"
        )
    if (config := _json(path / "config.json")) is not None:
        kind = config.get("_class_name") or config.get("model_type") or "unknown class"
        whole = path.parent if (path.parent / INDEX).is_file() else None
        give = f"give the whole pipeline, {whole}" if whole else GIVE
        return f"{path} is a single network ({kind}), not a pipeline; {give}"
    if path.name.startswith("models--"):
        model = path.name.removeprefix("models--").replace("--", "/", 1)
        return f"{path} is a hub cache folder without a whole pipeline; give {model} to download the rest"
    if inner := sorted(path.glob(f"*/{INDEX}")):
        return f"{path} is a folder of models; give one of them, such as {inner[0].parent}"
    if single := sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".gguf", *PICKLES)):
        return _file(single[0])
    return f"{path} is a folder, but not a model; {GIVE}"


def _json(file: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file, empty if it holds anything else."""
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def header_of(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with safe_open(file, "np") as opened:
            return dict(opened.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as a safetensors file: {error}") from error


def keys_of(file: Path) -> list[str]:
    """The names of the tensors in a safetensors file; raises like `header_of`."""
    try:
        with safe_open(file, "np") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as a safetensors file: {error}") from error


def lora(name: str) -> Path:
    """The file of a LoRA, from its path or that of its folder.

    Raises:
        ValueError: there is none, or there are several.
    """
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix != ".safetensors":
            why = "a pickle, which can run code when it is read" if path.suffix in PICKLES else "no .safetensors file"
            raise ValueError(f"the LoRA {path} is {why}; give a .safetensors file")
        return path
    if not path.is_dir():
        raise ValueError(f"there is no LoRA {path}: give a .safetensors file, or the folder of one")
    if (path / "config.yaml").is_file():
        raise ValueError(f"{path} is a run folder; write its LoRA with `flowward export {path}` and give {path}/export")
    named = [file for folder in (path, *path.iterdir()) for known in (LORA_FILE, PEFT_FILE)
             if (file := folder / known).is_file() and folder.name != "transformer_2"]  # fmt: skip
    for found in ([file for file in named if file.parent == path][:1], sorted(path.glob("*.safetensors")), named):
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{path} holds several files; give one of them: {', '.join(map(str, sorted(found)))}")
    raise ValueError(f"{path} holds no LoRA (no {LORA_FILE}, no {PEFT_FILE}); give a .safetensors file")


def lora_file(name: str) -> Path | None:
    """The LoRA file at this path or in this folder; None if there is none."""
    path = Path(name)
    file = path / LORA_FILE if path.is_dir() else path
    return file if file.suffix == ".safetensors" and file.is_file() else None
