"""How far each run has left the base model, in nats per image; measured once, after its end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .. import models, prompts
from ..evaluation.nats import from_reference
from ..process.policy import Policy
from ..system import strict_json, whole_files
from ..training.config import from_dict
from ..training.folder import RunFolder
from .pool import Place
from .schedule import Planned

FILE = "nats.json"
IMAGES = 100  # on the first prompts of the evaluation


def nats(planned: Planned, place: Place) -> float | None:
    """KL(policy || base model) of a run that has ended; None if it failed, or if there is no such KL (guidance)."""
    file = place.folder / FILE
    if file.is_file():
        known: float | None = strict_json.loads(file.read_text("utf-8"))["nats"]
        return known
    if place.state != "finished":
        return None
    found = _measured(planned, place.run)
    whole_files.write(file, strict_json.dumps({"nats": found, "images": IMAGES}) + "\n")
    return found


def _measured(planned: Planned, run: Path) -> float | None:
    settings = from_dict(dict(planned.settings))
    policy: Policy = models.load(
        settings.model, None, settings.precision, loading=settings.loading, adapters=settings.adapters
    )
    policy.weights.add("reference")
    state = RunFolder.open(run).state("identity", "weights", within="weights.policy.")
    if state is None or policy.unlike(state["identity"]):
        return None
    policy.weights.load("policy", state["weights"]["policy"])
    how = replace(settings.evaluation, images=IMAGES, images_per_prompt=None)
    known = prompts.load(how.prompts)
    asked = [known[number] for number in how.chosen(known)]
    found = from_reference(policy, asked, how.sampler, how.seed)
    return None if found is None else float(found.mean())
