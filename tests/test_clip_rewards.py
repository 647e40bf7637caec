"""Rewards of the CLIP kind, on tiny models of the same classes: nothing is downloaded."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_clip
import tiny_open_clip
import torch
import transformers
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flowward import rewards
from flowward.models import hub
from flowward.rewards import RewardError
from flowward.rewards.aesthetic import Aesthetic
from flowward.rewards.clip import CLIPScore, PickScore
from flowward.rewards.diversity import Diversity, distances
from flowward.rewards.hps import HPSv2, converted
from flowward.rewards.network import Embedded, Preprocess, Resident, linears

PROMPTS = ["a cat", "two birds", "a cat", "a dog under a tree that is far longer than the text model reads", "sea"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_clip.save(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_clip.save_head(tmp_path_factory.mktemp("head") / "head.pth")


@pytest.fixture(scope="module")
def images() -> Tensor:
    """On the 8-bit grid, so that PIL sees the same; smooth, so that it matters little where PIL rounds."""
    coarse = torch.rand(len(PROMPTS), 3, 6, 8, generator=torch.Generator().manual_seed(0))
    return (nn.functional.interpolate(coarse, (40, 56), mode="bicubic").clamp(0, 1) * 255).round() / 255


def made(name: str, folder: str, head: str, **more: Any) -> Any:
    options: dict[str, Any] = {"pickscore": {"processor": folder}, "aesthetic": {"head": head}}.get(name, {})
    options = {"model": folder, **options, **more}
    return rewards.load([name], [f"{name}.{key}={value}" for key, value in options.items()])


def pil(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images]


def unit(features: Any) -> Tensor:
    return nn.functional.normalize(getattr(features, "pooler_output", features), dim=-1)


# --- scores


@torch.no_grad()
def by_hand(folder: str, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Embeddings with the model's own processor, one image and one prompt at a time, without padding."""
    network = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer, processor = tiny_clip.tokenizer(), transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = [processor(image, return_tensors="pt").pixel_values for image in pil(images)]
    ids = [tokenizer([p], truncation=True, max_length=tiny_clip.LENGTH, return_tensors="pt").input_ids for p in prompts]
    return (
        torch.cat([unit(network.get_image_features(pixel_values=each)) for each in pixels]),
        torch.cat([unit(network.get_text_features(input_ids=each)) for each in ids]),
    )


def test_scores_are_what_the_model_and_its_processor_say(folder: str, head: str, images: Tensor) -> None:
    seen, read = by_hand(folder, images, PROMPTS)
    cosine = (seen * read).sum(-1)
    assert cosine.std() > 0.05  # otherwise nothing would be compared
    close = {"atol": 2e-3, "rtol": 0.0}  # the processor rounds to 8 bits
    torch.testing.assert_close(made("clipscore", folder, head)(images, PROMPTS), cosine, **close)
    floored = made("clipscore", folder, head, factor=2.5, floor="true")(images, PROMPTS)
    torch.testing.assert_close(floored, 2.5 * cosine.clamp(min=0), atol=5e-3, rtol=0)
    assert (floored == 0).any() and (floored > 0).any()
    torch.testing.assert_close(made("pickscore", folder, head)(images, PROMPTS), 100 * cosine, atol=0.2, rtol=0)
    torch.testing.assert_close(
        made("pickscore", folder, head, divisor=26)(images, PROMPTS), 100 / 26 * cosine, atol=0.01, rtol=0
    )
    x = seen
    state = torch.load(head, weights_only=True)
    for number in (0, 2, 4):
        x = x @ state[f"layers.{number}.weight"].T + state[f"layers.{number}.bias"]
    torch.testing.assert_close(made("aesthetic", folder, head)(images, PROMPTS), x[:, 0], atol=0.02, rtol=0)
    apart = 1 - (seen[0] * seen[2]).sum()
    wanted = torch.stack([apart, torch.tensor(0.0), apart, torch.tensor(0.0), torch.tensor(0.0)])
    torch.testing.assert_close(made("diversity", folder, head)(images, PROMPTS), wanted, **close)


def test_the_model_itself_agrees(folder: str, images: Tensor) -> None:
    """logits_per_image of the whole model is PickScore: its own scale, and its own way to normalise."""
    reward = PickScore(folder, processor=folder)
    network = transformers.CLIPModel.from_pretrained(folder).eval()
    tokens = tiny_clip.tokenizer()(PROMPTS, padding=True, truncation=True, max_length=24, return_tensors="pt")
    with torch.no_grad():
        logits = network(pixel_values=reward._clip.preprocess(images), input_ids=tokens.input_ids).logits_per_image
    torch.testing.assert_close(reward(images, PROMPTS), logits.diagonal(), atol=1e-4, rtol=0)


NAMES = ["pickscore", "clipscore", "aesthetic", "diversity"]


@pytest.mark.parametrize("name", NAMES)
def test_neither_batch_nor_order_nor_precision_matters(name: str, folder: str, head: str, images: Tensor) -> None:
    scores = made(name, folder, head)(images, PROMPTS)
    size = max(0.2, float(scores.abs().max()))
    for batch in (1, 2, 5):
        other = made(name, folder, head, batch=batch)(images, PROMPTS)
        torch.testing.assert_close(other, scores, atol=1e-5 * size, rtol=0)
    order = [3, 0, 4, 2, 1]
    other = made(name, folder, head)(images[order], [PROMPTS[i] for i in order])
    torch.testing.assert_close(other, scores[order], atol=1e-5 * size, rtol=0)
    torch.testing.assert_close(made(name, folder, head)(images.double(), PROMPTS), scores, atol=1e-5 * size, rtol=0)
    for dtype, loss in (("float16", 1e-2), ("bfloat16", 5e-2)):
        other = made(name, folder, head, dtype=dtype)(images, PROMPTS)
        assert other.dtype == torch.float32
        torch.testing.assert_close(other, scores, atol=loss * size, rtol=0)
        assert not torch.equal(other, scores)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_held_to_their_word(name: str, folder: str, head: str, images: Tensor) -> None:
    """Frames of a video are averaged by `score`, or compared in time by diversity; NaN is found out."""
    reward = made(name, folder, head)
    video = torch.stack([images, images.flip(-1)], 1)
    scores = rewards.score(name, reward, video, PROMPTS)
    frames = torch.stack([rewards.score(name, reward, video[:, i], PROMPTS) for i in range(2)])
    torch.testing.assert_close(scores, frames.mean(0), atol=1e-4, rtol=1e-4)
    broken = images.clone()
    broken[1, 0, 20, 28] = torch.nan
    if name != "diversity":  # there an image alone with its prompt scores 0, whatever it is
        with pytest.raises(RewardError, match=f"reward '{name}' returned nan for 1 of 5 .* 'two birds'"):
            rewards.score(name, reward, broken, PROMPTS)
    with pytest.raises(RewardError, match=r"scores images \[B, 3, H, W\], not \[5, 1, 40, 56\]"):
        reward(images[:, :1], PROMPTS)
    with pytest.raises(RewardError, match="was given 5 images and 4 prompts"):
        reward(images, PROMPTS[:4])


# --- prompts


def test_a_prompt_is_embedded_once(folder: str, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    reward, prompts = CLIPScore(folder, batch=2), ["once", "twice", "once", "thrice", "never before"]
    read: list[int] = []
    inner = reward._clip.resident.network.get_text_features

    def counted(input_ids: Tensor) -> Any:
        read.append(len(input_ids))
        return inner(input_ids=input_ids)

    monkeypatch.setattr(reward._clip.resident.network, "get_text_features", counted)
    first = reward(images, prompts)
    assert read == [2, 2]  # four prompts, in batches of two
    assert torch.equal(reward(images, prompts), first) and read == [2, 2]
    reward(images[:1], ["something new"])
    assert read == [2, 2, 1]


def test_what_is_remembered_is_bounded() -> None:
    asked: list[str] = []

    def embed(prompts: list[str], batch: int) -> Tensor:
        asked.extend(prompts)
        return torch.tensor([[float(prompt)] for prompt in prompts])

    embedded = Embedded(embed, bound=3)
    assert embedded(["1", "2", "3", "4", "5", "1"], 2).flatten().tolist() == [1, 2, 3, 4, 5, 1]
    assert embedded(["5", "4", "3"], 2).flatten().tolist() == [5, 4, 3] and asked == ["1", "2", "3", "4", "5"]
    assert embedded(["1"], 2).item() == 1 and asked[5:] == ["1"]


def test_a_long_prompt_is_cut(folder: str, images: Tensor) -> None:
    reward, long = CLIPScore(folder), "abcdefghijklmnopqrstuvwxyz"
    scores = [reward(images[:1], [text]).item() for text in (long, long + " and more", long[:20])]
    assert scores[0] == scores[1] != scores[2]


# --- images


@pytest.mark.parametrize("shape", [(64, 64), (32, 32), (31, 50), (100, 33), (20, 24), (150, 97)])
@pytest.mark.parametrize("kind", ["noise", "smooth"])
@pytest.mark.parametrize("config", [{}, {"resample": 2}, {"size": {"shortest_edge": 40}},
                                    {"size": {"height": 24, "width": 36}, "do_center_crop": False}])  # fmt: skip
def test_images_are_prepared_as_the_processor_does(
    shape: tuple[int, int], kind: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise has the hardest edges; there the order of directions matters, which newer Pillows choose by shape."""
    resize = Image.Image.resize

    def along_the_width_first(image: Any, size: tuple[int, int], resample: Any = None, **more: Any) -> Any:
        return resize(resize(image, (size[0], image.height), resample), size, resample)

    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (*shape, 3) if kind == "noise" else (5, 5, 3), dtype=np.uint8)
    image = resize(Image.fromarray(pixels), shape[::-1], Image.Resampling.BICUBIC)
    processor = transformers.CLIPImageProcessorPil(**{**tiny_clip.processor(), **config})
    if kind == "noise":
        monkeypatch.setattr(Image.Image, "resize", along_the_width_first)
    wanted = processor(image, return_tensors="pt").pixel_values
    mine = Preprocess.of(processor)(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255)
    levels = (mine - wanted).abs() * torch.tensor(processor.image_std).view(-1, 1, 1) * 255
    assert mine.shape == wanted.shape and levels.max() < 1.2 and levels.mean() < 0.35


def test_processors_of_any_age_are_read(tmp_path: Path) -> None:
    """The files beside CLIP's weights on the hub are of 2022, with plain numbers for sizes."""
    old = {**tiny_clip.processor(), "size": 224, "crop_size": 224, "feature_extractor_type": "CLIPFeatureExtractor"}
    for key in ("image_processor_type", "do_rescale", "rescale_factor", "do_convert_rgb"):
        del old[key]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    found = Preprocess.of(transformers.AutoImageProcessor.from_pretrained(tmp_path))
    assert (found.size, found.shortest, found.fit, found.mode) == ((224, 224), 224, "crop", "bicubic")
    assert found.mean == pytest.approx(tiny_clip.processor()["image_mean"])


@pytest.mark.parametrize("config", [{"do_normalize": False}, {"resample": 1}, {"rescale_factor": 1.0},
                                    {"size": {"shortest_edge": 16}}])  # fmt: skip
def test_what_is_not_known_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"CLIPImageProcessor.* prepares images in a way that is not known here"):
        Preprocess.of(transformers.CLIPImageProcessorPil(**{**tiny_clip.processor(), **config}))


@pytest.mark.parametrize("shape", [(48, 96), (96, 48), (45, 96), (64, 64), (10, 20)])
def test_a_padded_image_is_whole(shape: tuple[int, int]) -> None:
    """White stays white, what is added is black, and lies on both sides alike."""
    prepare = Preprocess((32, 32), (0.0,) * 3, (1.0,) * 3, fit="pad")
    out = prepare(torch.ones(1, 3, *shape))
    rows, columns = (round(32 * edge / max(shape)) for edge in shape)
    top, left = (32 - rows) // 2, (32 - columns) // 2
    wanted = torch.zeros(1, 3, 32, 32)
    wanted[..., top : top + rows, left : left + columns] = 1
    torch.testing.assert_close(out, wanted, atol=1e-6, rtol=0)


# --- where a network is


def test_offloaded_weights_are_on_the_device_only_while_used(
    folder: str, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a second device the moves are recorded; the test below has one where there is one."""
    moves: list[Any] = []
    reward = CLIPScore(folder, offload=True)
    resident = reward._clip.resident
    monkeypatch.setattr(resident.network, "to", lambda where: moves.append(where))
    reward(images, PROMPTS)
    assert moves == ["cpu", "cpu"] * 2  # there and back: for the images, and for the prompts
    reward(images, PROMPTS)
    assert len(moves) == 6  # no prompt is new
    with pytest.raises(KeyError), resident.at_work():
        raise KeyError
    assert len(moves) == 8  # back, whatever happens
    moves.clear()
    assert CLIPScore(folder)(images, PROMPTS).tolist() == reward(images, PROMPTS).tolist() and len(moves) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_gives_the_same(folder: str, head: str, images: Tensor) -> None:
    for name in NAMES:
        wanted = made(name, folder, head, device="cpu")(images, PROMPTS)
        for how in ({"dtype": "float32"}, {}, {"offload": "true"}):
            reward = made(name, folder, head, **how)
            scores = reward(images, PROMPTS)
            torch.testing.assert_close(scores, wanted, atol=5e-3 * float(wanted.abs().max()), rtol=0)
            home = next(reward._clip.resident.network.parameters()).device.type
            assert home == ("cpu" if how == {"offload": "true"} else "cuda")


def test_weights_are_held_once(folder: str, head: str) -> None:
    score, distance = CLIPScore(folder), Diversity(folder)
    assert score._clip is distance._clip is Aesthetic(folder, head=head)._clip
    assert CLIPScore(folder, dtype="bfloat16")._clip is not score._clip
    assert CLIPScore(folder, batch=3)._clip is score._clip


def test_a_full_device_is_a_sentence(folder: str, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = CLIPScore(folder)

    def full(pixel_values: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(reward._clip.resident.network, "get_image_features", full)
    with pytest.raises(RewardError, match="CLIPModel does not fit into the memory of cpu: lower the reward's batch"):
        reward(images, PROMPTS)


def test_gradients_are_never_kept(folder: str, images: Tensor) -> None:
    scores = CLIPScore(folder)(images.clone().requires_grad_(), PROMPTS)
    assert not scores.requires_grad
    scores += 1  # and what comes back may be changed


# --- diversity


def test_distances_by_hand() -> None:
    """Two at a right angle, one opposite to the first: (1 + 2) / 2, (1 + 1) / 2, (2 + 1) / 2; another is alone."""
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]])
    assert distances(vectors, ["a", "a", "a", "b"]).tolist() == pytest.approx([1.5, 1.0, 1.5, 0.0])
    assert distances(vectors[[0, 0, 0]], ["a"] * 3).tolist() == pytest.approx([0, 0, 0], abs=1e-7)


def test_distances_are_the_mean_of_pairs() -> None:
    vectors = nn.functional.normalize(torch.randn(12, 7, generator=torch.Generator().manual_seed(3)), dim=-1)
    groups = ["a", "b", "a", "c", "a", "b", "a", "a", "b", "d", "d", "a"]
    for i, group in enumerate(groups):
        others = [j for j, other in enumerate(groups) if other == group and j != i]
        wanted = np.mean([1 - float(vectors[i] @ vectors[j]) for j in others]) if others else 0.0
        assert distances(vectors, groups)[i].item() == pytest.approx(wanted, abs=1e-6)


# --- HPSv2: a checkpoint of open_clip


@torch.no_grad()
@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_a_converted_checkpoint_computes_the_same(act: str, tmp_path: Path) -> None:
    folder, original = tiny_clip.save(tmp_path / "architecture", act), tiny_open_clip.network(act)
    torch.save({"epoch": 3, "state_dict": original.state_dict()}, tmp_path / "weights.pt")
    reward = rewards.load(["hpsv2"], [f"hpsv2.model={tmp_path}", "hpsv2.file=weights.pt", f"hpsv2.processor={folder}"])
    pictures = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    prompts = ["a cat", "two birds on a wire", "sea"]
    prepared = Preprocess.of(transformers.CLIPImageProcessorPil(**tiny_clip.processor()))(pictures)
    tokens = tiny_clip.tokenizer()(prompts, padding="max_length", return_tensors="pt").input_ids
    seen, read = unit(original.visual(prepared)), unit(original.text(tokens))
    assert reward._clip.images(pictures, 2) == pytest.approx(seen, abs=1e-5)
    assert reward._clip.texts(prompts, 2) == pytest.approx(read, abs=1e-5)
    assert reward(pictures, prompts).tolist() == pytest.approx((seen * read).sum(-1).tolist(), abs=1e-5)
    other = tiny_clip.save(tmp_path / "other", "quick_gelu" if act == "gelu" else "gelu")
    unlike = HPSv2(str(tmp_path / "weights.pt"), processor=other)(pictures, prompts)
    assert (unlike - reward(pictures, prompts)).abs().max() > 1e-4  # the activation is the architecture's


def test_nothing_of_an_image_that_is_not_square_is_cut_off(folder: str, tmp_path: Path, images: Tensor) -> None:
    """HPSv2 sees the left edge of a wide image, CLIPScore does not."""
    torch.save(tiny_open_clip.network("gelu").state_dict(), tmp_path / "weights.pt")
    wide, other = torch.rand(2, 1, 3, 32, 96, generator=torch.Generator().manual_seed(2))
    other[..., 32:] = wide[..., 32:]
    crops, pads = CLIPScore(folder), HPSv2(str(tmp_path / "weights.pt"), processor=folder)
    assert crops(wide, ["a cat"]) == crops(other, ["a cat"])
    assert pads(wide, ["a cat"]) != pads(other, ["a cat"])


def test_a_checkpoint_that_does_not_fit(folder: str, tmp_path: Path) -> None:
    state = tiny_open_clip.network("gelu").state_dict()

    def sentence(state: dict[str, Tensor]) -> str:
        torch.save(state, tmp_path / "weights.pt")
        with pytest.raises(ValueError) as error:
            rewards.load(["hpsv2"], [f"hpsv2.model={tmp_path}/weights.pt", f"hpsv2.processor={folder}"])
        assert "\n" not in str(error.value)
        return str(error.value)

    assert sentence({"visual.head": torch.ones(1)}) == (
        "reward 'hpsv2': 'visual.head' is no weight of an open_clip model"
    )
    assert "visual_projection.weight is missing (1 weights in all)" in sentence(
        {key: value for key, value in state.items() if key != "visual.proj"}
    )
    assert "cannot be read" in sentence({**state, "ln_final.weight": torch.ones(5)})
    assert set(converted(state)) == set(tiny_clip.network().state_dict())


# --- what cannot be loaded


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


def test_a_pickle_runs_no_code(folder: str, tmp_path: Path) -> None:
    with open(tmp_path / "head.pth", "wb") as file:
        pickle.dump({"layers.0.weight": Evil()}, file)
    torch.save({"layers.0.weight": Evil()}, tmp_path / "zipped.pth")
    for name in ("head.pth", "zipped.pth"):
        with pytest.raises(ValueError, match=r"\.pth is no file of weights, is damaged, or holds more than tensors$"):
            Aesthetic(folder, head=str(tmp_path / name))


def test_a_head_may_be_safetensors(folder: str, head: str, images: Tensor, tmp_path: Path) -> None:
    save_file(torch.load(head, weights_only=True), tmp_path / "head.safetensors")
    other = Aesthetic(folder, head=str(tmp_path), file="head.safetensors")
    assert torch.equal(other(images, PROMPTS), Aesthetic(folder, head=head)(images, PROMPTS))


def test_heads_that_are_none(folder: str, head: str, tmp_path: Path) -> None:
    narrow = tiny_clip.save_head(tmp_path / "narrow.pth", 23)
    with pytest.raises(ValueError, match=r"narrow.pth makes one number of 23 features, and .* has 24$"):
        Aesthetic(folder, head=narrow)
    torch.save({"layers.0.weight": torch.ones(2, 24)}, tmp_path / "half.pth")
    torch.save({"anything": 1}, tmp_path / "none.pth")
    (tmp_path / "torn.pth").write_bytes(Path(head).read_bytes()[:900])
    (tmp_path / "torn.safetensors").write_bytes(b"123456789")
    for name, said in {
        "half.pth": "does not hold linear layers",
        "none.pth": "holds no weights by name",
        "torn.pth": "cannot be read as weights|is damaged",
        "torn.safetensors": "cannot be read as weights",
    }.items():
        with pytest.raises(ValueError, match=said):
            Aesthetic(folder, head=str(tmp_path / name))
    with pytest.raises(ValueError, match=r"there is no file aesthetic-model\.pth in "):
        Aesthetic(folder, head=str(tmp_path))
    with pytest.raises(ValueError, match="does not hold linear layers"):
        linears({"layers.a.weight": torch.ones(1, 1)}, "it")


def test_folders_that_hold_something_else(folder: str, tmp_path: Path) -> None:
    def sentence(where: Path | str, **more: str) -> str:
        with pytest.raises(ValueError) as error:
            made("clipscore", str(where), "", **more)
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
        return str(error.value)

    assert "cannot be read" in sentence(tmp_path)
    assert "there is no folder no/where/at/all, and no model on the hub can have such a name" in sentence(
        "no/where/at/all"
    )
    transformers.CLIPTextModel(tiny_clip.config().text_config).save_pretrained(tmp_path / "text")
    assert "text is not a CLIP model, but clip_text_model" in sentence(tmp_path / "text")
    cut = Path(tiny_clip.save(tmp_path / "cut"))
    state = load_file(cut / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, cut / "model.safetensors", {"format": "pt"})
    assert "cut is not a whole CLIP model: text_projection.weight is missing (1 weights in all)" in sentence(cut)
    broken = Path(tiny_clip.save(tmp_path / "broken"))
    (broken / "tokenizer.json").unlink()
    (broken / "tokenizer_config.json").unlink()
    assert "tokens and the text model 54: its files are missing, or are of another model" in sentence(broken)
    (broken / "preprocessor_config.json").unlink()
    assert "image processor" in sentence(broken)
    assert "has no option" in sentence(folder, colour="red") or "colour" in sentence(folder, colour="red")
    assert "batch must be a positive number, not 0" in sentence(folder, batch="0")
    assert "option dtype: Input should be 'auto'" in sentence(folder, dtype="int8")
    assert "factor must be a positive number, not -1" in sentence(folder, factor="-1")
    assert "there is no device 'cuda:99' here: " in sentence(folder, device="cuda:99")


def test_what_the_hub_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its errors is a sentence; transformers raises them as they are, or as an OSError."""
    response: Any = SimpleNamespace(headers={}, request=None)
    errors: dict[Exception, str] = {
        GatedRepoError("gated", response=response): "owner/name is gated: accept its licence",
        RepositoryNotFoundError("none", response=response): "there is no model owner/name on the hub, or it is private",
        RevisionNotFoundError("none", response=response): "owner/name has no such revision",
        OfflineModeIsEnabled("offline mode"): "the model owner/name cannot be read: offline mode",
        LocalEntryNotFoundError("not cached"): "the model owner/name cannot be read: not cached",
        OSError("no connection"): "the model owner/name cannot be read: no connection",
    }
    for error, said in errors.items():

        def refused(*args: Any, error: Exception = error, **kwargs: Any) -> None:
            raise error

        def wrapped(*args: Any, error: Exception = error, **kwargs: Any) -> None:
            raise (error if type(error) is OSError else OSError(str(error))) from error

        monkeypatch.setattr(hub, "hf_hub_download", refused)
        monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", wrapped)
        with pytest.raises(ValueError, match=f"^{said}"):
            hub.file("owner/name", "weights.pt")
        with pytest.raises(ValueError, match=f"^{said}"):
            CLIPScore("owner/name")


def test_older_features_are_plain_tensors(folder: str, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = CLIPScore(folder)
    wanted, network = reward(images, PROMPTS), reward._clip.resident.network
    inner = network.get_image_features
    monkeypatch.setattr(network, "get_image_features", lambda pixel_values: inner(pixel_values).pooler_output)
    assert torch.equal(reward(images, PROMPTS), wanted)


def test_a_resident_network_is_frozen() -> None:
    network = nn.Linear(2, 2).train()
    Resident(network, "cpu", torch.float32, False)
    assert not network.training and not any(weight.requires_grad for weight in network.parameters())
