"""A small network that predicts the checker's verdict from pixels and the content of a prompt, and has a gradient.

It exists so that methods that need the gradient of a reward can be tried on the built-in world. It is trained by
critic_training.py; its errors are in docs/scenes.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..prompts.scenes import COLOURS, SHAPES, Request, Thing
from ..system import whole_files
from .render import MAX_OBJECTS, SIZE

SHIPPED = Path(__file__).parent / "weights" / "critic"
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


def score(logits: Tensor) -> Tensor:
    """Half the probability of a pass plus half the soft score, [N]: what the reward `scenes` is for the checker."""
    return logits.sigmoid().mean(1)


class Block(nn.Module):
    """Two convolutions with a residual."""

    def __init__(self, width: int, wide: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(width, wide, 3, stride, 1)
        self.normal = nn.GroupNorm(8, wide)
        self.second = nn.Conv2d(wide, wide, 3, 1, 1)
        self.skip = nn.Conv2d(width, wide, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.skip(x) + self.second(F.silu(self.normal(self.first(x)))))


CELLS = SIZE // 4  # of a side; the network says what is in each
STATES = ("nothing", "object", "unclear")
KINDS = (len(STATES), len(SHAPES), len(COLOURS))


@dataclass(frozen=True)
class Content:
    """What a network reads in pictures, as probabilities of each cell."""

    state: Tensor  # [N, 3, CELLS, CELLS] logits
    shape: Tensor  # [N, 6, CELLS, CELLS] logits, of an object that is centred there
    colour: Tensor  # [N, 8, CELLS, CELLS] logits
    rest: Tensor  # [N, 8] what else it noticed


class Critic(nn.Module):
    """Images [N, 3, 32, 32] in [0, 1] and features [N, FEATURES] -> logits [N, 2]: of `strict`, and of `soft`.

    The sigmoid of the first is the probability that the picture passes; that of the second is the soft score. The
    network first reads which objects are where, whatever the prompt, and then compares that with the prompt.
    """

    def __init__(self, width: int = 40, wide: int = 80):
        super().__init__()
        self.config = {"width": width, "wide": wide}
        self.stem = nn.Conv2d(12, width, 3, 1, 1)
        self.blocks = nn.ModuleList([Block(width, width, 1), Block(width, wide, 2), Block(wide, wide, 1)])
        self.cells = nn.Conv2d(wide, sum(KINDS), 1)
        self.rest = nn.Linear(2 * wide, 8)
        self.head = nn.Sequential(nn.Linear(26, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def read(self, images: Tensor) -> Content:
        """What is in the pictures [N, 3, 32, 32]."""
        x = self.stem(F.pixel_unshuffle(images * 2 - 1, 2))
        for block in self.blocks:
            x = block(x)
        state, shape, colour = self.cells(x).split(KINDS, 1)
        return Content(state, shape, colour, self.rest(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)))

    def compare(self, content: Content, prompts: Tensor) -> Tensor:
        """Logits [N, 2] of what is in the pictures against prompts [N, FEATURES]."""
        state, shape, colour = (each.softmax(1) for each in (content.state, content.shape, content.colour))
        clear, unclear = state[:, 1], state[:, 2].sum((1, 2))
        total, numbers, places = clear.sum((1, 2)), [], []
        wanted = torch.zeros_like(total)
        explained = torch.zeros_like(total)
        side = (torch.arange(CELLS, device=clear.device) + 0.5) / CELLS * 2 - 1
        for start in (0, _THING):
            thing = prompts[:, start : start + _THING]
            kind, paint, count = thing.split((len(SHAPES), len(COLOURS), MAX_OBJECTS), 1)
            asked = count @ torch.arange(1.0, MAX_OBJECTS + 1, device=count.device)
            alike = clear * (shape * kind[..., None, None]).sum(1)
            free = 1 - paint.sum(1)[:, None, None]
            match = alike * (free + (colour * paint[..., None, None]).sum(1))
            found = match.sum((1, 2))
            numbers += [found, alike.sum((1, 2)), asked, found - asked, (found - asked).abs()]
            wanted, explained = wanted + asked, explained + found
            mass = alike.sum((1, 2)) + 1e-3
            places.append(torch.stack([(alike.sum(1) @ side) / mass, (alike.sum(2) @ side) / mass], 1))
        numbers += [total, unclear, total - wanted, (total - wanted).abs(), total + unclear - explained]
        beside, above = prompts[:, 2 * _THING :].unbind(1)
        dx, dy = (places[1] - places[0]).unbind(1)
        along, across = beside * dx + above * dy, beside * dy.abs() + above * dx.abs()
        related = beside + above
        margin = torch.minimum(along - related * 4 / (SIZE / 2), 2 * along - across)
        found = torch.cat([torch.stack([*numbers, related, along, 4 * margin], 1), content.rest], 1)
        logits: Tensor = self.head(found)
        return logits

    def forward(self, images: Tensor, prompts: Tensor) -> Tensor:
        return self.compare(self.read(images), prompts)

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
