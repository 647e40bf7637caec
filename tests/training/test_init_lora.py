"""A run that starts from a LoRA: what it records, how it goes on without the file, and what it exports."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lora_layouts import KOHYA, answer, matrices, write
from program import Refused, started

from flowward import models, prompts
from flowward.algorithms import AdvantageFlow
from flowward.algorithms.presets import PRESETS
from flowward.cli import main
from flowward.commands import train
from flowward.export.trained import load as policy_of
from flowward.models import Adapters
from flowward.process.policy import Policy
from flowward.rewards.images.jpeg import Compressible
from flowward.training import config
from flowward.training.folder import RunFolder
from flowward.training.run import Run
from flowward.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("elsewhere")
PLAIN = ("--precision", "float32", "--threads", "1")


@pytest.fixture
def lora(tiny: str, tmp_path: Path) -> Path:
    with models.load(tiny, precision="float32").weights.network("policy") as network:
        return write(tmp_path / "my.safetensors", matrices(network, "to_q", "to_v"), "lora_unet_", KOHYA, True, 1.0)


def start(tiny: str, file: Path, **more: Any) -> Policy:
    return models.load(tiny, precision="float32", adapters=Adapters(start=str(file), **more))


def weights_in(run: Path) -> dict[str, Any]:
    state = RunFolder.open(run).state("weights")
    assert state
    found: dict[str, Any] = state["weights"]
    return found


@pytest.mark.parametrize("reference", ["init", "base"])
def test_a_run_goes_on_without_the_file(tiny: str, lora: Path, reference: str) -> None:
    """To the same weights, bit by bit; the reference too comes from the checkpoint."""
    words = (*PLAIN, "--init-lora", str(lora), "--reference", reference)
    whole = started(tiny, Path("whole"), *words, "--iterations", "2")
    half, first = started(tiny, Path("half"), *words), start(tiny, lora)
    lora.unlink()
    assert main(["train", "--resume", str(half), "--iterations", "2"]) == 0
    one, other = weights_in(whole), weights_in(half)
    assert one.keys() == other.keys() and ("reference" in one) == (reference == "init")
    for name, tensors in one.items():
        assert all(torch.equal(tensor, other[name][key]) for key, tensor in tensors.items())
    if reference == "init":
        assert all(torch.equal(each, one["reference"][key]) for key, each in first.weights.tensors("policy").items())


def test_a_run_records_what_it_started_from(tiny: str, lora: Path) -> None:
    run = started(tiny, Path("run"), *PLAIN, "--init-lora", str(lora))
    told = yaml.safe_load((run / "config.yaml").read_text())
    file = start(tiny, lora).weights.start  # type: ignore[attr-defined]
    assert {key: told[key] for key in told if "lora" in key or key == "reference"} == {
        "lora_rank": 2, "lora_alpha": 1.0, "lora_targets": ["attn.to_q", "attn.to_v"], "init_lora": str(lora),
        "init_lora_sha256": file.sha256, "reference": "init",
    }  # fmt: skip
    assert main(["export", str(run)]) == 0
    said = (run / "export" / "README.md").read_text()
    assert "| init lora | my.safetensors |" in said and file.sha256 in said
    assert f"| lora alpha | {1.0} |" in said and str(lora) not in said.partition("## Reproduce")[0]


def test_an_export_is_the_whole_policy_on_the_base_and_a_start_again(tiny: str, lora: Path) -> None:
    run = started(tiny, Path("run"), *PLAIN, "--init-lora", str(lora), "--warmup", "0", "--learning-rate", "0.1")
    assert main(["export", str(run)]) == 0
    trained = answer(policy_of(str(run), precision="float32"))
    assert not torch.allclose(trained, answer(start(tiny, lora)), atol=1e-4)
    assert torch.equal(answer(policy_of(str(run / "export"), precision="float32")), trained)
    assert torch.equal(answer(start(tiny, run / "export")), trained)


def test_before_the_first_checkpoint_the_file_is_read_again(tiny: str, lora: Path, refused: Refused) -> None:
    run = started(tiny, Path("run"), *PLAIN, "--init-lora", str(lora))
    for path in RunFolder.open(run).checkpoints():
        path.unlink()
    kept = lora.read_bytes()
    lora.write_bytes(kept[:-4] + bytes(4))
    assert "is not the LoRA that was recorded: its SHA-256 is " in refused("train", "--resume", run)
    assert "is not the LoRA that was recorded" in refused("train", "--config", run / "config.yaml", "--output", "new")
    lora.write_bytes(kept)
    assert main(["train", "--resume", str(run)]) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--lora-rank 2", "rank, alpha and layers follow --init-lora LORA: leave out --lora-rank"),
        ("--lora_alpha=2", "leave out --lora-alpha"),
        ("--lora-targets to_q", "leave out --lora-targets"),
        ("--init-lora-sha256 abc", "LORA is not the LoRA that was recorded: its SHA-256 is"),
    ],
)
def test_flags_that_contradict_a_start(tiny: str, lora: Path, refused: Refused, words: str, says: str) -> None:
    said = refused("train", "--model", tiny, "--reward", "balance", "--init-lora", lora, *PLAIN, *words.split())
    assert says in said.replace(str(lora), "LORA")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--lora-alpha 4", "all weights are trained; set lora_rank (--lora-rank), or leave out lora_alpha"),
        ("--lora-rank 2 --lora-alpha 0", "the LoRA alpha must be a positive number of at most 1,000,000, not 0"),
        ("--lora-rank 0", "the LoRA rank must be between 1 and 4096, not 0"),
        ("--lora-rank 2 --lora-targets to_z", "has no linear layer 'to_z' for LoRA adapters; did you mean"),
        ("--init-lora gone.safetensors", "there is no LoRA gone.safetensors: give a .safetensors file"),
    ],
)
def test_adapters_that_cannot_be(tiny: str, refused: Refused, words: str, says: str) -> None:
    assert says in refused("train", "--model", tiny, "--reward", "balance", *PLAIN, *words.split())


def test_what_a_run_started_from_stays(tiny: str, lora: Path, refused: Refused) -> None:
    run = started(tiny, Path("run"), *PLAIN, "--init-lora", str(lora))
    for words in (("--init-lora", lora), ("--reference", "base")):
        assert f"and its reference: leave out {words[0]}" in refused("train", "--resume", run, *words)
    said = refused("train", "--resume", run, "--lora-alpha", "3", "--iterations", "2")
    assert "another model (different weights)" in said
    said = refused("train", "--resume", run, "--lora-targets", "to_q", "--iterations", "2")
    assert "another model (different layers)" in said


def test_a_run_with_its_own_scale_and_layers(tiny: str) -> None:
    run = started(
        tiny, Path("run"), *PLAIN, "--lora-rank", "2", "--lora-alpha", "2", "--lora-targets", "to_q", "ff.net.2"
    )
    assert main(["train", "--resume", str(run), "--iterations", "2"]) == 0 == main(["export", str(run)])
    found, again = (policy_of(str(name), precision="float32") for name in (run, run / "export"))
    assert found.identity["weights"] == "lora-2-alpha-2" and found.identity["layers"] == ["attn.to_q", "ff.net.2"]
    assert torch.equal(answer(found), answer(again)) and again.identity == found.identity


def test_layers_of_a_preset_become_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """YAML has lists of them, and a default must not change."""
    preset = PRESETS["flow_grpo"]["flux"]
    monkeypatch.setitem(preset.settings, "lora_targets", ["to_q", "ff.net.2"])  # type: ignore[arg-type]
    assert config.settings_type("flow_grpo", "flux")().adapters == Adapters(64, None, ("to_q", "ff.net.2"))
    settings, _ = train.chosen(shlex.split("--algorithm flow_grpo --preset flux --lora-rank none"))
    assert settings.adapters is None and settings.lora_targets is None


def test_a_run_from_python_says_how_its_adapters_were_made(tiny: str, lora: Path) -> None:
    one = start(tiny, lora, reference="base")
    trainer = Trainer(AdvantageFlow(), one, Compressible(), prompts.of("mine", ["a circle"]), Run())
    told = config.of_python(trainer.algorithm, one, trainer.reward, trainer.prompts, trainer.run)
    again = config.from_dict({key: told[key] for key in ("lora_rank", "lora_alpha", "lora_targets")})
    assert again.stored_adapters == Adapters(2, 1.0, ("attn.to_q", "attn.to_v"))
    assert (told["init_lora"], told["reference"]) == (str(lora), "base")
