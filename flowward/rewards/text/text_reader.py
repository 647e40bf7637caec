"""Detect and recognise lines of text with the models in RapidOCR, for many pictures at once."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]  # [H, W, 3]
Line = tuple[str, float]  # text and confidence

HEIGHT = 48  # height of a line for the recogniser, in pixels
STEP = 64  # lines are padded to a multiple of this width
BATCH = 8  # lines of one width that are recognised at once
GREY = 128  # padding: 0 after normalisation


@cache
def reader(side: int) -> TextReader:
    """One reader per setting: models are loaded once, even if a reward is both trained on and evaluated.

    Raises:
        ValueError: rapidocr or onnxruntime is not installed, or fails to start.
    """
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise ValueError("recognising text needs rapidocr; pip install 'flowward[rewards]'") from error
    settings = {
        "Global.log_level": "critical",
        "Global.use_cls": False,  # upside-down text counts as wrong
        "Det.limit_type": "max",
        "Det.limit_side_len": side,
        "Rec.rec_img_shape": [3, HEIGHT, STEP],
        "Rec.rec_batch_num": BATCH,
        "EngineConfig.onnxruntime.intra_op_num_threads": 1,  # whole pictures run in parallel, which is cheaper
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        "EngineConfig.onnxruntime.enable_cpu_mem_arena": True,
    }
    try:
        return TextReader(RapidOCR(params=settings))
    except Exception as error:  # another package may fail in any way
        raise ValueError(f"rapidocr fails to start: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class TextReader:
    """Detects lines in each picture, and recognises the lines of all pictures together.

    Every line is scaled to the same height, and its width is padded to a multiple of STEP. Only lines of one width are
    batched, so the result does not depend on the other pictures of a batch.

    The work runs in separate threads with denormal numbers flushed to 0. The detector's activations have many of them,
    and they are slow on a processor: without flushing, it takes 2.7 times as long for bit-identical maps.
    """

    engine: Any  # rapidocr.RapidOCR

    def __call__(self, pictures: NDArray[np.uint8], threads: int = 1) -> list[list[Line]]:
        """The lines of each picture in RGB [B, H, W, 3], from top to bottom."""
        with ThreadPoolExecutor(threads, initializer=torch.set_flush_denormal, initargs=(True,)) as pool:
            found = list(pool.map(self.lines, pictures))
            by_width: dict[int, list[tuple[int, int]]] = defaultdict(list)
            for picture, crops in enumerate(found):
                for number, crop in enumerate(crops):
                    by_width[crop.shape[1]].append((picture, number))
            batches = [places[start : start + BATCH] for _, places in sorted(by_width.items())
                       for start in range(0, len(places), BATCH)]  # fmt: skip
            texts = pool.map(lambda places: self.read([found[p][n] for p, n in places]), batches)
            read = {place: text for places, some in zip(batches, texts, strict=True)
                    for place, text in zip(places, some, strict=True)}  # fmt: skip
        return [[read[picture, number] for number in range(len(crops))] for picture, crops in enumerate(found)]

    def lines(self, picture: Pixels) -> list[Pixels]:
        """Crops of the lines of one picture, for the recogniser: BGR, [HEIGHT, a multiple of STEP, 3]."""
        from rapidocr.main import RapidOCRError

        try:
            crops, _ = self.engine.detect_and_crop(np.ascontiguousarray(picture[:, :, ::-1]), {})
        except RapidOCRError:  # no text found
            return []
        return [padded(crop) for crop in crops]

    def read(self, lines: list[Pixels]) -> list[Line]:
        """Recognise lines of one width."""
        found = self.engine.recognize_txt(lines)
        return list(zip(found.txts, map(float, found.scores), strict=True))


def padded(crop: Pixels) -> Pixels:
    """Scale a line to [HEIGHT, a multiple of STEP, 3], padded with grey on the right."""
    height, width = crop.shape[:2]
    scaled = max(1, -(-HEIGHT * width // height))
    line = np.full((HEIGHT, -(-scaled // STEP) * STEP, 3), GREY, np.uint8)
    line[:, :scaled] = np.asarray(Image.fromarray(crop).resize((scaled, HEIGHT), Image.Resampling.BILINEAR))
    return line
