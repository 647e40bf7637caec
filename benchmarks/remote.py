"""What it costs to compute a reward in another process: a round trip over loopback against a call in this one.

    python benchmarks/remote.py [--images 16] [--size 512] [--rounds 9]

The reward is the mean of the pixels, so nearly all of the time is packing, sending, checking and unpacking. The calls
take turns; medians are printed. Photographs compress worse than noise-free drawings and better than noise: the images
are smooth waves with a little noise.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from statistics import median
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from flowward.rewards import score
from flowward.rewards.service.remote import Remote
from flowward.rewards.service.wire import encode


def mean(images: Tensor, prompts: list[str], metadata: Any = None) -> Tensor:
    return images.flatten(1).mean(1)


def pictures(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    waves = torch.nn.functional.interpolate(torch.rand(count, 3, 9, 9, generator=generator), size, mode="bicubic")
    return (waves + 0.02 * torch.randn(waves.shape, generator=generator)).clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    images, prompts = pictures(options.images, options.size), ["a wave"] * options.images
    words = [sys.executable, "-m", "flowward", "serve-reward", f"{__file__}:mean", "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            address = next(word for word in server.stdout.readline().split() if word.startswith("http"))
            encodings = get_args(get_type_hints(Remote)["encoding"])
            ways: dict[str, Any] = {"in process": mean} | {e: Remote(address, encoding=e) for e in encodings}
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(options.rounds + 1):
                for name, reward in ways.items():
                    started = time.perf_counter()
                    found = score(name, reward, images, prompts)
                    if turn:  # the first warms up
                        seconds[name].append(time.perf_counter() - started)
                    assert torch.allclose(found, images.flatten(1).mean(1), atol=1e-3 if name != "float32" else 1e-6)
        finally:
            server.terminate()
    print(
        f"{options.images} images of {options.size} px, median of {options.rounds}, {torch.get_num_threads()} threads"
    )
    for name, each in seconds.items():
        size = "" if name == "in process" else f"{len(encode(images, prompts, None, name)) / 1e6:8.1f} MB"
        print(f"{name:12}{median(each) * 1000:9.0f} ms  (fastest {min(each) * 1000:.0f}){size}")


if __name__ == "__main__":
    main()
