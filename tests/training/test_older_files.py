"""Files that version 0.1.0 wrote (tests/data/README.md) are read as they are: runs, exports, settings, prompts."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from safetensors import safe_open
from tiny_policies import policy

import flowward
from flowward.cli import main
from flowward.models import Loading
from flowward.system.nested import flat
from flowward.training import config

DATA = Path(__file__).parents[1] / "data"
CONFIGS = sorted((DATA / "configs").glob("*.yaml"))
# algorithms that 0.1.0 did not have
NEWER = {"flow_dppo", "flash_grpo", "turningpoint_grpo", "branch_grpo", "opd", "meanflow_advantage"}
NEWER |= {"draft", "refl", "srpo", "adjoint_matching"}
ENCODED = ["a cat", "two red dogs on the left"]
DIFFUSERS = "0.42.1"  # part of the name of the folder of prompts
MEASURE = shlex.split("--images 4 --steps 2 --rewards scenes-strict balance --precision float32")
QUICK = shlex.split(
    "--evaluation.images 1 --evaluation.sampler.steps 1 --evaluation.rewards balance --precision float32"
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written beside the files that are kept."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(DATA / "run", tmp_path / "old"))


def call(*words: str | Path) -> None:
    assert main([*map(str, words)]) == 0


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def remembered(run: Path) -> dict[str, torch.Tensor]:
    """The rewards of prompts in its newest checkpoint."""
    with safe_open(max((run / "checkpoints").glob("*.safetensors")), "pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys() if key.startswith("rewards.kept.")}  # noqa: SIM118


def exported(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of an export, and what it says of itself."""
    with safe_open(folder / "pytorch_lora_weights.safetensors", "pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        return tensors, json.loads(opened.metadata()["flowward"])


def test_what_is_kept_names_no_place() -> None:
    """Of the machine that it was made on: neither a folder nor anyone's name."""
    files = [path for path in DATA.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 600_000
    for path in files:
        held = path.read_bytes()
        assert not [word for word in (b"/home/", b"/root/", b"/tmp/", b"/work/", b"/Users/") if word in held], path


def test_a_run_goes_on(old: Path) -> None:
    """And its rewards are still those of the same reward, wherever that now lives: they are compared with."""
    before, known = lines(old), remembered(old)
    assert [line["iteration"] for line in before] == [0, 1] and len(known) == 2
    call("train", "--resume", old, "--iterations", "2")
    assert lines(old)[:2] == before
    assert lines(old)[2]["iteration"] == 2 and lines(old)[2]["gradient_norm"] > 0
    after = remembered(old)
    assert len(after) == 4 and all(torch.equal(after[key], known[key]) for key in known)


def test_a_run_is_sampled_and_reported(old: Path, tmp_path: Path) -> None:
    for weights in ("policy", "ema"):
        image = tmp_path / f"{weights}.png"
        call("sample", old, "a red circle", "--weights", weights, "--steps", "1", "--count", "1", "--output", image)
        assert image.stat().st_size > 1000
    call("report", old)
    assert "ddpo" in (old / "report.html").read_text("utf-8")


def test_an_export_is_the_policy_of_its_run(old: Path) -> None:
    run, export = (
        flowward.trained.load(name, precision="float32").weights.tensors("policy") for name in (old, DATA / "export")
    )
    assert run.keys() == export.keys() and all(torch.equal(run[key], export[key]) for key in run)
    assert any(tensor.any() for key, tensor in export.items() if "lora_B" in key)


def test_a_run_is_exported_again(old: Path, tmp_path: Path) -> None:
    """The same tensors, which say the same of themselves, and in what precision they were trained."""
    call("export", old, "--output", tmp_path / "export")
    then, now = (exported(folder) for folder in (DATA / "export", tmp_path / "export"))
    assert now[0].keys() == then[0].keys() and all(torch.equal(now[0][key], then[0][key]) for key in now[0])
    assert now[1].pop("precision") == "float32" and {**now[1], "version": "0.1.0"} == then[1]


def test_an_export_is_sampled_and_measures_what_it_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers may be compared: no setting, and no reward, has another name."""
    export, now = DATA / "export", tmp_path / "now.json"
    call("sample", export, "a red circle", "--steps", "1", "--count", "1", "--output", tmp_path / "x.png",
         "--precision", "float32")  # fmt: skip  # it does not say its own
    call("eval", export, *MEASURE, "--json", now)
    made = "made from scenes by ddpo for scenes, 1 iteration, weights policy"
    assert made in capsys.readouterr().err
    call("eval", "--compare", DATA / "measured.json", now)
    (then,), (found,) = (
        json.loads(file.read_text("utf-8"))["models"].values() for file in (DATA / "measured.json", now)
    )
    for name, score in then["scores"].items():
        assert found["scores"][name]["overall"]["mean"] == pytest.approx(score["overall"]["mean"], abs=1e-3)


def test_every_algorithm_has_its_settings() -> None:
    assert {path.stem for path in CONFIGS} == flowward.ALGORITHMS.keys() - NEWER


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_settings_of_an_algorithm_mean_what_they_meant(path: Path, tiny: str, elsewhere: None, tmp_path: Path) -> None:
    """What a run that starts with them writes down is the same again."""
    call("train", "--config", path, "--model", tiny, "--output", tmp_path / "run")
    then, now = (yaml.safe_load(file.read_text("utf-8")) for file in (path, tmp_path / "run/config.yaml"))
    assert then["algorithm"].pop("name") == now["algorithm"].pop("name") == path.stem
    assert now.pop("model") == tiny and then.pop("model") == "scenes"
    assert now["run"].pop("output") and then["run"].pop("output") is None
    written, read = dict(flat(now)), dict(flat(then))
    for name, then_false in (("merge_lora", "auto"), ("compile_blocks", "never")):  # they were switches
        assert read.pop(f"loading.{name}") is False and written.pop(f"loading.{name}") == then_false
    assert {name: written[name] for name in read} == read
    usual = dict(flat(config.to_dict(config.settings_type(path.stem)())))
    for name in written.keys() - read.keys():  # settings that are newer have the value that changes nothing
        assert written[name] == usual[name]


def test_a_switch_that_has_several_values_now_means_what_it_meant() -> None:
    """`auto` would compile the blocks of a run that was begun without, and change its bits."""
    for switch, compiled in ((True, "always"), (False, "never")):
        given = {"merge_lora": True, "compile_blocks": switch}
        settings = config.from_dict({"model": "some/pipeline", "loading": given})
        assert (settings.loading.merge_lora, settings.loading.compile_blocks) == ("always", compiled)
        assert Loading(compile_blocks=switch) == Loading(compile_blocks=compiled)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["recipe.yaml", "run/config.yaml"])
def test_a_run_starts_from_a_recipe_and_from_the_settings_of_another(
    name: str, tiny: str, elsewhere: None, tmp_path: Path
) -> None:
    call("train", "--config", DATA / name, "--model", tiny, *QUICK, "--threads", "1", "--output", tmp_path / "run")
    assert lines(tmp_path / "run")[-1]["iteration"] == 1


@pytest.mark.skipif(diffusers.__version__ != DIFFUSERS, reason="prompts are encoded anew for another diffusers")
def test_encoded_prompts_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No text encoder reads them again, and nothing is added."""
    one, plain = policy("ZImagePipeline"), policy("ZImagePipeline").encode(ENCODED).tensors
    kept = Path(shutil.copytree(DATA / "prompts", tmp_path / "prompts"))
    before = sorted(kept.rglob("*"))

    def refuse(*given: Any) -> None:
        raise AssertionError("a text encoder was run")

    monkeypatch.setattr(type(one.family), "encode", refuse)
    one.prepare(ENCODED, kept)
    found = one.encode(ENCODED).tensors
    assert sorted(kept.rglob("*")) == before and len(before) == 3
    for key in plain:
        torch.testing.assert_close(found[key], plain[key], rtol=0, atol=1e-5)
