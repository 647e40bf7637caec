"""The page of pipelines says what is true of the installed diffusers."""

from __future__ import annotations

import re
from pathlib import Path

import diffusers

from flowward.models import catalogue
from flowward.models.families import FAMILIES
from flowward.system import tables

PAGE = Path(__file__).parents[2] / "docs" / "pipelines.md"


def test_the_page_is_up_to_date() -> None:
    """After a change: python -m flowward.models.catalogue > docs/pipelines.md."""
    assert PAGE.read_text("utf-8") == catalogue.page() + "\n"


def test_every_family_is_found_and_every_pipeline_is_one_of_diffusers() -> None:
    known = {each.pipeline: each for each in catalogue.entries()}
    assert {name for name, each in known.items() if each.status == "written"} == set(FAMILIES)
    assert all(issubclass(getattr(diffusers, name), diffusers.DiffusionPipeline) for name in FAMILIES)


def test_pipelines_that_predict_noise_are_not_listed() -> None:
    names = {each.pipeline for each in catalogue.entries()}
    assert not names & {"StableDiffusionPipeline", "StableDiffusionXLPipeline", "DDPMPipeline", "PixArtAlphaPipeline"}
    assert {"Flux2Pipeline", "StableAudio3Pipeline", "LTXPipeline", "SanaSprintPipeline"} <= names


def test_every_refusal_has_a_pipeline_and_a_reason() -> None:
    names = [each.pipeline for each in catalogue.entries()]
    for each in tables.load(catalogue.HERE / "refused.yaml"):
        assert any(re.fullmatch(each["pipeline"], name) for name in names), each
        assert each["reason"]
