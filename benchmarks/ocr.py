"""How fast the OCR reward is, where its time goes, and whether its settings change what it says.

    python benchmarks/ocr.py [--images 24] [--pixels 512] [--threads 1 2] [--sides 320 256] [--json figures.json]

Pictures: words in several sizes (14 to 72 px at 512 px), colours and angles on blurred noise; a third of them with a
letter that is wrong, a third blurred. Compared with RapidOCR as it is installed (736 px, with its angle classifier).
Processor time is what a busy machine leaves comparable; images per second are by the clock.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from flowward.prompts import load
from flowward.rewards.text.ocr import OCR, plain, similarity
from flowward.rewards.text.text_reader import reader


def picture(text: str, pixels: int, rng: np.random.Generator) -> Tensor:
    """[3, pixels, pixels] in [0, 1]."""
    noise = np.clip(rng.normal(128, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
    image = Image.fromarray(noise).resize((pixels, pixels), Image.Resampling.BICUBIC)
    size = int(rng.integers(14, 72) * pixels / 512)
    font = ImageFont.load_default(size)
    while font.getlength(text) > 0.9 * pixels:
        font = ImageFont.load_default(size := int(size * 0.9))
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    board = Image.new("RGB", (right - left + size, bottom - top + size), tuple(rng.integers(150, 256, 3).tolist()))
    ink = tuple(rng.integers(0, 90, 3).tolist())
    ImageDraw.Draw(board).text((size // 2 - left, size // 2 - top), text, font=font, fill=ink)
    board = board.rotate(float(rng.uniform(-8, 8)), expand=True, fillcolor=ink)
    room = max(1, pixels - board.width), max(1, pixels - board.height)
    image.paste(board, (int(rng.integers(room[0])), int(rng.integers(room[1]))))
    if rng.random() < 1 / 3:
        image = image.filter(ImageFilter.GaussianBlur(1.5 * pixels / 512))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def damaged(text: str, rng: np.random.Generator) -> str:
    place = int(rng.integers(len(text)))
    return text[:place] + "ABCDEFGHKLMNPRSTUVXYZ"[int(rng.integers(21))] + text[place + 1 :]


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, seconds by the clock, seconds of the processor)."""
    clock, processor = time.perf_counter(), time.process_time()
    found = call()
    return found, time.perf_counter() - clock, time.process_time() - processor


def installed(images: Tensor, texts: list[str]) -> dict[str, Any]:
    """RapidOCR without any setting but one thread."""
    from rapidocr import RapidOCR

    engine = RapidOCR(params={"Global.log_level": "critical", "EngineConfig.onnxruntime.intra_op_num_threads": 1})
    arrays = [np.ascontiguousarray(x) for x in (images * 255).byte().permute(0, 2, 3, 1).numpy()[..., ::-1]]
    engine(arrays[0])
    found, clock, processor = timed(lambda: [engine(array) for array in arrays])
    scores = [
        similarity(plain(" ".join(each.txts or ())), plain(text)) for each, text in zip(found, texts, strict=True)
    ]
    return figures(torch.tensor(scores), clock, processor) | {"scores": scores}


def figures(scores: Tensor, clock: float, processor: float) -> dict[str, Any]:
    return {
        "images_per_second": len(scores) / clock,
        "processor_ms": 1000 * processor / len(scores),
        "mean": scores.mean().item(),
        "right": (scores == 1).float().mean().item(),
    }


def ours(images: Tensor, texts: list[str], side: int, threads: int) -> dict[str, Any]:
    reader.cache_clear()
    reward = OCR(side=side, threads=threads)
    about = [{"text": text} for text in texts]
    reward(images[:2], texts[:2], about[:2])
    scores, clock, processor = timed(lambda: reward(images, texts, about))
    return figures(scores, clock, processor) | {"scores": scores.tolist()}


def profile(images: Tensor, side: int) -> dict[str, float]:
    """Processor time of each part on one thread, in ms per image."""
    engine = reader(side).engine
    arrays = [np.ascontiguousarray(x) for x in (images * 255).byte().permute(0, 2, 3, 1).numpy()]
    torch.set_flush_denormal(True)
    _, _, finding = timed(lambda: [engine.detect_and_crop(array[:, :, ::-1].copy(), {}) for array in arrays])
    crops, _, both = timed(lambda: [reader(side).lines(array) for array in arrays])
    _, _, reading = timed(lambda: [reader(side).read([line]) for lines in crops for line in lines])
    torch.set_flush_denormal(False)
    _, _, denormal = timed(lambda: [engine.detect_and_crop(array[:, :, ::-1].copy(), {}) for array in arrays])
    parts = {"detection": finding, "recognition": reading, "detection with denormal numbers": denormal}
    return {name: 1000 * seconds / len(images) for name, seconds in parts.items()} | {
        "cropping": 1000 * max(0.0, both - finding) / len(images)
    }


def show(name: str, values: dict[str, float]) -> None:
    print(f"{name:<20}" + "  ".join(f"{key} {value:.3g}" for key, value in values.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sides", type=int, nargs="+", default=[320, 256])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    texts = [str(about["text"]) for about in load("ocr-held-out").metadata][: args.images]
    shown = [damaged(text, rng) if rng.random() < 1 / 3 else text for text in texts]
    images = torch.stack([picture(text, args.pixels, rng) for text in shown])
    found = {}
    found["as installed"] = base = installed(images, texts)
    reference = torch.tensor(base.pop("scores"))
    show("as installed", base)
    for side in args.sides:
        for threads in args.threads:
            here = ours(images, texts, side, threads)
            scores = torch.tensor(here.pop("scores"))
            here["same_verdict"] = ((scores == 1) == (reference == 1)).float().mean().item()
            here["same_score"] = ((scores - reference).abs() < 1e-6).float().mean().item()
            found[f"{side} px, {threads} threads"] = here
            show(f"{side} px, {threads} threads", here)
    parts = profile(images[:8], args.sides[0])
    print(f"{args.sides[0]} px, ms per image: " + ", ".join(f"{name} {ms:.1f}" for name, ms in parts.items()))
    if args.json:
        args.json.write_text(json.dumps({"rows": found, "profile": parts}, indent=2) + "\n")


if __name__ == "__main__":
    main()
