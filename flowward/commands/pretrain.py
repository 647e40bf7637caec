"""flowward pretrain"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..scenes.recipe import Distil, Pretrain, Pretrain64
from ..system.errors import unknown
from .help import Page
from .options import parse, set_threads

WORLDS: dict[str, type[Pretrain] | type[Distil]] = {
    "scenes": Pretrain,
    "scenes-4step": Distil,
    "scenes-64": Pretrain64,
}
PAGE = Page(
    about="Train a built-in model as the shipped one was: `scenes` or `scenes-64` from scratch (hours on a "
    "CPU), or `scenes-4step`, which is distilled from `scenes` (half an hour).",
    examples=(
        ("pretrain scenes --output runs/base", "then: flowward train --model runs/base/model"),
        ("pretrain scenes-64 --output runs/large", "64 x 64 pixels; interrupted, it continues"),
        ("pretrain scenes-4step --output runs/few", "distil a model of 4 jumps from `scenes`"),
    ),
)


def run(words: list[str]) -> int:
    world = next((word for word in words if not word.startswith("-")), None)
    if not words or words[0].startswith("-"):
        parse(Pretrain, words or ["--help"], "pretrain scenes", page=PAGE)
        raise ValueError("say which world: flowward pretrain scenes --output FOLDER")
    world, words = words[0], words[1:]
    if world not in WORLDS:
        raise ValueError(unknown("world", world, WORLDS))
    config: Pretrain | Distil = parse(WORLDS[world], words, f"pretrain {world}", page=PAGE)
    from rich.progress import Progress

    from ..pages import report
    from ..system.threads import refuse_fewer  # after the flags, so that --help does not wait for torch and diffusers

    set_threads(config.threads)
    refuse_fewer()
    with Progress() as bar:
        tasks = {}
        for line in _lines(config):
            if line["stage"] not in tasks:
                tasks[line["stage"]] = bar.add_task(line["stage"], total=line["of"])
            said = f"{line['stage']} loss {line['loss']:.4f}"
            bar.update(tasks[line["stage"]], completed=line["step"], description=said)
    print(f"model: {config.output / 'model'}")
    print(f"loss curve: {report.write_loss_curve(config.output)}")
    return 0


def _lines(config: Pretrain | Distil) -> Iterator[dict[str, Any]]:
    """The log lines of training."""
    if isinstance(config, Pretrain):
        from ..scenes.pretrain import pretrain

        return pretrain(config)
    from ..models.scenes import networks_of
    from ..scenes.distil import distil

    return distil(config, networks_of(config.teacher))
