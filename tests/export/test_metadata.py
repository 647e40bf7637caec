"""The metadata of a card are what the hub accepts, and they claim of the weights only what was measured of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from tiny_policies import policy

from flowward.export import card, metadata
from flowward.training.record import Record

ABOUT: dict[str, Any] = {"base_model": "scenes", "algorithm": "awm", "iterations": 1, "weights": "policy"}
FILES = ["pytorch_lora_weights.safetensors"]


class Strict(yaml.SafeLoader):
    """Refuses keys that are there twice, as the hub does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [self.construct_object(key) for key, _ in node.value]
        assert len(names) == len({*names}), f"twice: {names}"
        return super().construct_mapping(node, deep)


def written(run: Path, to: Path, **facts: Any) -> tuple[ModelCard, dict[str, Any]]:
    """A card as the hub's library loads it, and its head as YAML."""
    path = card.write(Record(run), to, policy("StableDiffusion3Pipeline"), {**ABOUT, **facts}, FILES)
    head = path.read_text("utf-8").removeprefix("---\n").partition("\n---\n")[0]
    return ModelCard.load(path), yaml.load(head, Strict)


def test_a_card_is_one_of_the_hub(run: Path, tmp_path: Path) -> None:
    found, head = written(run, tmp_path, lora_rank=2)
    assert found.data.to_dict() == head  # a round trip
    assert head["library_name"] == "diffusers" and head["pipeline_tag"] == "text-to-image"
    assert head["license"] == "apache-2.0" and head["tags"] == ["flowward", "reinforcement-learning", "lora"]
    assert "base_model" not in head  # the hub refuses what is none of its models
    assert str(ModelCard(found.content)) == found.content and found.text.lstrip().startswith("# scenes, post-trained")


def test_its_results_are_the_scores_of_the_last_evaluation(run: Path, tmp_path: Path) -> None:
    found, head = written(run, tmp_path)
    name, results = model_index_to_eval_results(head["model-index"])
    assert results == found.data.eval_results and name == found.data.model_name
    scores = Record(run).lines()[-1]["evaluation"]["scores"]
    assert {each.metric_type: each.metric_value for each in results} == {
        key: score["overall"]["mean"] for key, score in scores.items()
    }
    assert all(isinstance(each, EvalResult) and each.task_type == "text-to-image" for each in results)
    assert {each.dataset_type for each in results} == {"scenes-held-out"}
    assert "95 % confidence intervals" in found.text


@pytest.mark.parametrize("facts", [{"weights": "ema"}, {"iterations": 2}])
def test_other_weights_than_the_measured_ones_have_no_results(run: Path, tmp_path: Path, facts: dict[str, Any]) -> None:
    found, head = written(run, tmp_path, **facts)
    assert "model-index" not in head and found.data.eval_results is None


def test_the_model_before_training_is_not_the_exported_one(run: Path, tmp_path: Path) -> None:
    first = (run / "metrics.jsonl").read_text().splitlines()[0]
    (run / "metrics.jsonl").write_text(first + "\n")
    assert "model-index" not in written(run, tmp_path, iterations=0)[1]


@pytest.mark.parametrize(
    ("name", "task"),
    [("StableDiffusion3Pipeline", "text-to-image"), ("FluxKontextPipeline", "image-to-image"),
     ("WanPipeline", "text-to-video")],
)  # fmt: skip
def test_a_pipeline_has_its_task(name: str, task: str) -> None:
    assert metadata.of(ABOUT, policy(name), []).pipeline_tag == task


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("license: mit", {"license": "mit"}),
        ("license: other\nlicense_name: mine\nlicense_link: LICENSE.md",
         {"license": "other", "license_name": "mine", "license_link": "LICENSE.md"}),
        ("license: [mit]", {"license": "other", "license_name": "license-of-my-base"}),
        ("license: {", {"license": "other", "license_name": "license-of-my-base"}),
        ("tags: x", {"license": "other", "license_name": "license-of-my-base"}),
    ],
)  # fmt: skip
def test_the_licence_is_that_of_the_base_model(tmp_path: Path, head: str, expected: dict[str, str]) -> None:
    base = tmp_path / "My base"
    base.mkdir()
    (base / "model_index.json").write_text("{}")
    (base / "README.md").write_text(f"---\n{head}\n---\n# It\n")
    found = metadata.of({**ABOUT, "base_model": str(base)}, policy("StableDiffusion3Pipeline"), []).to_dict()
    assert {key: found[key] for key in found if key.startswith("license")} == expected
    assert "base_model" not in found


def test_of_a_model_on_the_hub_it_comes_from_its_cached_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about, one = {**ABOUT, "base_model": "owner/name"}, policy("StableDiffusion3Pipeline")
    monkeypatch.setattr(metadata, "try_to_load_from_cache", lambda *asked, **more: None)
    found = metadata.of(about, one, []).to_dict()
    assert found["base_model"] == "owner/name" and found["license"] == "other"
    assert found["license_name"] == "license-of-owner-name"
    assert found["license_link"] == "https://huggingface.co/owner/name"
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: own\nlicense_link: ./LICENSE.md\n---\n")
    monkeypatch.setattr(metadata, "try_to_load_from_cache", lambda *asked, **more: str(tmp_path / "README.md"))
    link = metadata.of(about, one, []).to_dict()["license_link"]
    assert link == "https://huggingface.co/owner/name/blob/main/LICENSE.md"
