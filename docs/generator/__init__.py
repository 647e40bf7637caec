"""Pages of the site that are made from the code: commands, config.yaml, the API, algorithms and examples.

`pages()` is all of them; docs/hook.py puts them into the site. Text only: nothing here knows mkdocs.
"""

from __future__ import annotations

from . import algorithms, api, commands, config, examples


def pages() -> dict[str, str]:
    """Markdown by the path of its page in docs/."""
    return {**commands.pages(), **config.pages(), **api.pages(), **algorithms.pages(), **examples.pages()}
