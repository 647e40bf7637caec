"""A font with the characters of a text: Pillow's own, which has Latin letters alone, else one of this computer's."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

NONE = "[no font here for this text]"
FOLDERS = (
    *("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"),
    *("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts", "C:/Windows/Fonts"),
)
KINDS = (".ttf", ".otf", ".ttc")
FIRST = ("dejavusans.", "notosans-regular", "notosanscjk-regular", "arial.", "arialunicode", "notosans", "wqy")
MOST = 500  # fonts that are tried
UNASSIGNED = "\U0010fffe"  # drawn as every character that a font lacks


def shown(text: str, size: int) -> tuple[str, Font]:
    """The text as it can be drawn, and the font for it.

    Accents and dashes that Pillow's font lacks are simplified. Without a font for the text, it becomes `NONE`.
    """
    own, plain = ImageFont.load_default(size), _plain(text)
    characters = _visible(plain)
    if has(own, characters):
        return plain, own
    path = _covering(_visible(text))
    return (NONE, own) if path is None else (text, ImageFont.truetype(str(path), size))


def has(font: Font, characters: frozenset[str]) -> bool:
    """Whether a font has a glyph for each of the characters."""
    lacking = bytes(font.getmask(UNASSIGNED))
    return all(bytes(font.getmask(character)) != lacking for character in characters)


def _visible(text: str) -> frozenset[str]:
    """The characters that need a glyph: no spaces, controls or marks on other letters."""
    return frozenset(each for each in text if unicodedata.category(each)[0] not in "ZCM")


def _plain(text: str) -> str:
    """Without accents, and with hyphens for dashes."""
    plain = unicodedata.normalize("NFKD", text.replace("–", "-").replace("—", "-"))
    return "".join(each for each in plain if not unicodedata.combining(each))


@cache
def _covering(characters: frozenset[str]) -> Path | None:
    """The first font file of this computer with all characters."""
    for path in files():
        try:
            if has(ImageFont.truetype(str(path), 12), characters):
                return path
        except (OSError, ValueError):  # damaged, or of a kind that FreeType cannot read
            continue
    return None


@cache
def files() -> tuple[Path, ...]:
    """The font files of this computer, those with many scripts first."""
    found = sorted(set(_found()), key=lambda path: (_rank(path.name.lower()), len(path.name), str(path)))
    return tuple(found[:MOST])


def _rank(name: str) -> int:
    return next((k for k, start in enumerate(FIRST) if name.startswith(start)), len(FIRST))


def _found() -> Iterator[Path]:
    folders = [Path(os.path.expanduser(folder)) for folder in FOLDERS]  # Path.expanduser needs a home
    if (spec := find_spec("matplotlib")) and spec.origin:  # brings DejaVu Sans
        folders.append(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf")
    for folder in folders:
        if sys.platform != "win32" and ":" in str(folder):
            continue
        try:
            yield from (path for path in folder.rglob("*") if path.suffix.lower() in KINDS)
        except OSError:  # no permission
            continue
