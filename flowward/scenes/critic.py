"""A small network that predicts the checker's verdict from pixels and the content of a prompt, and has a gradient.

It exists so that methods that need the gradient of a reward can be tried on the built-in world. It is trained by
critic_training.py; its errors are in docs/scenes.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..prompts.scenes import COLOURS, SHAPES, Request, Thing
from ..system import whole_files
from .render import MAX_OBJECTS, SIZE

RELATIONS = ("left of", "above")
_THING = len(SHAPES) + len(COLOURS) + MAX_OBJECTS
FEATURES = 2 * _THING + len(RELATIONS)


def features(requests: Sequence[Request]) -> Tensor:
    """The contents of N prompts as numbers, [N, FEATURES]: shape, colour and count of two things, and their relation.

    A colour that is not specified, a second thing and a relation that are not there are zeros.
    """
    rows = []
    for request in requests:
        first, *rest = request.things
        row = [*_thing(first), *(_thing(rest[0]) if rest else [0.0] * _THING)]
        rows.append([*row, *(float(request.relation == name) for name in RELATIONS)])
    return torch.tensor(rows)


def _thing(thing: Thing) -> list[float]:
    numbers = range(1, MAX_OBJECTS + 1)
    return [
        *(float(thing.shape == name) for name in SHAPES),
        *(float(thing.colour == name) for name in COLOURS),
        *(float(thing.count == number) for number in numbers),
    ]


class Block(nn.Module):
    """Two convolutions with a residual; the prompt scales and shifts the channels between them."""

    def __init__(self, width: int, wide: int, stride: int, prompt: int):
        super().__init__()
        self.first = nn.Conv2d(width, wide, 3, stride, 1)
        self.normal = nn.GroupNorm(8, wide)
        self.modulate = nn.Linear(prompt, 2 * wide)
        self.second = nn.Conv2d(wide, wide, 3, 1, 1)
        self.skip = nn.Conv2d(width, wide, 1, stride)

    def forward(self, x: Tensor, prompt: Tensor) -> Tensor:
        scale, shift = self.modulate(prompt)[..., None, None].chunk(2, 1)
        y = F.silu(self.normal(self.first(x)) * (1 + scale) + shift)
        return F.silu(self.skip(x) + self.second(y))


class Critic(nn.Module):
    """Images [N, 3, 32, 32] in [0, 1] and features [N, FEATURES] -> logits [N, 2]: of `strict`, and of `soft`.

    The sigmoid of the first is the probability that the picture passes; that of the second is the soft score.
    """

    def __init__(self, width: int = 48, wide: int = 96, prompt: int = 64):
        super().__init__()
        self.config = {"width": width, "wide": wide, "prompt": prompt}
        self.read = nn.Sequential(nn.Linear(FEATURES, prompt), nn.SiLU(), nn.Linear(prompt, prompt), nn.SiLU())
        self.stem = nn.Conv2d(12 + 2, width, 3, 1, 1)
        self.blocks = nn.ModuleList(
            [Block(width, width, 1, prompt), Block(width, wide, 2, prompt), Block(wide, wide, 1, prompt)]
        )
        self.narrow = nn.Conv2d(wide, 8, 1)
        self.head = nn.Sequential(nn.Linear(8 * 64 + wide + prompt, 96), nn.SiLU(), nn.Linear(96, 2))
        side = torch.linspace(-1, 1, SIZE // 2)
        self.register_buffer("places", torch.stack(torch.meshgrid(side, side, indexing="ij"))[None], persistent=False)

    def forward(self, images: Tensor, prompts: Tensor) -> Tensor:
        prompt = self.read(prompts)
        x = F.pixel_unshuffle(images * 2 - 1, 2)
        x = self.stem(torch.cat([x, self.places.expand(len(x), -1, -1, -1)], 1))
        for block in self.blocks:
            x = block(x, prompt)
        found: Tensor = self.head(torch.cat([self.narrow(x).flatten(1), x.mean((2, 3)), prompt], 1))
        return found

    def save(self, folder: Path) -> None:
        """Save it, rounded to 16 bits, in the layout of the built-in model's networks."""
        folder.mkdir(parents=True, exist_ok=True)
        with whole_files.replacing(folder / "model.safetensors") as partial:
            save_file({name: tensor.half().contiguous() for name, tensor in self.state_dict().items()}, partial)
        whole_files.write(folder / "config.json", json.dumps(self.config, indent=2) + "\n")
        whole_files.permit(folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Critic:
        """Load a folder written by `save`, as float32."""
        made = cls(**json.loads((folder / "config.json").read_text("utf-8")))
        weights = load_file(folder / "model.safetensors")
        made.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
        return made.requires_grad_(False).eval()
