"""What a window saves: time of an iteration of MixGRPO, Flash and Flash* over that of DanceGRPO, at equal images.

    python benchmarks/windows.py [--images 48] [--rounds 15] [--threads 1]

All on one grid of 25 steps (the published settings for FLUX), on the built-in model: DanceGRPO trains on 14 random
steps of each image, the others on a window of 4. The algorithms take turns in one process. Each round is 20 iterations
further on in a run of 300, so that the windows pass through the positions that they have there; a mean over the rounds
is then one over a run. (Li et al., 2025, arXiv:2507.21802, table 1: 0.52, 0.39 and 0.29.)
"""

from __future__ import annotations

import argparse
import time
from statistics import mean, median

import torch

from flowward import models, prompts, rewards
from flowward.algorithms.presets import PRESETS
from flowward.training.run import Run
from flowward.training.trainer import Trainer

ENTRANTS = {
    "dance_grpo": PRESETS["dance_grpo"]["mix_grpo"].algorithm,
    "mix_grpo": PRESETS["mix_grpo"]["flux"].algorithm,
    "mix_grpo_flash": PRESETS["mix_grpo_flash"]["flux"].algorithm,
    "mix_grpo_flash, frozen": PRESETS["mix_grpo_flash"]["flux-frozen"].algorithm,
}
APART = 20  # iterations between rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48, help="per iteration, in groups of 12")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    texts, reward = prompts.load("scenes"), rewards.load(["scenes"])
    trainers = {}
    for name, algorithm in ENTRANTS.items():
        run = Run(images_per_update=options.images, group_size=12, microbatch=options.images, learning_rate=1e-6)
        trainers[name] = Trainer(algorithm, models.load("scenes", precision="float32"), reward, texts, run)
        trainers[name].step()  # warms up
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for turn in range(options.rounds):
        for name, trainer in trainers.items():
            trainer.iteration = turn * APART
            started = time.perf_counter()
            trainer.step()
            seconds[name].append(time.perf_counter() - started)
    base = mean(seconds["dance_grpo"])
    print(f"{options.images} images, {options.rounds} rounds, {torch.get_num_threads()} threads")
    for name, each in seconds.items():
        print(f"{name:24}{mean(each):8.3f} s  (median {median(each):.3f})  {mean(each) / base:6.3f} of DanceGRPO's")


if __name__ == "__main__":
    main()
