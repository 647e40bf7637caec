"""Pieces of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

CODE = re.compile(r"(`+)(.+?)\1")
SPECIAL = re.compile(r"([\\*_\[\]])")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def cell(text: str) -> str:
    """A text within one cell."""
    return " ".join(text.split()).replace("|", "&#124;") if "`" not in text else _coded(text)


def _coded(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """A short text as code; empty stays empty."""
    return f"`{text}`" if text else ""


def plain(text: str) -> str:
    """A text that shows what it says: its signs mean nothing in Markdown, except backticks."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if n % 2 else _escaped(part) for n, part in enumerate(parts))


def _escaped(text: str) -> str:
    return SPECIAL.sub(r"\\\1", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def unescaped(page: str) -> str:
    """A page without the backslashes that GitHub needs before a | in code within a table: mkdocs would show them."""
    return "\n".join(
        CODE.sub(lambda code: code[0].replace("\\|", "|"), line) if line.startswith("|") else line
        for line in page.split("\n")
    )


def fenced(text: str, kind: str = "sh") -> str:
    """A block of code."""
    return f"```{kind}\n{text.strip()}\n```"
