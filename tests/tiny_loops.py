"""A small pipeline that nobody has written down, whose loop can do what flowward refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers
import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """One value for all pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_v = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_q(x) + self.to_v(x).tanh()  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """[B, 4, h, w], t [B], words [B, L, 4] -> [B, 4, h, w]."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Attention()])
        self.together, self.hidden = False, 0.0

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> tuple[Tensor]:
        seen = x + words.mean(1)[:, :, None, None] * t[:, None, None, None]
        seen = seen + self.hidden + (0.3 * seen.mean(0) if self.together else 0)
        return (self.blocks[0](seen.movedim(1, -1)).movedim(-1, 1).tanh(),)


class Autoencoder(nn.Module):
    """Three of the channels, twice as large."""

    dtype = torch.float32

    def decode(self, z: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (z[:, :3].repeat_interleave(2, -1).repeat_interleave(2, -2).tanh(),)


@dataclass
class Ways:
    """What the loop does."""

    step: bool = True  # calls scheduler.step
    second: bool = False  # calls another network
    pasted: bool = False  # changes the samples between steps
    momentum: bool = False  # guidance remembers earlier steps
    guided: bool = True  # has guidance
    squared: bool = False  # gives the scheduler the square of what the network returns
    clocked: bool = False  # gives the network the sine of the time
    together: bool = False  # rows of a batch change each other
    hidden: bool = False  # tells the network something beside its arguments


class LoopPipeline:
    """Its words are as many as the letters of the prompt."""

    config: ClassVar[dict[str, Any]] = {}

    def __init__(self, ways: Ways, scheduler: Any = None) -> None:
        torch.manual_seed(0)
        self.ways, self.vae, self.other = ways, Autoencoder(), nn.Linear(4, 4)
        self.transformer = Transformer()
        self.transformer.together = ways.together
        self.scheduler = scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)

    @property
    def components(self) -> dict[str, Any]:
        return {"transformer": self.transformer, "vae": self.vae, "other": self.other, "scheduler": self.scheduler}

    def encode_prompt(self, prompt: str) -> Tensor:
        codes = torch.tensor([ord(letter) for letter in f"{prompt}."], dtype=torch.float32)
        return torch.stack([(codes * k / 50).sin() for k in range(1, 5)], 1)[None]

    def prepare_latents(self, many: int, height: int, width: int, generator: Any) -> Tensor:
        return torch.randn(many, 4, height // 2, width // 2, generator=generator)

    def __call__(
        self,
        prompt: list[str],
        height: int = 32,
        width: int = 32,
        num_inference_steps: int = 4,
        guidance_scale: float = 4.0,
        generator: Any = None,
        output_type: str = "pil",
    ) -> Any:
        ways, longest = self.ways, max(map(len, prompt)) + 1
        words = torch.cat(
            [nn.functional.pad(w, (0, 0, 0, longest - w.shape[1])) for w in map(self.encode_prompt, prompt)]
        )
        x = self.prepare_latents(len(prompt), height, width, generator)
        first, memory = x, 0.0
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            time = (t.sin() if ways.clocked else t / 1000).expand(len(x))
            self.transformer.hidden = words.shape[1] / 10 if ways.hidden else 0.0
            v = self.transformer(x, time, words)[0]
            if ways.guided and guidance_scale > 1:
                v_0 = self.transformer(x, time, self.encode_prompt("").expand(len(x), -1, -1))[0]
                v = v_0 + guidance_scale * (v - v_0) + memory
                memory = 0.5 * v if ways.momentum else 0.0
            if ways.second:
                v = v + self.other(v.movedim(1, -1)).movedim(-1, 1)
            v = v.square() if ways.squared else v
            x = self.scheduler.step(v, t, x, return_dict=False)[0] if ways.step else x - 0.1 * v
            x = torch.cat([first[..., :1], x[..., 1:]], -1) if ways.pasted else x
        if output_type == "latent":
            return (x,)
        return ((self.vae.decode(2 * x + 0.5)[0] / 2 + 0.5).clamp(0, 1),)


class NeedsMaskPipeline(LoopPipeline):
    """Needs another input."""

    def __call__(self, prompt: list[str], mask: Any, **more: Any) -> Any:  # type: ignore[override]
        return super().__call__(prompt, **more)


def loop(scheduler: Any = None, **ways: bool) -> Any:
    return LoopPipeline(Ways(**ways), scheduler)
