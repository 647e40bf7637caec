"""Checkpoints that are not ours to the networks of CLIP rewards, and a sentence where they do not fit."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
from safetensors.torch import load_file, save_file
from tiny_clip import PROMPTS, made, unit
from torch import Tensor, nn

from flowward import rewards
from flowward.models import hub
from flowward.rewards.images.aesthetic import Aesthetic
from flowward.rewards.images.clip import CLIPScore
from flowward.rewards.images.hps import HPSv2, converted
from flowward.rewards.network import Preprocess, Resident, linears

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


def test_nothing_of_an_image_that_is_not_square_is_cut_off(clip: str, tmp_path: Path) -> None:
    """HPSv2 sees the left edge of a wide image, CLIPScore does not."""
    torch.save(tiny_open_clip.network("gelu").state_dict(), tmp_path / "weights.pt")
    wide, other = torch.rand(2, 1, 3, 32, 96, generator=torch.Generator().manual_seed(2))
    other[..., 32:] = wide[..., 32:]
    crops, pads = CLIPScore(clip), HPSv2(str(tmp_path / "weights.pt"), processor=clip)
    assert crops(wide, ["a cat"]) == crops(other, ["a cat"])
    assert pads(wide, ["a cat"]) != pads(other, ["a cat"])


def test_a_checkpoint_that_does_not_fit(clip: str, tmp_path: Path) -> None:
    state = tiny_open_clip.network("gelu").state_dict()

    def sentence(state: dict[str, Tensor]) -> str:
        torch.save(state, tmp_path / "weights.pt")
        with pytest.raises(ValueError) as error:
            rewards.load(["hpsv2"], [f"hpsv2.model={tmp_path}/weights.pt", f"hpsv2.processor={clip}"])
        assert "\n" not in str(error.value)
        return str(error.value)

    assert sentence({"visual.head": torch.ones(1)}) == (
        "reward 'hpsv2': 'visual.head' is not a weight of an open_clip model"
    )
    assert "1 weights are missing, such as visual_projection.weight" in sentence(
        {key: value for key, value in state.items() if key != "visual.proj"}
    )
    assert "cannot be read" in sentence({**state, "ln_final.weight": torch.ones(5)})
    assert set(converted(state)) == set(tiny_clip.network().state_dict())


# --- what cannot be loaded


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


def test_a_pickle_runs_no_code(clip: str, tmp_path: Path) -> None:
    with open(tmp_path / "head.pth", "wb") as file:
        pickle.dump({"layers.0.weight": Evil()}, file)
    torch.save({"layers.0.weight": Evil()}, tmp_path / "zipped.pth")
    for name in ("head.pth", "zipped.pth"):
        with pytest.raises(ValueError, match=r"\.pth is not a weight file, .* other objects than tensors$"):
            Aesthetic(clip, head=str(tmp_path / name))


def test_a_head_may_be_safetensors(clip: str, clip_head: str, tmp_path: Path) -> None:
    images = tiny_clip.images()
    save_file(torch.load(clip_head, weights_only=True), tmp_path / "head.safetensors")
    other = Aesthetic(clip, head=str(tmp_path), file="head.safetensors")
    assert torch.equal(other(images, PROMPTS), Aesthetic(clip, head=clip_head)(images, PROMPTS))


def test_heads_that_are_none(clip: str, clip_head: str, tmp_path: Path) -> None:
    narrow = tiny_clip.save_head(tmp_path / "narrow.pth", 23)
    with pytest.raises(ValueError, match=r"narrow.pth needs 23 CLIP features .*, but .* has 24 features$"):
        Aesthetic(clip, head=narrow)
    torch.save({"layers.0.weight": torch.ones(2, 24)}, tmp_path / "half.pth")
    torch.save({"anything": 1}, tmp_path / "none.pth")
    (tmp_path / "torn.pth").write_bytes(Path(clip_head).read_bytes()[:900])
    (tmp_path / "torn.safetensors").write_bytes(b"123456789")
    for name, said in {
        "half.pth": "has no linear layers",
        "none.pth": "has no named weights",
        "torn.pth": "cannot read weights from|is damaged",
        "torn.safetensors": "cannot read weights from",
    }.items():
        with pytest.raises(ValueError, match=said):
            Aesthetic(clip, head=str(tmp_path / name))
    with pytest.raises(ValueError, match=r"has no file aesthetic-model\.pth"):
        Aesthetic(clip, head=str(tmp_path))
    with pytest.raises(ValueError, match="has no linear layers"):
        linears({"layers.a.weight": torch.ones(1, 1)}, "it")


def test_folders_that_hold_something_else(clip: str, tmp_path: Path) -> None:
    def sentence(where: Path | str, **more: str) -> str:
        with pytest.raises(ValueError) as error:
            made("clipscore", str(where), "", **more)
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
        return str(error.value)

    assert "cannot be read" in sentence(tmp_path)
    assert "there is no folder no/where/at/all, and it is not a valid hub id" in sentence("no/where/at/all")
    transformers.CLIPTextModel(tiny_clip.config().text_config).save_pretrained(tmp_path / "text")
    assert "text is not a CLIP model, but of type clip_text_model" in sentence(tmp_path / "text")
    cut = Path(tiny_clip.save(tmp_path / "cut"))
    state = load_file(cut / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, cut / "model.safetensors", {"format": "pt"})
    assert "cut is an incomplete CLIP model: 1 weights are missing, such as text_projection.weight" in sentence(cut)
    broken = Path(tiny_clip.save(tmp_path / "broken"))
    (broken / "tokenizer.json").unlink()
    (broken / "tokenizer_config.json").unlink()
    assert "tokens, but the text model 54; its files are missing, or belong to another model" in sentence(broken)
    (broken / "preprocessor_config.json").unlink()
    assert "image processor" in sentence(broken)
    assert "has no option" in sentence(clip, colour="red") or "colour" in sentence(clip, colour="red")
    assert "batch must be a positive number, not 0" in sentence(clip, batch="0")
    assert "option dtype: Input should be 'auto'" in sentence(clip, dtype="int8")
    assert "factor must be a positive number, not -1" in sentence(clip, factor="-1")
    assert "this machine has no device 'cuda:99': " in sentence(clip, device="cuda:99")


def test_what_the_hub_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its errors is a sentence; transformers raises them as they are, or as an OSError."""
    response: Any = SimpleNamespace(headers={}, request=None)
    errors: dict[Exception, str] = {
        GatedRepoError("gated", response=response): "owner/name is gated; accept its licence",
        RepositoryNotFoundError("none", response=response): "the hub has no model owner/name, or it is private",
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
            hub.file("owner/name", "main", "weights.pt")
        with pytest.raises(ValueError, match=f"^{said}"):
            CLIPScore("owner/name")


def test_older_features_are_plain_tensors(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tiny_clip.images()
    reward = CLIPScore(clip)
    wanted, network = reward(images, PROMPTS), reward._clip.resident.network
    inner = network.get_image_features
    monkeypatch.setattr(network, "get_image_features", lambda pixel_values: inner(pixel_values).pooler_output)
    assert torch.equal(reward(images, PROMPTS), wanted)


def test_a_resident_network_is_frozen() -> None:
    network = nn.Linear(2, 2).train()
    Resident(network, "cpu", torch.float32, False)
    assert not network.training and not any(weight.requires_grad for weight in network.parameters())
