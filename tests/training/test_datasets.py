"""Images from files: pairs take the place of samples, exemplars of some; bad files are refused in a sentence."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flowward import cli, models, prompts
from flowward.algorithms import DPO, DiffusionNFT, FlowAWR
from flowward.commands import train
from flowward.learning.points import Renoise, RenoisePairs
from flowward.learning.snapshots import Decay
from flowward.process.policy import Condition
from flowward.process.rollout import Sampler
from flowward.training.datasets import Exemplars, Preferences, picture
from flowward.training.folder import RunFolder
from flowward.training.metrics import describe
from flowward.training.run import Run
from flowward.training.trainer import Trainer

TEXTS = ("a circle", "two rings")


def paint(path: Path, brightness: float, size: int = 32) -> str:
    Image.fromarray(np.full((size, size, 3), round(255 * brightness), np.uint8)).save(path)
    return path.name


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Bright is preferred to dark, for two prompts, one of which has two pairs."""
    rows = [
        {"prompt": text, "chosen": paint(tmp_path / f"c{n}.png", 0.9), "rejected": paint(tmp_path / f"r{n}.png", 0.2)}
        for n, text in enumerate([*TEXTS, TEXTS[0]])
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


@pytest.fixture
def exemplars(tmp_path: Path) -> Path:
    rows = [{"prompt": TEXTS[0], "image": paint(tmp_path / f"e{n}.png", 0.1 * n)} for n in range(3)]
    path = tmp_path / "exemplars.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def offline(tiny: str, algorithm: object, pairs: Path, **changes: object) -> Trainer:
    given, policy = Preferences.load(pairs), models.load(tiny, None, "float32")
    numbers = {"images_per_update": 4, "group_size": 2, "microbatch": 8, "learning_rate": 1e-3, "warmup": 0}
    run = Run(**{**numbers, **changes})  # type: ignore[arg-type]
    collect = given.collector(policy, 0)
    return Trainer(algorithm, policy, given.reward, given.prompts, run, collect)  # type: ignore[arg-type]


def online(tiny: str, **changes: Any) -> Trainer:
    """Two groups of four samples to put exemplars into. Nothing here asks for its reward."""
    how = FlowAWR(**{"rollout": Sampler(2), "points": Renoise(1), **changes})
    run = Run(images_per_update=8, group_size=4, microbatch=8)
    policy = models.load(tiny, None, "float32")
    return Trainer(how, policy, lambda *_: torch.zeros(8), prompts.of("mine", TEXTS), run)


@pytest.mark.parametrize(
    "algorithm", [DPO(points=RenoisePairs(2)), DiffusionNFT(points=Renoise(4), old=Decay(0.0))], ids=str
)
def test_pairs_teach_the_chosen_image(tiny: str, pairs: Path, algorithm: object) -> None:
    """The policy comes to predict bright pictures better than dark ones, as it did not before."""
    one = offline(tiny, algorithm, pairs)
    rollout, images = one.sample(list(TEXTS), 0)
    assert images[::2].mean() > 0.8 > 0.3 > images[1::2].mean()
    policy, t = one.policy, torch.full((4,), 0.5)
    eps = torch.randn(rollout.x0.shape, generator=torch.Generator().manual_seed(0))[:1].expand_as(rollout.x0)

    def advantage() -> float:
        with torch.no_grad():
            v = policy.velocity(0.5 * rollout.x0 + 0.5 * eps, t, rollout.condition[rollout.group])
        error = (v - (eps - rollout.x0)).square().flatten(1).mean(1)
        return (error[1::2] - error[::2]).mean().item()

    before = advantage()
    for _ in range(16):
        metrics = one.step().metrics
    assert metrics["reward"] == 0.5
    assert advantage() > before + 0.002


def test_a_prompt_with_several_pairs_uses_them_all(pairs: Path, tiny: str) -> None:
    collect = Preferences.load(pairs).collector(models.load(tiny, None, "float32"), 0)
    assert Preferences.load(pairs).prompts.texts == TEXTS
    paint(pairs.parent / "c2.png", 0.7)
    means = {
        round(images[0].mean().item(), 1)
        for index in range(20)
        for _, images in collect([TEXTS[0]], Condition({}), index, torch.arange(2))
    }
    assert means == {0.9, 0.7}


@pytest.mark.processor
def test_train_on_a_file_of_pairs(tiny: str, pairs: Path, tmp_path: Path) -> None:
    words = f"train --algorithm dpo --model {tiny!r} --preferences {str(pairs)!r} --iterations 2"
    words += f" --output {str(tmp_path / 'run')!r} --group-size 2 --images-per-update 4"
    words += " --algorithm.points.draws 2 --evaluation.images 6 --microbatch 4"
    assert cli.main(shlex.split(words)) == 0
    assert len(RunFolder.open(tmp_path / "run").lines()) == 3


@pytest.fixture
def refused(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], str]:
    """Start a run, which must be refused before it has a folder; returns the sentence."""
    monkeypatch.setattr(train.RunFolder, "create", lambda *_: pytest.fail("the run has begun"))

    def run(words: str) -> str:
        assert cli.main(shlex.split(f"train --model {tiny!r} --output {str(tmp_path / 'run')!r} {words}")) == 2
        said = capsys.readouterr().err
        assert said.startswith("flowward: ") and said.count("\n") == 1
        return said

    return run


@pytest.mark.processor
def test_pairs_need_groups_of_two(refused: Callable[[str], str], pairs: Path) -> None:
    assert "preferences are pairs: use --group-size 2, not 12" in refused(f"--preferences {str(pairs)!r}")


@pytest.mark.processor
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--algorithm fdfo", "trains on visited states, and images from files have none"),
        ("--algorithm flow_grpo", "trains on random steps, but this rollout has no random steps"),
        ("--algorithm dpo --reward scenes", "bring prompts and a reward of their own: leave out --reward"),
        ("--algorithm dpo --prompts=scenes", "bring prompts and a reward of their own: leave out --prompts"),
    ],
)
def test_what_pairs_cannot_be_used_with(refused: Callable[[str], str], pairs: Path, words: str, said: str) -> None:
    assert said in refused(f"{words} --group-size 2 --preferences {str(pairs)!r}")


def test_a_model_of_videos_takes_no_files(tiny: str, pairs: Path, exemplars: Path) -> None:
    one: Any = models.load(tiny, None, "float32")
    one.latent_shape = (4, 2, 4, 4)
    for start in (Preferences.load(pairs).collector, Exemplars.load(exemplars).grafter):
        with pytest.raises(ValueError, match="generates videos, but preferences and exemplars need a model for images"):
            start(one, 0)


def test_a_config_may_not_name_a_reward_beside_pairs(refused: Callable[[str], str], pairs: Path) -> None:
    file = pairs.parent / "mine.yaml"
    file.write_text(f"algorithm: {{name: dpo}}\npreferences: {pairs}\nrun: {{group_size: 2}}\nreward: [balance]\n")
    assert "leave out --reward" in refused(f"--config {str(file)!r}")


@pytest.mark.processor
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "exemplars work only with --algorithm flowawr: choose it, or leave them out"),
        ("--algorithm dpo", "exemplars work only with --algorithm flowawr"),
        ("--algorithm flowawr --exemplars-per-group 11", "11 exemplars leave fewer than 2 samples in groups of 12"),
        ("--algorithm flowawr --exemplar-share 2", "a share in (0, 1] and at least 1 per group, not 2.0 and 4"),
    ],
)
def test_what_exemplars_cannot_be_used_with(
    refused: Callable[[str], str], exemplars: Path, words: str, said: str
) -> None:
    assert said in refused(f"{words} --exemplars {str(exemplars)!r}")


@pytest.mark.processor
def test_exemplars_of_prompts_that_never_come(refused: Callable[[str], str], exemplars: Path) -> None:
    with exemplars.open("a") as file:
        file.write('\n{"prompt": "a zebra", "image": "e0.png"}')
    said = refused(f"--algorithm flowawr --exemplars {str(exemplars)!r} --prompts scenes")
    assert "1 of 2 prompts with exemplars are not training prompts, for example 'a zebra'" in said


@pytest.mark.processor
def test_train_with_exemplars(tiny: str, exemplars: Path, tmp_path: Path) -> None:
    words = f"train --algorithm flowawr --model {tiny!r} --exemplars {str(exemplars)!r} --iterations 1"
    words += f" --output {str(tmp_path / 'run')!r} --group-size 4 --images-per-update 8 --microbatch 8"
    words += " --exemplars-per-group 2 --evaluation.images 6 --reward balance"
    assert cli.main(shlex.split(words)) == 0


def test_exemplars_take_the_place_of_samples(tiny: str, exemplars: Path) -> None:
    """In the groups that have some: encoded, with advantage 1, and no part in the group's mean."""
    one, file = online(tiny), Exemplars.load(exemplars, share=1.0, count=2)
    reward = torch.tensor([0.0, 1.0, 9.0, 9.0, 0.0, 1.0, 0.0, 1.0])
    drawn, _ = one.sample(list(TEXTS), 0)
    grafted = file.graft(one.policy, drawn, list(TEXTS), (0, 0))
    assert grafted.exemplar is not None
    assert grafted.exemplar.tolist() == [False, False, True, True] + [False] * 4
    assert torch.equal(grafted.x0[~grafted.exemplar], drawn.x0[~grafted.exemplar])
    shown = one.policy.encode_images(torch.stack([picture(name, (32, 32)) for name in file.images[TEXTS[0]]]))
    assert torch.cdist(grafted.x0[2:4].flatten(1), shown.flatten(1)).min(1).values.max() < 1e-4
    done = one.credit(grafted, reward[:, None], list(TEXTS))
    assert done.advantage[2:4].tolist() == [1, 1]
    own = torch.tensor([0, 1, 4, 5, 6, 7])
    assert torch.equal(done.advantage[own], one.algorithm.credit(reward[own], drawn.group[own]))


def test_the_figures_of_a_rollout_leave_exemplars_out(tiny: str, exemplars: Path) -> None:
    """However good they look: the policy has not drawn them, and a group without variance stays one."""
    one, file = online(tiny), Exemplars.load(exemplars, share=1.0, count=2)
    drawn, _ = one.sample(list(TEXTS), 0)
    grafted = file.graft(one.policy, drawn, list(TEXTS), (0, 0))
    reward = torch.tensor([0.5, 0.5, 9.0, 9.0, 0.0, 1.0, 0.0, 1.0])
    found = describe(one.credit(grafted, reward[:, None], list(TEXTS)), list(TEXTS))
    assert found["reward"] == 0.5 and found["zero_variance"] == pytest.approx(2 / 6)
    own = torch.tensor([0, 1, 4, 5, 6, 7])
    assert found["latent_rms"] == pytest.approx(drawn.x0[own].square().mean().sqrt().item())


def test_exemplars_are_not_held_to_the_reference(tiny: str, exemplars: Path) -> None:
    one, file = online(tiny, k_ref=5.0), Exemplars.load(exemplars, share=1.0, count=2)
    rollout = one.credit(
        file.graft(one.policy, one.sample(list(TEXTS), 0)[0], list(TEXTS), (0, 0)), torch.rand(8, 1), list(TEXTS)
    )
    points = one.algorithm.points(rollout, ("points", 0, 0)).take(torch.arange(8))
    far = points.knowing({"old": points.x0, "reference": points.x0 + 3, "policy": points.x0})
    near = replace(far, known={**far.known, "reference": points.x0})
    gap = one.algorithm.loss(one.models, far)[0] - one.algorithm.loss(one.models, near)[0]
    assert gap[points.exemplar].tolist() == [0, 0]
    assert (gap[~points.exemplar] > 40).all()


def test_grafting_is_a_function_of_seed_and_iteration(tiny: str, exemplars: Path) -> None:
    one, file = online(tiny, rollout=Sampler(1)), Exemplars.load(exemplars, share=0.5, count=2)
    drawn, _ = one.sample(list(TEXTS), 0)
    grafted = [[file.graft(one.policy, drawn, list(TEXTS), (0, k)) for k in range(20)] for _ in "ab"]
    found = [[each.exemplar.any().item() for each in row] for row in grafted]  # type: ignore[union-attr]
    assert found[0] == found[1]
    assert 3 < sum(found[0]) < 17


def test_exemplars_leave_two_samples(tiny: str, exemplars: Path) -> None:
    one = online(tiny, rollout=Sampler(1))
    with pytest.raises(ValueError, match="3 exemplars leave fewer than 2 samples in groups of 4"):
        Exemplars.load(exemplars, 1.0, 3).graft(one.policy, one.sample(list(TEXTS), 0)[0], list(TEXTS), (0, 0))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "is empty"),
        ("{", "line 1: not JSON"),
        (
            '{"prompt": "a circle", "chosen": "x.png"}',
            "with the text fields prompt, chosen, rejected",
        ),
        ('["a circle"]', "line 1: not a JSON object"),
        (
            '{"prompt": " ", "chosen": "no.png", "rejected": "no.png"}',
            "line 1: 'prompt' must be text, not ' '",
        ),
        (
            '{"prompt": "a \\ud83d", "chosen": "no.png", "rejected": "no.png"}',
            "line 1: 'prompt' has .*half of a character",
        ),
        (
            '{"prompt": "a circle", "chosen": "no.png", "rejected": "no.png", "source": 7}',
            "line 1: 'source' must be the path of an image",
        ),
        (
            '{"prompt": "a circle", "chosen": "no.png", "rejected": "no.png"}',
            "names an image that does not exist: no.png",
        ),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=said):
        Preferences.load(path)


def test_pairs_and_exemplars_are_read_as_prompt_files_are(tmp_path: Path) -> None:
    """Other separators of lines are part of a text, marks and white space around it are not."""
    paint(tmp_path / "a.png", 0.5)
    prompt = "a red\u2028circle\u0085here"
    row = {"prompt": f" {prompt} ", "image": "a.png", "chosen": "a.png", "rejected": "a.png"}
    file = tmp_path / "rows.jsonl"
    file.write_text("\ufeff\n \u2028 \n" + json.dumps(row, ensure_ascii=False) + "\r\n\n", "utf-8")
    (tmp_path / "text.txt").write_text(f"\n{prompt}\n", "utf-8")
    read = [prompts.load(str(file)), Preferences.load(file).prompts, Exemplars.load(file).images]
    read.append(prompts.load(str(tmp_path / "text.txt")))
    assert [list(each) for each in read] == [[prompt]] * 4


def test_a_missing_file_and_a_broken_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        Preferences.load(tmp_path / "no.jsonl")
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(ValueError, match="not an image that can be read"):
        picture(str(tmp_path / "x.png"), (32, 32))


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "gif"])
@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_images_that_were_cut_short_are_found_before_the_run(tmp_path: Path, kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"x.{kind}")
    file = tmp_path / "exemplars.jsonl"
    file.write_text(json.dumps({"prompt": "a circle", "image": f"x.{kind}"}))
    Exemplars.load(file)
    whole = (tmp_path / f"x.{kind}").read_bytes()
    (tmp_path / f"x.{kind}").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=f"x.{kind} is not an image that can be read"):
        Exemplars.load(file)


def test_a_file_may_begin_with_the_mark_that_windows_writes(exemplars: Path) -> None:
    exemplars.write_bytes(b"\xef\xbb\xbf" + exemplars.read_bytes())
    assert list(Exemplars.load(exemplars).images) == [TEXTS[0]]


def test_pictures_are_fitted(tmp_path: Path) -> None:
    paint(tmp_path / "large.png", 0.5, size=80)
    x = picture(str(tmp_path / "large.png"), (32, 48))
    assert x.shape == (3, 32, 48)
    assert x.mean().item() == pytest.approx(0.5, abs=0.01)


def test_encoding_undoes_decoding() -> None:
    """On the built-in model, for pictures that it can draw, up to the autoencoder's loss."""
    policy = models.load("scenes", precision="float32")
    z = policy.encode_images(torch.full((2, 3, 32, 32), 0.88))
    assert z.shape == (2, *policy.latent_shape)
    assert (policy.decode(z) - 0.88).abs().mean() < 0.03
