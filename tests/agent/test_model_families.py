"""Any chat model of transformers as a planner: train, save, resume, solve, export; every module by the same model."""

import json
from pathlib import Path

import pytest
import torch
from tiny_language import folder

from flowward.cli import main

REWARD = "def every_other(answers, questions, metadata):\n    return [float(k % 2) for k in range(len(answers))]\n"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    lines = [json.dumps({"question": f"what is {k} + 5", "answer": str(k + 5)}) + "\n" for k in range(6)]
    (tmp_path / "questions.jsonl").write_text("".join(lines))
    (tmp_path / "reward.py").write_text(REWARD)
    return tmp_path


def words(files: Path, model: Path, output: Path, iterations: int) -> list[str]:
    return [
        *("agent", "train", "--model", str(model), "--lora-rank", "4", "--precision", "float32"),
        *("--tools", "calculator", "--reward", f"{files}/reward.py:every_other"),
        *("--questions", f"{files}/questions.jsonl", "--evaluation.questions", f"{files}/questions.jsonl"),
        *("--evaluation.episodes", "2", "--evaluate-every", "0", "--iterations", str(iterations)),
        *("--questions-per-update", "2", "--updates-per-iteration", "1", "--group-size", "2", "--max-turns", "2"),
        *(
            "--max-tokens",
            "6",
            "--module-tokens",
            "8",
            "--learning-rate",
            "0.01",
            "--output",
            str(output),
            "--checkpoint-every",
            "1",
        ),
    ]


def metrics(run: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "speed")} for line in lines]


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_family_trains_resumes_solves_and_is_exported(
    files: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = folder(files / "model", kind, context=4096)
    whole, run = files / "whole", files / "run"
    assert main(words(files, model, whole, 2)) == 0
    assert main(words(files, model, run, 1)) == 0
    assert main(["agent", "train", "--resume", str(run), "--iterations", "2"]) == 0
    one, other = metrics(whole), metrics(run)
    assert [line["iteration"] for line in one] == [0, 1, 2]
    assert one[2] == other[2] and one[1]["gradient_norm"] == other[1]["gradient_norm"]
    assert one[0]["evaluation"]["modules"]["verifier"] == "same"  # type: ignore[index]

    capsys.readouterr()
    assert main(["agent", "solve", "what is 2 + 5", "--model", str(run), "--json"]) == 0
    solved = json.loads(capsys.readouterr().out)
    assert solved["modules"]["planner"] == str(model) and len(solved["turns"]) in (1, 2)

    assert main(["agent", "export", str(run), "--output", str(files / "planner")]) == 0
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[2, 8, 9, 3]])
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    before = base(ids).logits
    read = PeftModel.from_pretrained(base, files / "planner")(ids).logits
    from flowward.agent import trained

    language, _ = trained.load(str(run), trained.settings_of(str(run)))
    with language.weights.network("policy") as network:
        assert torch.allclose(network(ids).logits, read, atol=1e-5)
    assert (read - before).abs().max() > 1e-3
