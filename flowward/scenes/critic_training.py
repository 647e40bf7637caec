"""Train the critic on the checker's verdicts, and measure its errors: python -m flowward.scenes.critic_training FOLDER.

Pictures come from the renderer (right, wrong, blurred, noisy, mixed with others), from the built-in model (its samples,
and its clean predictions on the way), and from the critic's own mistakes: samples that were changed to raise its score.
The last kind matters: a network that has not seen them gives them high scores, whatever the checker says.
Everything is a function of the seed. A call that is interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..prompts.scenes import CATEGORIES, COLOURS, SHAPES, Request, parse, split
from ..system import checkpoint, strict_json
from ..system.streams import generator
from .checker import Found, judge, look
from .critic import CELLS, STATES, Critic, features, score
from .network import Networks
from .render import SIZE, misread, render

ROUNDS = 3  # of training; after each but the last, pictures that fool the critic are added
STEPS = 250  # training steps of a round
SCHEDULE = 1000  # steps that the cosine of the learning rate is laid out for; it is cut before
BATCH = 128
RATE = 2e-3
RENDERED, SAMPLED, FOOLED = 6144, 1536, 384  # pictures per kind (and round)
PREDICTED = (3, 6)  # clean predictions that are kept, by the number of the step, of ten
ASCENT, LENGTH = 8, 0.15  # steps up the critic's score, and the RMS of each in latent space


@dataclass
class Pool:
    """Pictures with two prompts each, what the checker sees in them, and its verdicts."""

    images: Tensor  # [N, 3, 32, 32] float16
    cells: Tensor  # [N, 3, CELLS, CELLS] int: state, shape and colour of what is centred in a cell
    prompts: Tensor  # [N, 2, FEATURES]
    strict: Tensor  # [N, 2]
    soft: Tensor  # [N, 2]

    def __add__(self, other: Pool) -> Pool:
        return Pool(*(torch.cat([getattr(self, each.name), getattr(other, each.name)]) for each in fields(self)))

    def rows(self, rows: Tensor) -> Pool:
        return Pool(*(getattr(self, each.name)[rows] for each in fields(self)))

    @classmethod
    def judged(cls, images: Tensor, requests: list[Request], others: list[Request]) -> Pool:
        """With the verdicts of the checker on the pictures as they are stored."""
        images = images.clamp(0, 1).half()
        seen = look(images.float().numpy())
        verdicts = [
            [judge(found, request) for found, request in zip(seen, each, strict=True)] for each in (requests, others)
        ]
        strict, soft = (
            torch.tensor([[float(getattr(each, name)) for each in side] for side in verdicts]).T
            for name in ("strict", "soft")
        )
        prompts = torch.stack([features(requests), features(others)], 1)
        return cls(images, torch.stack([_cells(found or ()) for found in seen]), prompts, strict, soft)


def _cells(found: tuple[Found, ...]) -> Tensor:
    """The cells of one picture, [3, CELLS, CELLS]."""
    cells = torch.zeros(3, CELLS, CELLS, dtype=torch.long)
    for each in found:
        row, column = (min(CELLS - 1, max(0, int(at * CELLS / SIZE))) for at in (each.y, each.x))
        state = STATES.index("object" if each.is_object else "unclear")
        cells[:, row, column] = torch.tensor([state, SHAPES.index(each.shape), COLOURS.index(each.colour)])
    return cells


def texts(count: int, held_out: bool, rng: np.random.Generator) -> list[str]:
    """Prompts of one side of the split, equally many per category."""
    choices = [split(held_out, category) for category in CATEGORIES]
    return [choices[n % len(choices)][int(rng.integers(len(choices[n % len(choices)])))] for n in range(count)]


def _also_others(images: Tensor, requests: list[Request], held_out: bool, rng: np.random.Generator) -> Pool:
    """Each picture with its own prompt, and with another of its category."""
    others = [parse(text).request for text in texts(len(requests), held_out, rng)]
    return Pool.judged(images, requests, others)


def rendered(count: int, held_out: bool, seed: int) -> Pool:
    """Drawn pictures: a third is wrong in one respect, and half of all are blurred, noisy or mixed with another."""
    rng = np.random.default_rng((seed, 0))
    asked = [parse(text).request for text in texts(count, held_out, rng)]
    shown = [misread(request, rng) if rng.random() < 1 / 3 else request for request in asked]
    x = torch.from_numpy(render(shown, rng))
    stream = generator("critic rendered", seed)
    kind = torch.randint(6, (count, 1, 1, 1), generator=stream)
    amount = torch.rand(count, 1, 1, 1, generator=stream)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    noisy = x + 0.25 * amount * torch.randn(x.shape, generator=stream)
    mixed = x.lerp(x.roll(1, 0), 0.5 * amount)
    for number, other in enumerate((x.lerp(blurred, amount), noisy, mixed)):
        x = torch.where(kind == number, other, x)
    return _also_others(x, asked, held_out, rng)


@torch.no_grad()
def _trajectories(networks: Networks, prompts: list[str], steps: int, key: tuple[int, ...]) -> Iterator[Tensor]:
    """The clean predictions of Euler's method, step by step; the last are the samples, [N, 4, 8, 8]."""
    words, pooled = networks.text_encoder(networks.text_encoder.tokenize(prompts))
    x = torch.randn(len(prompts), 4, 8, 8, generator=generator("critic noise", *key))
    for number in range(steps):
        t = 1 - number / steps
        with sdpa_kernel(SDPBackend.MATH):
            v = networks.transformer(x, words, pooled, torch.full((len(x),), 1000 * t)).sample
        yield x - t * v
        x = x - v / steps


def decoded(networks: Networks, x: Tensor) -> Tensor:
    """The pictures of latents, in [0, 1]."""
    config = networks.autoencoder.config
    y: Tensor = networks.autoencoder.decode(x / config.scaling_factor + config.shift_factor).sample
    return (y / 2 + 0.5).clamp(0, 1)


def sampled(networks: Networks, count: int, held_out: bool, seed: int, steps: int = 10) -> tuple[Pool, Tensor]:
    """Samples of the model and its predictions on the way; and the latents of the samples."""
    pools, latents = list[Pool](), list[Tensor]()
    for start in range(0, count, BATCH):
        rng = np.random.default_rng((seed, 1, start))
        asked = texts(min(BATCH, count - start), held_out, rng)
        requests = [parse(text).request for text in asked]
        kept = (*PREDICTED, steps - 1) if not held_out else (steps - 1,)
        for number, x in enumerate(_trajectories(networks, asked, steps, (seed, start))):
            if number in kept:
                with torch.no_grad():
                    pools.append(_also_others(decoded(networks, x), requests, held_out, rng))
        latents.append(x)
    return sum(pools[1:], pools[0]), torch.cat(latents)


def fooled(networks: Networks, critic: Critic, count: int, held_out: bool, seed: int) -> Pool:
    """Samples after steps up the critic's score in latent space, half way and at the end, with verdicts."""
    pools = []
    for start in range(0, count, BATCH):
        rng = np.random.default_rng((seed, 2, start))
        asked = texts(min(BATCH, count - start), held_out, rng)
        requests = [parse(text).request for text in asked]
        *_, x = _trajectories(networks, asked, 10, (seed, start))
        prompts = features(requests)
        for number in range(ASCENT):
            x = x.detach().requires_grad_()
            (up,) = torch.autograd.grad(score(critic(decoded(networks, x), prompts)).sum(), x)
            size = up.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-8)
            x = x.detach() + LENGTH * up / size
            if number in (ASCENT // 2 - 1, ASCENT - 1):
                with torch.no_grad():
                    pools.append(_also_others(decoded(networks, x), requests, held_out, rng))
    return sum(pools[1:], pools[0])


def loss(critic: Critic, pool: Pool) -> Tensor:
    """Cross-entropy of what is in the cells, and of both verdicts on both prompts."""
    content = critic.read(pool.images.float())
    state, shape, colour = pool.cells.unbind(1)
    there = (state > 0).float()
    total = 20 * F.cross_entropy(content.state, state)
    for logits, target in ((content.shape, shape), (content.colour, colour)):
        total = total + (F.cross_entropy(logits, target, reduction="none") * there).sum() / there.sum().clamp_min(1)
    for side in range(2):
        target = torch.stack([pool.strict[:, side], pool.soft[:, side]], 1)
        total = total + F.binary_cross_entropy_with_logits(critic.compare(content, pool.prompts[:, side]), target)
    return total


@torch.no_grad()
def errors(critic: Critic, pool: Pool) -> dict[str, float]:
    """AUC, accuracy and calibration error (ten bins) of the predicted pass, and the error of the score."""
    parts = zip(pool.images.split(256), pool.prompts.split(256), strict=True)
    logits = torch.cat([critic(x.float(), prompts[:, 0]) for x, prompts in parts])
    p, y = logits[:, 0].sigmoid(), pool.strict[:, 0]
    order = p.argsort()
    rank = torch.empty_like(p)
    rank[order] = torch.arange(1, len(p) + 1, dtype=p.dtype)
    right, wrong = y.sum().item(), (1 - y).sum().item()
    auc = (rank[y == 1].sum().item() - right * (right + 1) / 2) / max(1.0, right * wrong)
    bins = (10 * p).long().clamp(0, 9)
    gap = sum(abs((p - y)[bins == b].sum().item()) for b in range(10)) / len(p)
    truth = (pool.strict + pool.soft)[:, 0] / 2
    return {
        "images": len(p), "passes": y.mean().item(), "predicted": p.mean().item(), "auc": auc,
        "accuracy": ((p > 0.5) == (y == 1)).float().mean().item(), "calibration": gap,
        "score": score(logits).mean().item(), "checker": truth.mean().item(),
        "error": (score(logits) - truth).abs().mean().item(),
    }  # fmt: skip


def train(folder: Path, seed: int = 0, rounds: int = ROUNDS, steps: int = STEPS) -> Iterator[dict[str, object]]:
    """Train the critic in `folder`, yielding log lines; the result is in folder/critic."""
    folder.mkdir(parents=True, exist_ok=True)
    networks = Networks.load(Path(__file__).parent / "weights")
    for each in (networks.transformer, networks.autoencoder, networks.text_encoder):
        each.requires_grad_(False)
    torch.manual_seed(seed)
    critic = Critic()
    adam = torch.optim.AdamW(critic.parameters(), RATE, weight_decay=0.01)
    state, at = folder / "critic.safetensors", 0
    if state.exists():
        saved = checkpoint.load(state)
        critic.load_state_dict(saved["weights"])
        adam.load_state_dict(saved["adam"])
        at = int(saved["step"])

    def kept(name: str, make: object) -> Pool:
        path = folder / f"{name}.safetensors"
        if not path.exists():
            pool = make()  # type: ignore[operator]
            checkpoint.save(path, {each.name: getattr(pool, each.name) for each in fields(Pool)})
        return Pool(**checkpoint.load(path))

    pool = kept("rendered", lambda: rendered(RENDERED, False, seed))
    for part in range(SAMPLED // 512):
        pool = pool + kept(f"sampled-{part}", lambda part=part: sampled(networks, 512, False, 100 * seed + part)[0])
    for number in range(1, (at + steps - 1) // steps):  # of the rounds that have begun
        pool = pool + kept(f"fooled-{number}", lambda: None)
    total = rounds * steps
    for step in range(at, total):
        number = step // steps
        if step and step % steps == 0:
            pool = pool + kept(
                f"fooled-{number}", lambda number=number: fooled(networks, critic, FOOLED, False, 10_000 + number)
            )
        chosen = torch.randint(len(pool.strict), (BATCH,), generator=generator("critic batch", seed, step))
        for group in adam.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * 0.5 * (1 + np.cos(np.pi * step / SCHEDULE))
        value = loss(critic, pool.rows(chosen))
        adam.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
        adam.step()
        if (step + 1) % 50 == 0 or step + 1 == total:
            checkpoint.save(state, {"step": step + 1, "weights": critic.state_dict(), "adam": adam.state_dict()})
            yield {"step": step + 1, "loss": value.item()}
    critic.save(folder / "critic")
    yield from measured(Critic.load(folder / "critic"), networks)


def measured(critic: Critic, networks: Networks) -> Iterator[dict[str, object]]:
    """The errors on prompts that were held out, by kind of picture."""
    yield {"kind": "rendered", **errors(critic, rendered(2048, True, 1))}
    yield {"kind": "sampled", **errors(critic, sampled(networks, 768, True, 1)[0])}
    yield {"kind": "fooled", **errors(critic, fooled(networks, critic, 384, True, 20_000))}


def main() -> None:
    """Train in the folder that is named, and print log lines."""
    parser = argparse.ArgumentParser(description="train the critic of the scenes world")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with open(chosen.folder.with_suffix(".jsonl"), "a", encoding="utf-8") as log:
        for line in train(chosen.folder, chosen.seed):
            print(json.dumps(line), flush=True)
            log.write(strict_json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
