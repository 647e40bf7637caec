"""Teachers: where they come from, other ranks and scales, what is refused, and runs that are resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lora_layouts import KOHYA, PEFT, answer, matrices, merge, write
from program import Refused, started
from resumed_runs import assert_same, metrics, state
from tiny_runs import equal, snapshot

import flowward
from flowward import models, prompts
from flowward.algorithms import OPD
from flowward.cli import main
from flowward.export import trained
from flowward.learning.states import States
from flowward.models import Adapters, targets
from flowward.process.policy import Policy
from flowward.process.trajectory import Trajectory
from flowward.prompts import PromptSet
from flowward.rewards.images.jpeg import Compressible
from flowward.training import config, inputs
from flowward.training import teachers as teaching
from flowward.training.run import Run
from flowward.training.teachers import NONE, Teachers, held, of, parsed

pytestmark = pytest.mark.usefixtures("elsewhere")
PLAIN = ("--precision", "float32", "--threads", "1")
TWO = PromptSet("two", ("a circle", "two rings"), ("single_object", "counting"))
OPTIONS = (
    *("--algorithm", "opd", "--algorithm.points.per-image", "2", "--prompts", "two.jsonl", "--warmup", "0"),
    *("--updates-per-iteration", "1"),
)


@pytest.fixture(autouse=True)
def two(elsewhere: Any) -> Iterator[None]:
    """The prompts of TWO in a file."""
    rows = zip(TWO.texts, TWO.categories, strict=True)
    Path("two.jsonl").write_text("".join(json.dumps({"prompt": a, "category": b}) + "\n" for a, b in rows))
    yield


def expert(tiny: str, name: str, *words: str) -> str:
    """A run of one iteration with a high learning rate."""
    return str(started(tiny, Path(name), *PLAIN, "--warmup", "0", "--learning-rate", "0.01", *words))


def taught(policy: Policy, name: str | Path) -> Policy:
    """The policy, which holds this teacher for both categories."""
    held(policy, of({"single_object": name, "counting": name}), OPD(), TWO)
    return policy


def said(policy: Policy, name: str | Path) -> torch.Tensor:
    return answer(policy, teaching.weights_of(str(Path(name).absolute())))


# Where they come from


@pytest.mark.parametrize("words", [(), ("--lora-rank", "2"), ("--lora-rank", "2", "--lora-alpha", "1")])
def test_a_teacher_answers_as_its_run(tiny: str, words: tuple[str, ...]) -> None:
    """Also one of another rank, scale and choice of layers."""
    run = expert(tiny, "run", *words)
    own = answer(trained.load(run, precision="float32"))
    student = models.load(tiny, precision="float32", adapters=Adapters(4, 5.0) if words else None)
    before = answer(student)
    torch.testing.assert_close(said(taught(student, run), run), own, rtol=0, atol=1e-5)
    assert torch.equal(answer(student), before) and not torch.allclose(before, own, atol=1e-3)


def test_a_teacher_answers_as_its_export(tiny: str) -> None:
    full, lora = expert(tiny, "full"), expert(tiny, "lora", "--lora-rank", "2")
    for run, rank in ((full, None), (lora, 3)):
        assert main(["export", run]) == 0
        student = taught(models.load(tiny, rank, "float32"), f"{run}/export")
        own = answer(trained.load(run, precision="float32"))
        torch.testing.assert_close(said(student, f"{run}/export"), own, rtol=0, atol=1e-5)


def test_a_teacher_is_a_lora_of_another_program(tiny: str, tmp_path: Path) -> None:
    """W + alpha / rank B A, on some of the student's layers."""
    with models.load(tiny, precision="float32").weights.network("policy") as network:
        lora = matrices(network, "to_q", "to_v")
        file = write(tmp_path / "my.safetensors", lora, "lora_unet_", KOHYA, True, 1.0)
        merge(network, lora, 0.5)
    merged = models.load(tiny, precision="float32")
    with merged.weights.network("policy") as network:
        merge(network, lora, 0.5)
    student = taught(models.load(tiny, 8, "float32"), file)
    torch.testing.assert_close(said(student, file), answer(merged), rtol=0, atol=1e-5)


def test_layers_with_adapters_keep_their_names(tiny: str) -> None:
    plain, adapted = (models.load(tiny, rank, "float32").weights for rank in (None, 2))
    with plain.network("policy") as one, adapted.network("policy") as other:
        assert list(targets.linear(one)) == list(targets.linear(other))


def test_one_run_can_teach_several_categories(tiny: str) -> None:
    run = expert(tiny, "run")
    student = models.load(tiny, precision="float32")
    calls = []
    hold = student.weights.hold
    student.weights.hold = lambda *given: (calls.append(given[0]), hold(*given))  # type: ignore
    found = held(student, of({"single_object": run, "counting": run}), OPD(), TWO)
    assert calls == [f"teacher {Path(run).absolute()}"]
    assert found.identities["counting"] == found.identities["single_object"]
    assert found.identities["counting"]["iteration"] == 1


# What is refused


def refusal(tiny: str, name: str | Path, rank: int | None = None, **more: Any) -> str:
    student = models.load(tiny, rank, "float32", **more)
    with pytest.raises(ValueError) as error:
        taught(student, name)
    return str(error.value)


def test_teachers_that_do_not_fit(tiny: str, tmp_path: Path) -> None:
    """The two kinds of weights, too large a rank, a layer without adapter."""
    full, lora = expert(tiny, "full"), expert(tiny, "lora", "--lora-rank", "4")
    assert refusal(tiny, lora).endswith("is a LoRA, and all weights of the model are trained: train adapters too "
                                        "(--lora-rank 4)")  # fmt: skip
    assert "so adapters cannot hold it: train all weights (--lora-rank none)" in refusal(tiny, full, 4)
    assert refusal(tiny, lora, 2).endswith("its rank is 4, and that of the trained model 2: --lora-rank 4")
    narrow = {"adapters": Adapters(4, targets=("to_q",))}
    assert "and the trained model has none there: --lora-targets" in refusal(tiny, lora, **narrow)
    assert refusal(tiny, "nothing").startswith(
        "the teacher of 'single_object' cannot be used: there is no LoRA nothing"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no LoRA" in refusal(tiny, empty, 2)


def test_a_palette_is_no_teacher(tiny: str) -> None:
    """It is another network for every mixture; neither as a run nor as an export, whatever the rank."""
    words = ("--reward", "jpeg-compressibility", "balance", "--mix", "advantages", "--palette", "--lora-rank", "2")
    run = expert(tiny, "palette", *words)
    assert main(["export", run, "--output", "exported"]) == 0
    for name in (run, "exported"):
        for rank in (None, 2, 4):
            assert "is a palette, which is another model for every mixture: name a run" in refusal(tiny, name, rank)


def test_a_teacher_of_another_base_is_refused(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the fingerprint of the model that it was trained from, also where all shapes are equal."""
    full, lora = expert(tiny, "full"), expert(tiny, "lora", "--lora-rank", "2")
    assert main(["export", lora]) == 0 and main(["export", full]) == 0
    for name, rank in ((full, None), (lora, 2), (f"{lora}/export", 2), (f"{full}/export", None)):
        student = models.load(tiny, rank, "float32")
        student.identity = {**student.identity, "base": "0123456789abcdef"}
        with pytest.raises(ValueError, match=r"was trained from another base model than .* \(different base\)"):
            taught(student, name)


def test_a_damaged_lora_is_refused(tiny: str, tmp_path: Path) -> None:
    with models.load(tiny, precision="float32").weights.network("policy") as network:
        lora = matrices(network, "to_q")
    narrow = {name: (a[:, :-1], b) for name, (a, b) in lora.items()}
    file = write(tmp_path / "other.safetensors", narrow, "transformer.", PEFT)
    assert "was made for another model: layer" in refusal(tiny, file, 4)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            (),
            "learns from teachers: name one for each category of prompts, e.g. --teachers single_object=",
        ),
        (("--teachers", "single_object=RUN"), "prompts of the category 'counting' have no teacher: add counting=RUN"),
        (("--teachers", "couting=RUN"), "teachers: unknown prompt category 'couting'; did you mean 'counting'?"),
        (("--teachers", "RUN"), "'RUN' is not a teacher; write category=runs/NAME, e.g. RUN=runs/NAME"),
        (("--teachers", "counting=a", "counting=b"), "the category 'counting' has two values, a and b: leave out one"),
        (
            ("--teachers", "counting=RUN", "--teacher-guidance", "position=2"),
            "there is no teacher of 'position' that could",
        ),
        (("--teachers", "counting=RUN", "--teacher-guidance", "counting=x"), "must be a number, not 'x'"),
        (
            ("--teachers", "counting=RUN", "--algorithm.points.where", "renoise"),
            "takes visited|renoised, not 'renoise'",
        ),
        (
            ("--teachers", "counting=no", "single_object=no", "--teacher-guidance", "counting=nan"),
            "the guidance of the teacher of 'counting' must be a finite number, not nan",
        ),
        (
            ("--teachers", "counting=no", "single_object=no"),
            "the teacher of 'counting' cannot be used: there is no LoRA no",
        ),
    ],
)
def test_words_that_are_refused(tiny: str, refused: Refused, words: tuple[str, ...], says: str) -> None:
    assert says in refused("train", "--model", tiny, *PLAIN, "--reward", "balance", *OPTIONS, *words, "--output", "out")
    assert not Path("out").exists()


def test_teachers_of_an_algorithm_without(tiny: str, refused: Refused) -> None:
    words = ("train", "--model", tiny, *PLAIN, "--reward", "balance", "--teachers", "counting=a", "--output", "out")
    assert "this algorithm has no teachers: choose --algorithm opd, or leave out --teachers" in refused(*words)


def test_a_category_that_is_never_drawn_needs_no_teacher() -> None:
    teachers = of({"counting": "a"})
    with pytest.raises(ValueError, match="'single_object' have no teacher"):
        teachers.refuse(OPD(), TWO)
    teachers.refuse(OPD(), TWO.weighted(["single_object=0"]))
    NONE.refuse(flowward.algorithms.AdvantageFlow(), TWO)


def test_words_to_teachers() -> None:
    found = parsed(("a=x=1", "b=y"), ("b=4.5",))
    assert found == Teachers({"a": "x=1", "b": "y"}, {"b": 4.5})
    assert found.described == {"teachers": ["a=x=1", "b=y"], "teacher_guidance": ["b=4.5"]}


# Runs


def words_of(run: str) -> tuple[str, ...]:
    return (
        *PLAIN,
        *OPTIONS,
        "--teachers",
        f"single_object={run}",
        f"counting={run}",
        "--teacher-guidance",
        "counting=2",
    )


def test_a_resumed_run_is_the_whole_one_and_needs_the_same_teachers(tiny: str, refused: Refused) -> None:
    run = expert(tiny, "run")
    whole = started(tiny, Path("whole"), *words_of(run), "--iterations", "2")
    half = started(tiny, Path("half"), *words_of(run))
    told = yaml.safe_load((half / "config.yaml").read_text())
    assert told["teachers"] == [f"{name}={Path(run).absolute()}" for name in ("single_object", "counting")]
    known = json.loads((half / inputs.INPUTS).read_text())["inputs"]["teacher counting"]
    assert known["named"] == str(Path(run).absolute()) and len(known["identity"]["sha256"]) == 64
    assert main(["train", "--resume", str(half), "--iterations", "2"]) == 0
    assert_same(state(whole), state(half))
    assert metrics(whole)[-1] == metrics(half)[-1]
    assert set(state(whole)["weights"]) == {"policy", "ema"}
    assert main(["train", "--resume", run, "--iterations", "2"]) == 0  # the teacher learns on
    says = refused("train", "--resume", half, "--iterations", "3")
    assert "iteration of teacher single_object (1 before, 2 now), sha256 of teacher single_object" in says
    assert main(["train", "--resume", str(half), "--iterations", "3", "--changed-inputs"]) == 0


def test_from_python_as_from_the_command_line(tiny: str) -> None:
    """`flowward.train` and `fit` take a mapping; the run folder names the teachers, so it can be resumed."""
    run, how = expert(tiny, "run"), OPD(rollout=Trajectory(2), points=States(per_image=2))
    loop = Run(images_per_update=8, group_size=4, microbatch=8, iterations=1, warmup=0)
    teachers = {"single_object": run, "counting": Path(run)}
    one, other = models.load(tiny, precision="float32"), models.load(tiny, precision="float32")
    steps = list(flowward.train(how, one, Compressible(), TWO, loop, teachers=teachers))
    assert steps[-1].metrics["teacher_distance"] > 0
    fitted = flowward.fit(how, other, Compressible(), TWO, loop, teachers=teachers, evaluation=False, output="fitted",
                          progress=False)  # fmt: skip
    assert equal(snapshot(one), snapshot(fitted.policy))
    found = config.from_dict(
        yaml.safe_load(Path("fitted/config.yaml").read_text()) | {"reward": ["balance"], "prompts": "x"}
    )
    assert found.teachers == tuple(f"{name}={Path(run).absolute()}" for name in teachers)
    with pytest.raises(ValueError, match="learns from teachers"):
        next(flowward.train(how, one, Compressible(), prompts.of("mine", ("a circle",)), loop))
