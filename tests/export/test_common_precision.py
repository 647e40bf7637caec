"""One call measures all models in one precision, and what was trained is loaded as it was trained, on any processor."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from program import started
from tiny_policies import policy

from flowward import models
from flowward.cli import main
from flowward.commands import eval as evaluation
from flowward.export import card, exported, trained
from flowward.export import weights as export
from flowward.system import precision
from flowward.training.folder import RunFolder

EVAL = shlex.split("--images 6 --steps 1 --rewards balance")
OTHER = {"bf16": "float32", "float32": "bf16"}


def run_of(folder: Path, precision: str | None) -> str:
    """Enough of a run to be asked for its precision."""
    folder.mkdir()
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"model": "scenes", **({"precision": precision} if precision else {})})
    )
    return str(folder)


def export_of(tiny: str, folder: Path, **about: str) -> str:
    export.merged(models.load(tiny, precision="float32"), folder, {"base_model": tiny, **about})
    return str(folder)


def measured(file: Path) -> dict[str, str]:
    return {name: each["precision"] for name, each in json.loads(file.read_text())["models"].items()}


@pytest.fixture(params=["bf16", "float32"])
def own(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is trained here; the processor has it that the other one is better."""
    monkeypatch.setenv(precision.VARIABLE, OTHER[request.param])
    return str(request.param)


@pytest.fixture
def trained_run(own: str, tiny: str, elsewhere: None) -> str:
    return str(started(tiny, Path("run"), "--precision", own, "--lora-rank", "2"))


def test_the_rule(tiny: str, tmp_path: Path) -> None:
    full, half = run_of(tmp_path / "full", "float32"), run_of(tmp_path / "half", "bf16")
    old, older = run_of(tmp_path / "old", "auto"), run_of(tmp_path / "older", None)
    made, nameless = export_of(tiny, tmp_path / "made", precision="bf16"), export_of(tiny, tmp_path / "nameless")
    silent = ["scenes", tiny, old, older, nameless, "owner/name"]
    assert trained.common_precision([]) == trained.common_precision(silent) == "auto"
    assert trained.common_precision([*silent, full]) == trained.common_precision([full, *silent]) == "float32"
    assert trained.common_precision([half, made, tiny]) == "bf16"
    for names, first in (([tiny, full, made, half], f"{full} .*float32 and {made} .*bf16"), ([half, full], "bf16 and")):
        with pytest.raises(ValueError, match=rf"{first}.* choose it with --precision$"):
            trained.common_precision(names)


def test_a_run_its_export_and_its_base_are_measured_alike(trained_run: str, own: str, tiny: str) -> None:
    """In whatever order, and in the precision that is asked for, if one is."""
    assert main(["export", trained_run, "--merged"]) == 0
    names = [tiny, trained_run, f"{trained_run}/export", f"{trained_run}/export/transformer"]
    found = Path("found.json")
    for order in (names, names[::-1]):
        assert main(["eval", *order, *EVAL, "--json", str(found), "--overwrite"]) == 0
        assert set(measured(found).values()) == {own} and len(measured(found)) == 4
    assert main(["eval", *names, *EVAL, "--precision", OTHER[own], "--json", str(found), "--overwrite"]) == 0
    assert set(measured(found).values()) == {OTHER[own]}
    assert (
        main(["eval", tiny, *EVAL, "--json", str(found), "--overwrite"]) == 0
    )  # with nobody to say, it is the processor
    assert set(measured(found).values()) == {OTHER[own]}


def test_runs_that_disagree_are_refused_before_anything_is_loaded(
    tiny: str, elsewhere: None, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bf16", "float32"):
        started(tiny, Path(name), "--precision", name)
    with monkeypatch.context() as patch:
        for name in ("policy_of", "load_rewards"):
            patch.setattr(evaluation, name, lambda *_: pytest.fail("something was loaded"))
        assert refused("eval", "bf16", tiny, "float32", *EVAL) == (
            "bf16 was trained in bf16 and float32 was trained in float32; one call measures in one precision: "
            "choose it with --precision"
        )
    assert main(["eval", "bf16", "float32", *EVAL, "--precision", "bf16"]) == 0


def test_what_auto_was_for_the_first_model_it_is_for_all(
    tiny: str, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline may lie on a GPU, and the built-in model beside it on the CPU."""
    answers: Iterator[str] = iter(["bf16", "float32"])
    monkeypatch.setattr(precision, "native", lambda: next(answers))
    assert main(["eval", tiny, f"{tiny}/", *EVAL, "--json", "found.json"]) == 0
    assert list(measured(Path("found.json")).values()) == ["bf16", "bf16"]


def test_files_of_two_precisions_are_not_compared(tiny: str, elsewhere: None, refused: Any) -> None:
    """They may come from two machines."""
    for name in ("bf16", "float32"):
        assert main(["eval", tiny, *EVAL, "--precision", name, "--json", f"{name}.json"]) == 0
    said = refused("eval", "--compare", "bf16.json", "float32.json")
    assert said.endswith("because of different settings: precision (bf16 and float32)")


def test_a_run_and_its_export_are_loaded_as_they_were_trained(trained_run: str, own: str, tiny: str) -> None:
    assert main(["export", trained_run, "--merged"]) == 0
    names = [trained_run, f"{trained_run}/export", f"{trained_run}/export/transformer"]
    assert [trained.load(name).precision for name in names] == [own] * 3
    assert {trained.load(name, precision=OTHER[own]).precision for name in [*names, tiny]} == {OTHER[own]}  # type: ignore[arg-type]
    assert trained.load(tiny).precision == OTHER[own]
    assert RunFolder.open(Path(trained_run)).origin()["precision"] == own
    assert [exported.facts(name)["precision"] for name in names[1:]] == [own] * 2
    assert f"| precision | {own} |" in Path(trained_run, "export", "README.md").read_text("utf-8")


def test_pictures_are_drawn_in_it(trained_run: str, own: str, tiny: str) -> None:
    def drawn(name: str, *words: str) -> bytes:
        how = ["--count", "1", "--steps", "2", "--output", "a.png", "--overwrite", *words]
        assert main(["sample", name, "a red circle", *how]) == 0
        return Path("a.png").read_bytes()

    assert drawn(trained_run) == drawn(trained_run, "--precision", own) != drawn(trained_run, "--precision", OTHER[own])
    assert drawn(tiny) == drawn(tiny, "--precision", OTHER[own])


def test_a_run_of_an_older_version_says_no_more_than_it_knows(trained_run: str, own: str) -> None:
    folder = RunFolder.open(Path(trained_run))
    folder.write_config({**folder.config(), "precision": "auto"})
    assert "precision" not in folder.origin() and trained.load(trained_run).precision == OTHER[own]


@pytest.mark.parametrize(("name", "loads"), [("bf16", 2), ("float32", 0), (None, 0)])
@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "transformer"])
def test_a_card_loads_what_was_trained_in_bf16_in_bf16(name: str | None, loads: int, file: str, tmp_path: Path) -> None:
    """Diffusers takes float32 if it is not told, twice the memory."""
    about = {"base_model": "owner/name", "steps": 4, "guidance": 1.0, **({"precision": name} if name else {})}
    (tmp_path / "transformer_2").mkdir()
    said = card._use(tmp_path, policy("StableDiffusion3Pipeline"), about, [file])
    code = said.removeprefix("```python\n").removesuffix("```\n")
    compile(code, "card", "exec")
    assert code.startswith("import torch\n") == bool(loads)
    expected = loads and (1 if file.endswith("safetensors") else 3)
    assert code.count("dtype=torch.bfloat16") == expected


@pytest.mark.parametrize("name", ["bf16", "float32"])
def test_bench_names_its_precision(
    name: str, tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flowward.models.scenes.SHIPPED", Path(tiny))
    words = ["bench", "overhead", "--repeats", "1", "--images-per-update", "24", "--precision", name]
    assert main(words) == 0
    assert any(line.split() == ["precision", name] for line in capsys.readouterr().out.splitlines())
