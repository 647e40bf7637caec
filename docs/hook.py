"""What mkdocs.yml asks for: pages made from the code, their places in the navigation, and links that leave docs/."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from generator import leaderboard, pages
from generator.links import inside
from generator.markdown import unescaped
from generator.navigation import whole
from mkdocs.structure.files import File, Files

made = cache(pages)


def on_config(config: Any) -> Any:
    """Put the pages of a folder into the navigation."""
    folder = Path(config.docs_dir)
    written = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.md"))
    config.nav = whole(config.nav, [*made(), *written])
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for path, text in made().items():
        files.append(File.generated(config, path, content=text))
    for path, text in leaderboard.files().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(text: str, page: Any, **_: Any) -> str:
    """Lead links out of docs/ to a page of the site or to the source code; show | in tables as it is."""
    return inside(unescaped(text), page.file.src_uri)
