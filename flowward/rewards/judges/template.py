"""Templates for judges: the question, and how to parse the answer. One YAML file each, shipped in templates/.

source:    the origin of the question
messages:  role and text. {image} stands for an image (twice: two images are compared), {sound} for a sound in the same
           way, {prompt} for the prompt, {source} for the source image of an edit (the first one if there are several),
           {sources} for all of them, and any other {name} for that entry of the prompt's metadata
request:   more fields of the request, such as temperature and max_tokens
read:      kind (number, winner, yes-no or json) and its fields; see the classes in reading.py
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, with_config

from ...prompts import SOURCE, SOURCES
from ...system import strict_yaml
from ...system.errors import first_invalid, unknown
from ..reward import RewardError
from .reading import STRICT, VERSION, Json, Number, Winner, YesNo

SHIPPED = {path.stem: path for path in sorted((Path(__file__).parent / "templates").glob("*.yaml"))}
Part = str | Path | None
"""part of a message: text, an image file, or (None) the place of a judged image"""

PLACE = re.compile(r"\{(\w+)\}")


@with_config(STRICT)
@dataclass(frozen=True)
class Message:
    role: Literal["system", "user", "assistant"]
    text: str


@with_config(STRICT)
@dataclass(frozen=True)
class Template:
    """A question for a judge, with the reader for its answers."""

    messages: tuple[Message, ...]
    read: Annotated[Number | Winner | YesNo | Json, Field(discriminator="kind")]
    request: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        wanted = 2 if isinstance(self.read, Winner) else 1
        if self.images != wanted or self._count("sound") not in (0, self.images):
            raise ValueError(f"its messages must contain {{image}} or {{sound}} {wanted} times, not {self.images}")

    @property
    def images(self) -> int:
        """Number of images or sounds in one question."""
        return self._count("image") + self._count("sound")

    @property
    def hears(self) -> bool:
        """Whether the question is about sounds."""
        return self._count("sound") > 0

    def _count(self, place: str) -> int:
        return sum(PLACE.findall(message.text).count(place) for message in self.messages)

    @property
    def identity(self) -> str:
        """A hash of everything that can change an answer or its score."""
        content = {key: value for key, value in asdict(self).items() if key != "source"} | {"reading": VERSION}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def filled(self, prompt: str, about: Mapping[str, Any]) -> list[tuple[str, list[Part]]]:
        """The messages with prompt and metadata filled in, as (role, parts).

        Raises:
            RewardError: the metadata lacks an entry of the template.
        """
        return [(message.role, _parts(message.text, {**about, "prompt": prompt})) for message in self.messages]


def _parts(text: str, values: Mapping[str, Any]) -> list[Part]:
    parts: list[Part] = [""]
    for number, piece in enumerate(PLACE.split(text)):  # text and names alternate; inserted text is not split again
        if number % 2 and piece in ("image", "sound"):
            parts += [None, ""]
            continue
        if number % 2 and piece == SOURCES and SOURCE in values:
            parts += [each for path in values.get(SOURCES) or [values[SOURCE]] for each in (Path(path), "")]
            continue
        if number % 2 and piece not in values:
            raise RewardError(
                f"the judge's template needs {{{piece}}}, but the metadata of '{values['prompt']}' has no such entry"
            )
        if number % 2 and piece == SOURCE:
            parts += [Path(values[piece]), ""]
            continue
        parts[-1] = f"{parts[-1]}{values[piece] if number % 2 else piece}"
    stripped = [part.strip() if isinstance(part, str) else part for part in parts]
    return [part for part in stripped if part != ""]


def load(name: str) -> Template:
    """Load a shipped template by name, or your own by its path.

    Raises:
        ValueError: there is no such template, or it is invalid.
    """
    path = SHIPPED.get(name, Path(name))
    if not path.is_file():
        raise ValueError(f"there is no template at {path}" if path.suffix else unknown("template", name, SHIPPED))
    try:
        template: Template = TypeAdapter(Template).validate_python(strict_yaml.loads(path.read_text("utf-8")))
    except ValidationError as error:
        field_name, wrong = first_invalid(error)
        raise ValueError(f"template {path}{f', {field_name}' if field_name else ''}: {wrong}") from error
    except ValueError as error:
        raise ValueError(f"template {path}: {error}") from error
    return template
