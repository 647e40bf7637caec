"""Train the built-in base model from scratch: first the autoencoder, then the flow on its latents.

Every batch depends on (seed, stage, step) alone, so an interrupted and resumed run ends with the same weights. A share
`caption_errors` of the captions is wrong in one respect, like captions from the web. The base model then follows its
prompts most of the time, but not always, and reinforcement learning can improve it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..system import checkpoint, strict_json
from ..system.precision import Precision, autocast, resolve
from ..system.streams import generator
from .network import Networks
from .recipe import SHARD, Distil, Pretrain
from .world import WORLDS, World

STAGES = ("autoencoder", "flow")
_AUTOENCODER, _FLOW, _SCALE, _MEASURE = 0, 1, 2, 3  # keys of random streams
MEASURED = 220  # samples of which the accuracy is logged
SCALED = 1024  # pictures on which shift and scale of the latents are measured
FINE = 3  # so much more often the autoencoder sees categories with fine detail


def pictures(
    world: World, count: int, errors: float, rng: np.random.Generator, more: tuple[str, ...] = ()
) -> tuple[list[str], Tensor]:
    """Training pairs: `count` captions, and pictures [count, 3, H, W] in [-1, 1].

    There are equally many of each category, and as many again for each time that a category is named in `more`.
    """
    texts, requests = [], []
    language, categories = world.language, (*world.language.categories, *more)
    for index in range(count):
        choices = language.split(False, categories[index % len(categories)])
        text = choices[int(rng.integers(len(choices)))]
        request = language.prompts()[text].request
        texts.append(text)
        requests.append(world.misread(request, rng) if rng.random() < errors else request)
    return texts, torch.from_numpy(world.render(requests, rng)) * 2 - 1


def autoencoder_loss(networks: Networks, config: Pretrain, step: int) -> tuple[Tensor, dict[str, float]]:
    """Reconstruction error plus weighted KL of one batch, and metrics."""
    rng = np.random.default_rng((config.seed, _AUTOENCODER, step))
    world = WORLDS[config.world]
    _, x = pictures(world, config.autoencoder_batch, 0.5, rng, FINE * world.fine)
    with autocast(resolve(config.precision)):
        posterior = networks.autoencoder.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator(config.seed, _AUTOENCODER, step))
        y = networks.autoencoder.decode(posterior.mean + posterior.std * noise).sample.float()
    squared, absolute = (y - x).square().mean(), (y - x).abs().mean()
    kl = posterior.kl().float().mean() / noise[0].numel()
    return squared + 0.2 * absolute + config.kl * kl, {"mse": squared.item(), "kl": kl.item()}


@torch.no_grad()
def set_scale(networks: Networks, config: Pretrain) -> None:
    """Measure shift and scale of the latents, and store them in the autoencoder's config as SD3 does."""
    _, x = pictures(WORLDS[config.world], SCALED, config.caption_errors, np.random.default_rng((config.seed, _SCALE)))
    z = networks.autoencoder.encode(x).latent_dist.mean
    networks.autoencoder.register_to_config(shift_factor=z.mean().item(), scaling_factor=1 / z.std().item())


@dataclass
class Latents:
    """Endless batches of encoded pictures, drawn from shards; a picture is used `views` times on average."""

    networks: Networks
    config: Pretrain
    shard: int = -1
    texts: tuple[str, ...] = ()
    z: Tensor | None = None
    steps_per_shard: int = SHARD

    @torch.no_grad()
    def batch(self, step: int) -> tuple[list[str], Tensor]:
        """Captions and latents of one training step."""
        config, vae = self.config, self.networks.autoencoder
        shard = step // self.steps_per_shard
        if shard != self.shard:
            rng = np.random.default_rng((config.seed, _FLOW, shard))
            count = self.steps_per_shard * config.batch // config.views
            texts, x = pictures(WORLDS[config.world], count, config.caption_errors, rng)
            with autocast(resolve(config.precision)):
                z = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(256)]).float()
            self.z = (z - vae.config.shift_factor) * vae.config.scaling_factor
            self.texts, self.shard = tuple(texts), shard
        assert self.z is not None
        rng = np.random.default_rng((config.seed, _FLOW, shard, step))
        rows = rng.choice(len(self.texts), config.batch, replace=False)
        empty = rng.random(config.batch) < config.caption_dropout
        return ["" if e else self.texts[r] for r, e in zip(rows, empty, strict=True)], self.z[torch.from_numpy(rows)]


def flow_loss(networks: Networks, data: Latents, step: int) -> tuple[Tensor, dict[str, float]]:
    """Rectified-flow matching, E||v - (eps - x0)||^2 with t logit-normal (Esser et al., 2024, arXiv:2403.03206)."""
    texts, x0 = data.batch(step)
    stream = generator(data.config.seed, _FLOW, step)
    t = torch.randn(len(x0), generator=stream).sigmoid()
    noise = torch.randn(x0.shape, generator=stream)
    x = (1 - t.view(-1, 1, 1, 1)) * x0 + t.view(-1, 1, 1, 1) * noise
    # plain matrix products: at 24 tokens the CPU's fused attention makes a training step 1.5 times slower
    with autocast(resolve(data.config.precision)), sdpa_kernel(SDPBackend.MATH):
        words, pooled = networks.text_encoder(networks.text_encoder.tokenize(texts))
        v = networks.transformer(x, words, pooled, 1000 * t).sample.float()
    return (v - (noise - x0)).square().mean(), {}


@torch.no_grad()
def accuracy(networks: Networks, config: Pretrain) -> dict[str, float]:
    """Strict accuracy of samples of held-out prompts, without guidance, in 10 Euler steps."""
    world, vae = WORLDS[config.world], networks.autoencoder
    texts: list[str] = []
    for category in world.language.categories:
        known = world.language.split(True, category)
        rng = np.random.default_rng((config.seed, _MEASURE, len(texts)))
        texts += [known[i] for i in rng.integers(len(known), size=MEASURED // len(world.language.categories))]
    shape = (len(texts), world.design.latent_channels, world.design.size // 4, world.design.size // 4)
    x = torch.randn(shape, generator=generator(config.seed, _MEASURE))
    with autocast(resolve(config.precision)), sdpa_kernel(SDPBackend.MATH):
        words, pooled = networks.text_encoder(networks.text_encoder.tokenize(texts))
        for number in range(10, 0, -1):
            t = torch.full((len(x),), 100.0 * number)
            x = x - networks.transformer(x, words, pooled, t).sample.float() / 10
        images = vae.decode(x / vae.config.scaling_factor + vae.config.shift_factor).sample.float() / 2 + 0.5
    requests = [world.language.parse(text).request for text in texts]
    verdicts = world.check(images.clamp(0, 1).numpy(), requests)
    return {"strict": float(np.mean([v.strict for v in verdicts])), "soft": float(np.mean([v.soft for v in verdicts]))}


def _rate(step: int, total: int) -> float:
    """Linear warm-up over 2 %, then a cosine to zero."""
    warm = max(1, total // 50)
    return (step + 1) / warm if step < warm else 0.5 * (1 + np.cos(np.pi * (step - warm) / (total - warm)))


def fit(
    name: str,
    module: nn.Module,
    loss: Callable[[int], tuple[Tensor, dict[str, float]]],
    config: Pretrain | Distil,
    steps: int,
    stop: int,
    optimisers: list[torch.optim.Optimizer],
    ema: float = 0.0,
    begin: int = 0,
    measure: tuple[int, Callable[[], dict[str, float]]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Train one stage: `stop` of `steps` steps on `loss(step)`, resuming from a checkpoint if there is one.

    Yields a log line every 20 steps. At the end, `module` has the EMA of its weights (decay `ema`). `begin`: the first
    step, without a checkpoint. `measure`: every so many steps, figures of the module with these weights are added.
    """
    path = config.output / f"{name}.safetensors"
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]
    peak = [group["lr"] for group in groups]
    average = {key: value.detach().clone() for key, value in module.state_dict().items()}
    first = begin
    if path.exists():
        state = checkpoint.load(path)
        module.load_state_dict(state["weights"])
        average = state["average"]
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        groups = [group for optimiser in optimisers for group in optimiser.param_groups]
        first = state["step"]
    started, running, seen = time.perf_counter(), 0.0, 0
    for step in range(first, stop):
        for group, rate in zip(groups, peak, strict=True):
            group["lr"] = rate * _rate(step, steps)
        value, extra = loss(step)
        module.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        decay = min(ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for key, tensor in module.state_dict().items():
                average[key].lerp_(tensor, 1 - decay)
        running, seen = running + value.item(), seen + 1
        done = step + 1
        if done % 20 == 0 or done == stop:
            if measure and (done % measure[0] == 0 or done == stop):
                extra |= _measured(module, average, measure[1])
            seconds = round(time.perf_counter() - started, 1)
            yield {"stage": name, "step": done, "of": stop, "loss": running / seen, **extra, "seconds": seconds}
            running, seen = 0.0, 0
        if done % config.save_every == 0 or done == stop:
            state = {"step": done, "weights": module.state_dict(), "average": average, "precision": config.precision}
            checkpoint.save(path, {**state, "optimisers": [optimiser.state_dict() for optimiser in optimisers]})
    module.load_state_dict(average)


def _measured(
    module: nn.Module, average: dict[str, Tensor], measure: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """Figures of a module with averaged weights; it gets its own ones back."""
    own = {key: tensor.detach().clone() for key, tensor in module.state_dict().items()}
    module.load_state_dict(average)
    found = measure()
    module.load_state_dict(own)
    return found


def _adam(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.99), weight_decay=0.01)


def muon_and_adam(module: nn.Module, config: Pretrain | Distil) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024; scaling of arXiv:2502.16982) for the matrices of the blocks, AdamW for the rest."""
    named = list(module.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "transformer_blocks" in name]
    rest = [p for name, p in named if p.ndim != 2 or "transformer_blocks" not in name]
    muon = torch.optim.Muon(matrices, config.matrix_learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, _adam(rest, config.learning_rate)]


def _of_run(config: Pretrain) -> Precision:
    """The precision that a stopped run began with, whatever this processor prefers; of a new one, the asked one.

    Raises:
        ValueError: another one than its own is asked for.
    """
    states = [path for name in STAGES if (path := config.output / f"{name}.safetensors").exists()]
    begun = checkpoint.load(states[0]).get("precision") if states else None  # older ones do not say
    if begun and config.precision not in ("auto", begun):
        raise ValueError(f"{config.output} was begun with --precision {begun}, not {config.precision}: leave it out")
    return begun or resolve(config.precision)


def pretrain(config: Pretrain) -> Iterator[dict[str, Any]]:
    """Train both stages, yielding log lines; they are also written to log.jsonl, and the model to `output`/model."""
    config = replace(config, precision=_of_run(config))
    config.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    networks = Networks.new(WORLDS[config.world].design)
    vae = networks.autoencoder
    flow = nn.ModuleDict({"transformer": networks.transformer, "text_encoder": networks.text_encoder})
    if config.start and not networks.take(config.start) and config.begin:
        raise ValueError(f"{config.start} has no transformer with text encoder that could be at step {config.begin}")
    data = Latents(networks, config)

    def stages() -> Iterator[dict[str, Any]]:
        task = lambda step: autoencoder_loss(networks, config, step)  # noqa: E731
        adam = [_adam(vae.parameters(), config.autoencoder_learning_rate)]
        if not config.start:
            yield from fit("autoencoder", vae, task, config, config.autoencoder_steps, config.autoencoder_steps, adam)
        vae.requires_grad_(False)
        set_scale(networks, config)
        task = lambda step: flow_loss(networks, data, step)  # noqa: E731
        adam = muon_and_adam(flow, config)
        watch = (config.measure_every, lambda: accuracy(networks, config)) if config.measure_every else None
        yield from fit("flow", flow, task, config, config.steps, config.stop, adam, config.ema, config.begin, watch)

    with open(config.output / "log.jsonl", "a", encoding="utf-8") as log:
        for line in stages():
            log.write(strict_json.dumps(line) + "\n")
            log.flush()
            yield line
    networks.save(config.output / "model")
