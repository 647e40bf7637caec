"""The prompts of the modules: Jinja2 files in wording/, one per module, or in a folder of the user.

A file has a system part and a user part, with a line of three hyphens between them. What comes from tools is only ever
in the user part, between marks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .episode import Messages

OWN = Path(__file__).parent / "wording"
NAMES = ("planner", "executor", "verifier", "generator", "analyst", "judge")


def closed(text: str) -> str:
    """A text that cannot end the mark around it: `</result>` in it becomes `< /result>`."""
    return re.sub(r"</(?=\s*(result|answer)\s*>)", "< /", text, flags=re.IGNORECASE)


@dataclass(frozen=True)
class Templates:
    """The prompts of an agent, from a folder; files that are not there are the built-in ones."""

    folder: Path | None = None
    name: str = field(default="", kw_only=True)

    def source(self, name: str) -> Path:
        """The file of a module's prompt."""
        own = self.folder / f"{name}.txt" if self.folder else None
        return own if own and own.is_file() else OWN / f"{name}.txt"

    @cached_property
    def _read(self) -> dict[str, Any]:
        """Raises ValueError for a file that is not a template, with its name and line."""
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
            autoescape=False,  # nosec B701
        )
        environment.filters["closed"] = closed
        found = {}
        for name in NAMES:
            path = self.source(name)
            try:
                parts = path.read_text("utf-8").split("\n---\n")
                found[name] = [environment.from_string(part) for part in parts]
            except jinja2.TemplateSyntaxError as error:
                raise ValueError(f"{path}, line {error.lineno}: {error.message}") from error
            if len(parts) != 2:
                raise ValueError(f"{path} needs a system part and a user part, with a line --- between them")
        return found

    def refuse(self) -> None:
        """Raise ValueError if a file cannot be used."""
        if self.folder and not self.folder.is_dir():
            raise ValueError(f"there is no folder {self.folder} with prompts")
        self._read  # noqa: B018

    def filled(self, name: str, **values: Any) -> Messages:
        """The messages of a module.

        Raises:
            ValueError: the template names a value that there is not.
        """
        import jinja2

        try:
            system, user = (part.render(**values).strip() for part in self._read[name])
        except jinja2.TemplateError as error:
            raise ValueError(f"{self.source(name)} cannot be filled in: {error}") from error
        return (("system", system), ("user", user))
