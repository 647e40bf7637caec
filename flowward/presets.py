"""Settings as published, and the same at the size of the built-in world (`scenes`), as data.

A published run trains LoRA adapters on Stable Diffusion 3.5 Medium at 512 px unless its source says otherwise; name the
model and the reward beside it. Batches are those of all its GPUs together; microbatches only have to divide them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .algorithms import ALGORITHMS, AWM, CRD, DGPO, DPO, FDFO, AdvantageFlow, DiffusionNFT, FlowAWR
from .credit import Softmax, ZScore
from .laws import Churn
from .points import Renoise, RenoiseGroups, RenoisePairs
from .rollout import Pairs, Sampler
from .snapshots import Decay
from .times import Times


@dataclass(frozen=True)
class Preset:
    """One setting of an algorithm: where it comes from, and what of `Settings` it fixes."""

    source: str
    algorithm: Any
    run: Mapping[str, Any] = field(default_factory=dict)  # fields of Run
    settings: Mapping[str, Any] = field(default_factory=dict)  # other fields of Settings


def _sd3(steps: int = 10, solver: Any = "dpm2", **more: Any) -> Sampler:
    return Sampler(steps, 3.0, "sd3", solver, **more)


def _run(
    prompts: int, images: int, microbatch: int, updates: int = 1, rate: float = 3e-4, **more: Any
) -> dict[str, Any]:
    """`prompts` x `images` per iteration."""
    return {
        "images_per_update": prompts * images // updates,
        "group_size": images,
        "updates_per_iteration": updates,
        "microbatch": microbatch,
        "rollout_batch": images,
        "learning_rate": rate,
        "weight_decay": 1e-4,
        "warmup": 0,
        **more,
    }


_LORA = {"lora_rank": 32}
_OWN_LEVELS = Renoise(9, Times("levels"))
_SLOW = Decay(0.999, slope=0.0075, start=75)

_AF = "arXiv:2605.26013; batch, steps, gamma, lambda as reported, learning rate and old policy not stated there"
_AWR = "arXiv:2606.30376 and its released code"
_NFT = "arXiv:2509.16117 and its released code"
_AWM = "arXiv:2509.25050 and its released code"
_FDFO = "arXiv:2603.12893 and its released code"
_DGPO = "arXiv:2510.08425 and its released code; samples come from `old` from the start, there after 200 or 500 steps"
_CRD = "arXiv:2603.14128 and Flow-Factory; centred within the prompt, there over the whole microbatch"
_DPO = "arXiv:2311.12908, online as in flow_grpo"

PRESETS: dict[str, dict[str, Preset]] = {
    "advantageflow": {
        "scenes": Preset("docs/benchmarks.md", AdvantageFlow()),
        "paper": Preset(
            _AF,
            AdvantageFlow(gamma=1.1, rollout=_sd3(solver="euler"), points=Renoise(1)),
            _run(32, 4, 8),
            _LORA,
        ),
        "paper-large": Preset(
            _AF,
            AdvantageFlow(gamma=1.1, rollout=_sd3(solver="euler"), points=Renoise(1)),
            _run(32, 16, 8),
            _LORA,
        ),
        "paper-adaptive": Preset(
            _AF,
            AdvantageFlow(gamma="1-A", rollout=_sd3(solver="euler"), points=Renoise(1)),
            _run(32, 4, 8),
            _LORA,
        ),
    },
    "flowawr": {
        "scenes": Preset("docs/benchmarks.md", FlowAWR()),
        "pickscore": Preset(_AWR, FlowAWR(rollout=_sd3(), points=_OWN_LEVELS), _run(48, 24, 72), _LORA),
        "hpsv2": Preset(_AWR, FlowAWR(rollout=_sd3(), points=_OWN_LEVELS), _run(48, 24, 72), _LORA),
        "multi": Preset(
            f"{_AWR}; PickScore + HPSv2.1 + CLIPScore, weight 1 each",
            FlowAWR(rollout=_sd3(), points=_OWN_LEVELS),
            _run(48, 24, 72),
            _LORA,
        ),
        "geneval": Preset(
            _AWR,
            FlowAWR(rollout=_sd3(), points=_OWN_LEVELS, credit=Softmax(gate="group")),
            _run(48, 24, 72),
            _LORA,
        ),
        "ocr": Preset(
            _AWR,
            FlowAWR(rollout=_sd3(), points=_OWN_LEVELS, credit=Softmax(gate="group")),
            _run(48, 24, 72, updates=2),
            _LORA,
        ),
        "video": Preset(
            f"{_AWR}, VideoAWR on Wan2.1 1.3B at 480 x 832 x 81: guided rollouts, unguided anchors, one time per video",
            FlowAWR(
                rollout=_sd3(20, "euler", guidance=4.5),
                points=Renoise(1, Times("levels", last=10)),
                credit=Softmax(spread="group"),
                old=_SLOW,
            ),
            _run(48, 8, 4, rate=1e-4),
            _LORA,
        ),
    },
    "diffusion_nft": {
        "scenes": Preset("docs/benchmarks.md", DiffusionNFT()),
        **{
            reward: Preset(_NFT, DiffusionNFT(rollout=_sd3(), points=_OWN_LEVELS), _run(48, 24, 72), _LORA)
            for reward in ("geneval", "pickscore", "hpsv2")
        },
        "ocr": Preset(
            _NFT,
            DiffusionNFT(beta=0.1, rollout=_sd3(), points=_OWN_LEVELS, old=_SLOW),
            _run(48, 24, 72, updates=2),
            _LORA,
        ),
        "multi": Preset(
            f"{_NFT}; rewards summed up",
            DiffusionNFT(beta=0.1, rollout=_sd3(25), points=Renoise(24, Times("levels"))),
            _run(48, 24, 72),
            _LORA,
        ),
    },
    "awm": {
        "scenes": Preset("docs/benchmarks.md", AWM()),
        "geneval": Preset(
            _AWM,
            AWM(rollout=_sd3(14, "sa"), points=Renoise(6, Times("bins", first=1, last=12))),
            _run(72, 24, 18, ema_decay=0.99),
            _LORA,
        ),
        "ocr": Preset(
            _AWM,
            AWM(k_ref=3e-3, rollout=_sd3(14, "sa"), points=Renoise(6, Times("bins", first=1, last=12))),
            _run(72, 24, 18, ema_decay=0.99),
            _LORA,
        ),
        "pickscore": Preset(
            _AWM,
            AWM(k_ref=1e-4, rollout=_sd3(14, "sa", tau=0.0), points=Renoise(6, Times("bins", last=12))),
            _run(24, 24, 18, ema_decay=0.99),
            _LORA,
        ),
    },
    "fdfo": {
        "scenes": Preset(
            "docs/benchmarks.md",
            FDFO(),
            {"group_size": 2, "images_per_update": 72, "updates_per_iteration": 4, "learning_rate": 1e-4},
        ),
        "combined": Preset(
            f"{_FDFO}; PickScore + 0.1 VLM alignment",
            FDFO(rollout=Pairs(40, 3.0, "sd3", Churn(0.0025))),
            _run(432, 2, 9, updates=4, rate=3e-5),
            _LORA,
        ),
        "pickscore": Preset(
            _FDFO,
            FDFO(rollout=Pairs(40, 3.0, "sd3", Churn(0.0025))),
            _run(432, 2, 9, updates=4, rate=3e-5),
            _LORA,
        ),
    },
    "dgpo": {
        "scenes": Preset("docs/benchmarks.md", DGPO()),
        "geneval": Preset(
            _DGPO,
            DGPO(
                rollout=_sd3(guidance=4.5), credit=ZScore("group"), points=RenoiseGroups(4, Times("levels", last=5))
            ),
            _run(8, 16, 16),
            {"lora_rank": 64},
        ),
        "ocr": Preset(
            _DGPO,
            DGPO(rollout=_sd3(guidance=4.5), points=RenoiseGroups(4, Times("levels", last=7))),
            _run(8, 16, 16),
            {"lora_rank": 64},
        ),
        "pickscore": Preset(
            _DGPO,
            DGPO(
                beta=10.0, clip=0.05, k_ref=1e-3, rollout=_sd3(guidance=4.5),
                points=RenoiseGroups(4, Times("levels", last=7)),
            ),
            _run(8, 24, 24),
            {"lora_rank": 64},
        ),
    },
    "crd": {
        "scenes": Preset("docs/benchmarks.md", CRD()),
        "ocr": Preset(
            _CRD,
            CRD(reference_guidance=4.5, rollout=_sd3(solver="euler"), points=RenoiseGroups(20)),
            _run(48, 24, 24, updates=2),
            _LORA,
        ),
    },
    "dpo": {
        "scenes": Preset("docs/benchmarks.md", DPO()),
        "pickscore": Preset(
            _DPO,
            DPO(rollout=_sd3(guidance=4.5, solver="euler"), points=RenoisePairs(39, Times("logit-normal", shift=3.0))),
            _run(48, 24, 48),
            _LORA,
        ),
    },
}  # fmt: skip

assert PRESETS.keys() == ALGORITHMS.keys()
