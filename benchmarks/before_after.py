"""The picture at the head of the README: before_after.py RUN OUTPUT puts a run's first and last grids side by side."""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

GAP, HEAD = 24, 40
SHRINK = 0.75


def main(run: Path, output: Path) -> None:
    grids = sorted((run / "samples").glob("*.png"))
    pictures = [Image.open(grids[0]).convert("RGB"), Image.open(grids[-1]).convert("RGB")]
    width, height = pictures[0].size
    sheet = Image.new("RGB", (2 * width + GAP, height + HEAD), "white")
    for column, (picture, label) in enumerate(zip(pictures, ("before", "after"), strict=True)):
        left = column * (width + GAP)
        sheet.paste(picture, (left, HEAD))
        ImageDraw.Draw(sheet).text((left + 16, 10), label, "black", ImageFont.load_default(size=22))
    size = round(SHRINK * sheet.width), round(SHRINK * sheet.height)
    sheet.resize(size, Image.Resampling.LANCZOS).save(output, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
