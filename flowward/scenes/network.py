"""The three networks of the built-in model, in the layout of a Stable Diffusion 3 folder.

The transformer and the autoencoder are diffusers' own classes, small; only the text encoder is ours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..prompts.scenes import MAX_WORDS
from ..system import whole_files
from .design import SMALL, WIDTH, Design
from .render import SIZE
from .two_times import TwoTimeTransformer

LATENT_SIZE = SIZE // 4


class WordEncoder(nn.Module):
    """Text encoder: learned word and position embeddings, and a pooled vector that depends on word order.

    In SD3's joint attention, words attend to each other and to the picture. So the encoder itself can be this small.
    """

    def __init__(self, words: tuple[str, ...], width: int = WIDTH, length: int = MAX_WORDS):
        super().__init__()
        self.words, self.length = words, length
        self.ids = {word: index + 1 for index, word in enumerate(words)}  # 0 is padding
        self.table = nn.Embedding(len(words) + 1, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.pool = nn.Sequential(nn.Linear(length * width, width), nn.SiLU(), nn.Linear(width, width))

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Convert prompts to word ids [B, length], padded with 0.

        Raises:
            ValueError: a word is not in the vocabulary, or the prompt is too long.
        """
        rows = []
        for prompt in prompts:
            words = prompt.lower().split()
            if unknown := [word for word in words if word not in self.ids]:
                raise ValueError(f"the built-in model does not know the word '{unknown[0]}' (prompt '{prompt}')")
            if len(words) > self.length:
                raise ValueError(
                    f"prompt '{prompt}' has {len(words)} words; the built-in model reads at most {self.length}"
                )
            rows.append([self.ids[word] for word in words] + [0] * (self.length - len(words)))
        return torch.tensor(rows, dtype=torch.long)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids [B, length] -> (words [B, length, width], pooled [B, width])."""
        words = self.table(ids) + self.position
        return words, self.pool(words.flatten(1))


def new_transformer(design: Design = SMALL) -> SD3Transformer2DModel:
    """A transformer with random weights."""
    return SD3Transformer2DModel(
        sample_size=design.size // 4,
        patch_size=2,
        in_channels=design.latent_channels,
        out_channels=design.latent_channels,
        num_layers=design.layers,
        num_attention_heads=design.heads,
        attention_head_dim=design.width // design.heads,
        joint_attention_dim=design.text_width,
        caption_projection_dim=design.width,
        pooled_projection_dim=design.text_width,
        pos_embed_max_size=design.size // 8,
        qk_norm="rms_norm",
    )


def new_autoencoder(design: Design = SMALL) -> AutoencoderKL:
    """An autoencoder with random weights: a latent pixel for 4 x 4 pixels."""
    return AutoencoderKL(
        sample_size=design.size,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),  # with 8 at full resolution, half of the textures are lost
        layers_per_block=1,
        latent_channels=design.latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


@dataclass
class Networks:
    """The three networks of the built-in model."""

    transformer: SD3Transformer2DModel  # or its subclass with two times
    autoencoder: AutoencoderKL
    text_encoder: WordEncoder

    @classmethod
    def new(cls, design: Design = SMALL) -> Networks:
        """Networks with random weights from torch's global generator."""
        return cls(
            new_transformer(design),
            new_autoencoder(design),
            WordEncoder(design.vocabulary(), design.text_width, design.length),
        )

    @classmethod
    def load(cls, folder: Path) -> Networks:
        """Load a folder written by `save`, as float32."""
        described = json.loads((folder / "transformer" / "config.json").read_text("utf-8"))
        two = described.get("_class_name") == TwoTimeTransformer.__name__
        config = json.loads((folder / "text_encoder" / "config.json").read_text("utf-8"))
        text_encoder = WordEncoder(tuple(config["words"]), config["width"], config["length"])
        weights = load_file(folder / "text_encoder" / "model.safetensors")
        text_encoder.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        return cls(
            (TwoTimeTransformer if two else SD3Transformer2DModel).from_pretrained(
                folder / "transformer", torch_dtype=torch.float32, use_safetensors=True
            ),
            AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32, use_safetensors=True),
            text_encoder,
        )

    def take(self, folder: Path) -> bool:
        """Take over the autoencoder of a folder, and the other two networks if it has them; returns whether it has.

        Raises:
            ValueError: it has no autoencoder, or a network of other sizes.
        """
        parts: dict[str, tuple[nn.Module, str]] = {
            "vae": (self.autoencoder, "diffusion_pytorch_model.safetensors"),
            "transformer": (self.transformer, "diffusion_pytorch_model.safetensors"),
            "text_encoder": (self.text_encoder, "model.safetensors"),
        }
        files = {name: folder / name / file for name, (_, file) in parts.items()}
        if not files["vae"].is_file():
            raise ValueError(f"{folder} has no autoencoder: {files['vae']} is missing")
        taken = [name for name, file in files.items() if file.is_file()]
        for name in taken if len(taken) == len(parts) else ["vae"]:
            try:
                parts[name][0].load_state_dict({key: each.float() for key, each in load_file(files[name]).items()})
            except RuntimeError as error:
                raise ValueError(f"the {name} in {folder} has other sizes than this world needs") from error
        return len(taken) == len(parts)

    def save(self, folder: Path, dtype: torch.dtype = torch.float16) -> None:
        """Save the three networks, rounded to `dtype`; this object keeps its own precision."""
        for name, source in (("transformer", self.transformer), ("vae", self.autoencoder)):
            known = {key: value for key, value in source.config.items() if not key.startswith("_")}  # no paths
            network = type(source).from_config(known)
            network.register_to_config(**known)
            network.load_state_dict(source.state_dict())
            network.to(dtype).save_pretrained(folder / name)
        encoder = self.text_encoder
        path = folder / "text_encoder"
        path.mkdir(parents=True, exist_ok=True)
        with whole_files.replacing(path / "model.safetensors") as partial:
            save_file({k: v.to(dtype).contiguous() for k, v in encoder.state_dict().items()}, partial)
        config = {"words": encoder.words, "width": encoder.table.embedding_dim, "length": encoder.length}
        whole_files.write(path / "config.json", json.dumps(config, indent=2) + "\n")
        whole_files.permit(*folder.rglob("*.safetensors"))
