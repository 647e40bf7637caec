"""Settings as published, and the same at the size of the built-in world (`scenes`), as data.

A published run trains LoRA adapters on Stable Diffusion 3.5 Medium at 512 px unless its source says otherwise; name the
model and the reward beside it. Batches are those of all its GPUs together; microbatches only have to divide them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

from ..learning.credit import Softmax, ZScore
from ..learning.moves import RandomSteps
from ..learning.points import Renoise, RenoiseGroups, RenoisePairs
from ..learning.snapshots import Decay
from ..process.laws import Churn
from ..process.plans import Branches, Chain
from ..process.rollout import Pairs, Sampler
from ..process.times import Times
from ..process.windows import Window
from ..system.errors import unknown
from . import (
    ALGORITHMS,
    AWM,
    CRD,
    DDPO,
    DGPO,
    DPO,
    FDFO,
    G2RPO,
    AdvantageFlow,
    DanceGRPO,
    DiffusionNFT,
    FlowAWR,
    FlowGRPO,
    FlowGRPOFast,
    GRPOGuard,
    MixGRPO,
    MixGRPOFlash,
    TempFlowGRPO,
)


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
        "rollout_batch": images * ceil(24 / images),
        "learning_rate": rate,
        "weight_decay": 1e-4,
        "warmup": 0,
        **more,
    }


_LORA = {"lora_rank": 32}
_BUFFERED = ZScore("group", 1e-6, least=16)
_OWN_LEVELS = Renoise(9, Times("levels"))
_FAST = Decay(0.5, slope=0.001)
_SLOW = Decay(0.999, slope=0.0075, start=75)

_AF = (
    "arXiv:2605.26013, which has one setting for all rewards; batch, steps, gamma, lambda as reported, learning rate "
    "and old policy not stated there, the denominator not in the paper"
)
_AWR = "arXiv:2606.30376 and its released code"
_NFT = "arXiv:2509.16117 and its released code"
_AWM = "arXiv:2509.25050 and its released code, whose SA-Solver and choice of times per microbatch differ in detail"
_FDFO = "arXiv:2603.12893 and its released code"
_DGPO = "arXiv:2510.08425 and its released code; samples come from `old` from the start, there after 200 or 500 steps"
_CRD = "arXiv:2603.14128 and Flow-Factory; centred within the prompt, there over the whole microbatch"
_DPO = "arXiv:2311.12908, online as in flow_grpo"

_DDPO = "arXiv:2305.13301 and its PyTorch code, on Stable Diffusion 1"
_GRPO = "arXiv:2505.05470 and its released code"
_DANCE = "arXiv:2505.07818 and its released code, full fine-tuning of FLUX.1-dev at 720 px"
_MIX = "arXiv:2507.21802 and its released code, full fine-tuning of FLUX.1-dev at 720 px"
_TEMP = "arXiv:2508.04324 and its released code"
_G2 = "arXiv:2510.01982 and its released code, full fine-tuning of FLUX.1-dev at 720 px"
_GUARD = "arXiv:2510.22319 and its released code"


def _flux(algorithm: Any) -> Any:
    """With the guidance that FLUX.1-dev takes as an input; at its value of 1 the images are not that model's."""
    return replace(algorithm, rollout=replace(algorithm.rollout, guidance=3.5))


_SCENES: dict[str, Any] = {"steps": 10, "shift": 3.0, "grid": "linear", "guidance": 1.0}
_FEW = {"learning_rate": 2e-4}  # few random steps, and early ones
_TREES = {"learning_rate": 3e-4, "images_per_update": 576, "rollout_batch": 576}  # an image costs little here


def _scenes(algorithm: Any, clip: float = 1e-3, beta: float = 0.0, run: Mapping[str, Any] | None = None) -> Preset:
    """On an even grid with the shift of Stable Diffusion 3.

    The built-in model's samples have 256 numbers, not 65,536, so that ratios vary 16 times as much. Without a shift the
    steps near data, whose noise moves the density most and the image least, drown the others (docs/benchmarks.md).
    """
    small = replace(algorithm, rollout=replace(algorithm.rollout, **_SCENES), clip=clip, beta=beta)
    return Preset("docs/benchmarks.md", small, {"learning_rate": 1e-4, **(run or {})})


PRESETS: dict[str, dict[str, Preset]] = {
    "advantageflow": {
        "scenes": Preset("docs/benchmarks.md", AdvantageFlow(), {"schedule": "cosine"}),
        "paper": Preset(
            _AF,
            AdvantageFlow(gamma=1.1, rollout=_sd3(solver="euler"), points=Renoise(1), old=Decay(0.9)),
            _run(32, 4, 8),
            _LORA,
        ),
        "paper-large": Preset(
            _AF,
            AdvantageFlow(gamma=1.1, rollout=_sd3(solver="euler"), points=Renoise(1), old=Decay(0.9)),
            _run(32, 16, 8),
            _LORA,
        ),
        "paper-adaptive": Preset(
            _AF,
            AdvantageFlow(gamma="1-A", rollout=_sd3(solver="euler"), points=Renoise(1), old=Decay(0.9)),
            _run(32, 4, 8),
            _LORA,
        ),
    },
    "flowawr": {
        "scenes": Preset("docs/benchmarks.md", FlowAWR(), {"learning_rate": 2e-4}),
        "pickscore": Preset(_AWR, FlowAWR(rollout=_sd3(), points=_OWN_LEVELS, old=_FAST), _run(48, 24, 72), _LORA),
        "hpsv2": Preset(_AWR, FlowAWR(rollout=_sd3(), points=_OWN_LEVELS, old=_FAST), _run(48, 24, 72), _LORA),
        "multi": Preset(
            f"{_AWR}; PickScore + HPSv2.1 + CLIPScore, weight 1 each",
            FlowAWR(rollout=_sd3(), points=_OWN_LEVELS, old=_FAST),
            _run(48, 24, 72),
            _LORA,
        ),
        "geneval": Preset(
            _AWR,
            FlowAWR(rollout=_sd3(), points=_OWN_LEVELS, credit=Softmax(gate="group"), old=_FAST),
            _run(48, 24, 72),
            _LORA,
        ),
        "ocr": Preset(
            _AWR,
            FlowAWR(rollout=_sd3(), points=_OWN_LEVELS, credit=Softmax(gate="group"), old=_FAST),
            _run(48, 24, 72, updates=2),
            _LORA,
        ),
        "video": Preset(
            "arXiv:2606.30376, VideoAWR on Wan2.1 1.3B at 480 x 832 x 81, few times per video: guided rollouts, "
            "unguided anchors; solver and grid not stated there",
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
        "scenes": Preset("docs/benchmarks.md", DiffusionNFT(), {"learning_rate": 3e-4}),
        **{
            reward: Preset(_NFT, DiffusionNFT(rollout=_sd3(), points=_OWN_LEVELS, old=_FAST), _run(48, 24, 72), _LORA)
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
            DiffusionNFT(beta=0.1, rollout=_sd3(25), points=Renoise(24, Times("levels")), old=_FAST),
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
        "scenes": Preset("docs/benchmarks.md", DPO(), {"learning_rate": 1e-4}),
        "pickscore": Preset(
            _DPO,
            DPO(rollout=_sd3(guidance=4.5, solver="euler"), points=RenoisePairs(39, Times("logit-normal", shift=3.0))),
            _run(48, 24, 48),
            _LORA,
        ),
    },
    "ddpo": {
        "scenes": _scenes(DDPO(), run={"reward_buffer": 24}),
        "aesthetic": Preset(
            _DDPO, DDPO(credit=_BUFFERED), {**_run(256, 1, 49, updates=2), "reward_buffer": 32}, {"lora_rank": 4}
        ),
        "compressibility": Preset(
            _DDPO, DDPO(credit=_BUFFERED), {**_run(256, 1, 49, updates=4), "reward_buffer": 16}, {"lora_rank": 4}
        ),
    },
    "flow_grpo": {
        "scenes": _scenes(FlowGRPO()),
        **{
            reward: Preset(_GRPO, FlowGRPO(beta=beta), _run(48, 24, 81, updates=2), _LORA)
            for reward, beta in (("geneval", 0.04), ("ocr", 0.04), ("pickscore", 0.01))
        },
        "flux": Preset(
            f"{_GRPO}, FLUX.1-dev, PickScore",
            FlowGRPO(rollout=Chain(6, noise=0.9, guidance=3.5), beta=0.0),
            _run(48, 24, 15, updates=2),
            {"lora_rank": 64},
        ),
    },
    "flow_grpo_fast": {
        "scenes": _scenes(FlowGRPOFast()),  # at 2e-4 latents grow, and rewards fall again
        "no-guidance": Preset(
            f"{_GRPO}, GenEval and PickScore", FlowGRPOFast(), _run(48, 24, 27, updates=2), _LORA
        ),
        "branching": Preset(
            f"{_GRPO}, before October 2025",
            FlowGRPOFast(
                rollout=Branches(noise=0.8, high=6, one=True, fanout=9, cohorts="prompt", guidance=4.5),
                ratio="gaussian",
            ),
            {**_run(64, 18, 8, updates=2), "rollout_batch": 18},
            _LORA,
        ),
    },
    "dance_grpo": {
        "scenes": _scenes(DanceGRPO()),
        "flux": Preset(_DANCE, _flux(DanceGRPO()), _run(16, 12, 36, updates=3, rate=1e-5)),
        "hunyuan-video": Preset(
            f"{_DANCE.partition(',')[0]}, HunyuanVideo: 8 of 24 videos trained on; prompts per iteration as for FLUX",
            DanceGRPO(
                rollout=Chain(16, 5.0, "linear", "dance-sde", 0.25, share=0.6, shared_start=True),
                points=RandomSteps(extremes=8),
            ),
            _run(16, 24, 36, updates=2, rate=1e-5, mix="advantages"),
        ),
        "mix_grpo": Preset(
            f"{_MIX}, as compared with there: 14 of 24 steps trained on",
            _flux(DanceGRPO(rollout=Chain(25, 3.0, "linear", "dance-sde", 0.3, share=0.585, shared_start=True))),
            _run(32, 12, 56, updates=4, rate=1e-5),
        ),
    },
    "mix_grpo": {
        "scenes": _scenes(MixGRPO(rollout=Chain(10, window=Window(4, high=9), shared_start=True)), run=_FEW),
        "flux": Preset(_MIX, _flux(MixGRPO()), _run(32, 12, 32, updates=4, rate=1e-5, mix="advantages")),
    },
    "mix_grpo_flash": {
        "scenes": _scenes(
            MixGRPOFlash(rollout=Chain(10, window=Window(4, every=20, high=9), shared_start=True, tail=0.6)), run=_FEW
        ),
        "flux": Preset(_MIX, _flux(MixGRPOFlash()), _run(32, 12, 32, updates=4, rate=1e-5, mix="advantages")),
        "flux-frozen": Preset(
            f"{_MIX}: Flash*",
            _flux(
                MixGRPOFlash(
                    rollout=Chain(25, 3.0, "linear", window=Window(4, "frozen", high=23), shared_start=True, tail=0.2)
                )
            ),
            _run(32, 12, 32, updates=4, rate=1e-5, mix="advantages"),
        ),
    },
    "tempflow_grpo": {
        "scenes": _scenes(
            TempFlowGRPO(rollout=Branches(10, fanout=4)), run={**_TREES, "group_size": 36, "microbatch": 72}
        ),
        **{
            reward: Preset(
                f"{_TEMP}; 4 starts a prompt, 9 places, 6 children",
                TempFlowGRPO(beta=beta),
                {**_run(8, 216, 9, updates=2), "rollout_batch": 54},
                _LORA,
            )
            for reward, beta in (("geneval", 0.004), ("pickscore", 0.001))
        },
    },
    "g2rpo": {
        "scenes": _scenes(
            G2RPO(rollout=Branches(10, high=4, fanout=6, strides=(1, 2), cohorts="branch", shared_start=True)),
            run={**_TREES, "group_size": 48, "microbatch": 24, "learning_rate": 1.5e-4},  # at 3e-4 latents grow
        ),
        "flux": Preset(_G2, _flux(G2RPO()), {**_run(16, 288, 8, rate=2e-6, mix="advantages"), "rollout_batch": 288}),
    },
    "grpo_guard": {
        "scenes": _scenes(GRPOGuard(), clip=5e-5),
        **{
            reward: Preset(_GUARD, GRPOGuard(clip=clip), _run(48, 24, 81, updates=2, rate=1e-4), _LORA)
            for reward, clip in (("geneval", 2e-6), ("ocr", 2e-6), ("pickscore", 4e-6))
        },
    },
}  # fmt: skip

assert PRESETS.keys() == ALGORITHMS.keys()


def published(algorithm: str) -> str:
    """The preset for a real model where none is named: the first that was published.

    Raises:
        ValueError: there is no such algorithm.
    """
    if algorithm not in PRESETS:
        raise ValueError(unknown("algorithm", algorithm, PRESETS))
    return next(name for name in PRESETS[algorithm] if name != "scenes")
