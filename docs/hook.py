"""What mkdocs.yml asks for: pages made from the code, and links that leave docs/."""

from __future__ import annotations

from typing import Any

from generator import pages
from generator.links import inside
from generator.markdown import unescaped
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(text: str, page: Any, **_: Any) -> str:
    """Lead links out of docs/ to a page of the site or to the source code; show | in tables as it is."""
    return inside(unescaped(text), page.file.src_uri)
