"""CLAP: the cosine between a sound and its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...process.sound import resampled
from ..network import Embedded, NetworkReward, Place, Resident, shared
from ..revisions import located
from ..reward import Metadata
from .waveforms import OnSound


class Clap:
    """A CLAP model (Wu et al., 2023, arXiv:2211.06687): sounds and texts as vectors of length 1.

    Raises:
        ValueError: it takes several windows of a long sound at random.
    """

    def __init__(self, network: Any, tokenizer: Any, extractor: Any, place: Place):
        if network.config.audio_config.enable_fusion:
            raise ValueError("a fused CLAP takes pieces of a sound at random: use one like laion/clap-htsat-unfused")
        self.resident, self.tokenizer, self.extractor = Resident(network, *place), tokenizer, extractor
        self.width: int = network.config.projection_dim
        self._texts = Embedded(self._embed_texts)

    def sounds(self, waveforms: Tensor, rate: int, batch: int) -> Tensor:
        """Embed waveforms [B, C, T] in windows of its length, 10 s, that cover all of them: [B, N, D], float32, CPU.

        Raises:
            RewardError: the device is out of memory.
        """
        own, most = self.extractor.sampling_rate, self.extractor.nb_max_samples
        one = resampled(waveforms.float().mean(1), rate, own)
        many = -(-one.shape[-1] // most)
        starts = [round(k * (one.shape[-1] - most) / max(1, many - 1)) for k in range(many)] if many > 1 else [0]
        windows = [each[start : start + most].numpy() for each in one for start in starts]
        parts = []
        with self.resident.at_work() as network:
            for start in range(0, len(windows), batch):
                seen = self.extractor(
                    windows[start : start + batch], sampling_rate=own, truncation="rand_trunc", return_tensors="pt"
                )
                features = seen.input_features.to(self.resident.device, self.resident.dtype)
                parts.append(_vectors(network.get_audio_features(input_features=features)))
        return torch.cat(parts).view(len(waveforms), len(starts), -1)

    def texts(self, prompts: Sequence[str], batch: int) -> Tensor:
        """Embed B prompts: [B, D], float32 on the CPU."""
        return self._texts(prompts, batch)

    def _embed_texts(self, prompts: list[str], batch: int) -> Tensor:
        most = min(self.tokenizer.model_max_length, 512)
        read = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=most, return_tensors="pt")
        parts, device = [], self.resident.device
        with self.resident.at_work() as network:
            for start in range(0, len(prompts), batch):
                rows = slice(start, start + batch)
                ids, mask = read.input_ids[rows].to(device), read.attention_mask[rows].to(device)
                parts.append(_vectors(network.get_text_features(input_ids=ids, attention_mask=mask)))
        return torch.cat(parts)


def _vectors(features: Any) -> Tensor:
    """Normalised features; transformers 5 returns them in an object, earlier versions as a tensor."""
    plain: Tensor = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(plain.float(), dim=-1).cpu()


def load(model: str, place: Place) -> Clap:
    """A CLAP model from a folder or the hub.

    Raises:
        ValueError: it cannot be found or read, lacks weights, or is not a CLAP model; the device does not exist.
    """
    return shared((Clap, model, place), lambda: _loaded(model, place))


def _loaded(model: str, place: Place) -> Clap:
    from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer, ClapModel

    from ...models import hub

    hub.quiet()
    name, revision = located(model)
    with hub.explained(model):
        config = AutoConfig.from_pretrained(name, revision=revision)
    if config.model_type != "clap":
        raise ValueError(f"{model} is not a CLAP model, but of type {config.model_type}")
    with hub.explained(model):
        network, report = ClapModel.from_pretrained(name, revision=revision, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        extractor = AutoFeatureExtractor.from_pretrained(name, revision=revision)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{model} is an incomplete CLAP model: {len(missing)} weights are missing, such as {missing[0]}"
        )
    return Clap(network, tokenizer, extractor, place)


@dataclass
class CLAPScore(OnSound, NetworkReward):
    """Prompt alignment of a sound: the cosine of its CLAP embedding and that of its prompt, averaged over 10 s windows.

    Range in theory [-1, 1]; sounds that fit their prompt mostly score 0.3 to 0.6. Lyrics in the prompt are read too.
    Wu et al., 2023, arXiv:2211.06687; weights: Apache-2.0 on their page.
    """

    model: str = "laion/clap-htsat-unfused"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._clap = load(self.model, self.place())

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Metadata = None) -> Tensor:
        rate = self.rate(images, prompts, metadata)
        heard = self._clap.sounds(images, rate, self.batch)
        return (heard * self._clap.texts(prompts, self.batch)[:, None]).sum(-1).mean(1)
