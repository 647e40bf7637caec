"""What the hub reads of a model card: licence, base model, task, tags and evaluation results."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from ..evaluation.outcome import Evaluations, Measure
from ..models import is_pipeline
from ..models.names import located
from ..process.policy import Policy

BUILT_IN = "apache-2.0"  # flowward/scenes/weights/README.md
HUB = "https://huggingface.co"


def of(about: Mapping[str, Any], policy: Policy, evaluations: Evaluations) -> ModelCardData:
    """The metadata of a card. `about` has the facts of an export (Record.origin), `evaluations` those of its run.

    `base_model` is left out unless it is a model of the hub, because the hub refuses a card with any other.
    """
    base, task = str(about["base_model"]), _task(policy)
    results = _results(about, task, evaluations)
    return ModelCardData(
        **_licence(base, about.get("revision")),
        base_model=repository(base),
        library_name="diffusers",
        pipeline_tag=task,
        tags=["flowward", "reinforcement-learning", *(["lora"] if "lora_rank" in about else [])],
        model_name=title(about) if results else None,
        eval_results=results or None,
    )


def title(about: Mapping[str, Any]) -> str:
    """A name for the model, such as: stable-diffusion-3.5-medium, post-trained with awm"""
    return f"{Path(str(about['base_model'])).name}, post-trained with {about['algorithm']}"


def repository(base: str) -> str | None:
    """owner/name on the hub; None for a folder and for the built-in model."""
    name = located(base) if "://" in base else base
    return name if is_id(name) and is_pipeline(name) and not Path(name).exists() else None


def is_id(name: str) -> bool:
    """Whether a name is owner/name, as the hub allows it."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def _task(policy: Policy) -> str:
    if policy.edits:
        return "image-to-image"
    if policy.medium.noun == "sounds":
        return "text-to-audio"
    return "text-to-video" if len(policy.latent_shape) == 4 else "text-to-image"  # latents of a video have a time


def _licence(base: str, revision: str | None) -> dict[str, Any]:
    """The licence of the base model, from its card; if that is not known, one that names the base model."""
    if not is_pipeline(base):
        return {"license": BUILT_IN}
    name = repository(base)
    said = _card_of(base, name, revision)
    found = {key: said[key] for key in ("license", "license_name", "license_link") if isinstance(said.get(key), str)}
    if "license" not in found:
        sign = re.sub(r"[^a-z0-9]+", "-", (name or Path(base).name).lower()).strip("-")
        link = {"license_link": f"{HUB}/{name}"} if name else {}
        return {"license": "other", "license_name": f"license-of-{sign}"[:96].rstrip("-"), **link}
    if name and "license_link" in found and "://" not in found["license_link"]:  # a file beside the card
        found["license_link"] = f"{HUB}/{name}/blob/main/{found['license_link'].removeprefix('./')}"
    return found


def _card_of(base: str, name: str | None, revision: str | None) -> dict[str, Any]:
    """The metadata of the base model's card, from its folder or from the hub's cache; empty if there is none."""
    found = try_to_load_from_cache(name, "README.md", revision=revision) if name else Path(located(base), "README.md")
    if not isinstance(found, (str, Path)) or not Path(found).is_file():
        return {}
    try:
        told: dict[str, Any] = ModelCard.load(Path(found), ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, TypeError, yaml.YAMLError):  # the card of others is no reason to fail
        return {}
    return told


def _results(about: Mapping[str, Any], task: str, evaluations: Evaluations) -> list[EvalResult]:
    """The scores of the exported weights; none if the last evaluation measured others."""
    if not evaluations:
        return []
    iteration, last = evaluations[-1]
    same = last.get("weights", "policy") == about.get("weights", "policy")
    if not iteration or iteration != about.get("iterations", iteration) or not same:
        return []
    prompts = str(last.get("prompts", "unnamed prompts"))
    return [
        EvalResult(
            task_type=task,
            dataset_type=Path(prompts).name,
            dataset_name=prompts,
            metric_type=measure.name,
            metric_name=f"{measure.label}, mean over images",
            metric_value=measure.overall[-1][1]["mean"],
        )
        for measure in Measure.every(evaluations)
    ]
