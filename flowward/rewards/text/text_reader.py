"""Lines of text in pictures, found and read by the models that RapidOCR brings, many pictures at once."""

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
Line = tuple[str, float]  # what it says, and how sure that is

HEIGHT = 48  # of a line, as the recogniser reads it
STEP = 64  # lines are padded to a multiple of this width
BATCH = 8  # lines of one width that are read at once
GREY = 128  # what they are padded with: 0 after normalisation


@cache
def reader(side: int) -> TextReader:
    """One per setting: a run that trains on a reward and measures it loads the models once.

    Raises:
        ValueError: rapidocr or onnxruntime is not installed, or does not start.
    """
    try:
        from rapidocr import RapidOCR
    except ImportError as error:
        raise ValueError("reading text needs rapidocr: pip install 'flowward[rewards]'") from error
    settings = {
        "Global.log_level": "critical",
        "Global.use_cls": False,  # upside-down text is wrong text
        "Det.limit_type": "max",
        "Det.limit_side_len": side,
        "Rec.rec_img_shape": [3, HEIGHT, STEP],
        "Rec.rec_batch_num": BATCH,
        "EngineConfig.onnxruntime.intra_op_num_threads": 1,  # whole pictures go in parallel, which costs less
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        "EngineConfig.onnxruntime.enable_cpu_mem_arena": True,
    }
    try:
        return TextReader(RapidOCR(params=settings))
    except Exception as error:  # of a package that is not ours
        raise ValueError(f"rapidocr does not start: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class TextReader:
    """Finds lines in each picture and reads those of all pictures together.

    Every line is scaled to the same height and padded to a multiple of a width, and only lines of one width are read
    together, so that what is read does not depend on the other pictures of a batch.

    The work is done in threads of its own, in which denormal numbers count as 0. The finder's activations are full of
    them, and a processor takes many cycles for each: without, it takes 2.7 times as long for the same maps, to the bit.
    """

    engine: Any  # rapidocr.RapidOCR

    def __call__(self, pictures: NDArray[np.uint8], threads: int = 1) -> list[list[Line]]:
        """RGB [B, H, W, 3] -> the lines of each picture, from top to bottom."""
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
        """The lines of one picture, as the recogniser takes them: [HEIGHT, a multiple of STEP, 3], blue first."""
        from rapidocr.main import RapidOCRError

        try:
            crops, _ = self.engine.detect_and_crop(np.ascontiguousarray(picture[:, :, ::-1]), {})
        except RapidOCRError:  # there is no text
            return []
        return [padded(crop) for crop in crops]

    def read(self, lines: list[Pixels]) -> list[Line]:
        """Lines of one width -> what each says."""
        found = self.engine.recognize_txt(lines)
        return list(zip(found.txts, map(float, found.scores), strict=True))


def padded(crop: Pixels) -> Pixels:
    """A line of any size -> [HEIGHT, a multiple of STEP, 3], grey to the right of it."""
    height, width = crop.shape[:2]
    scaled = max(1, -(-HEIGHT * width // height))
    line = np.full((HEIGHT, -(-scaled // STEP) * STEP, 3), GREY, np.uint8)
    line[:, :scaled] = np.asarray(Image.fromarray(crop).resize((scaled, HEIGHT), Image.Resampling.BILINEAR))
    return line
