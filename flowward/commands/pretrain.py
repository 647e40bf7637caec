"""flowward pretrain"""

from __future__ import annotations

from ..scenes.recipe import Pretrain
from ..system.errors import unknown
from .help import Page
from .options import parse, set_threads

WORLDS = ("scenes",)
PAGE = Page(
    about="Train the built-in base model from scratch, as the shipped one was. It takes hours on a CPU.",
    examples=(("pretrain scenes --output runs/base", "then: flowward train --model runs/base/model"),),
)


def run(words: list[str]) -> int:
    world = next((word for word in words if not word.startswith("-")), None)
    if not words or words[0].startswith("-"):
        parse(Pretrain, words or ["--help"], "pretrain scenes", page=PAGE)
        raise ValueError("say which world: flowward pretrain scenes --output FOLDER")
    world, words = words[0], words[1:]
    if world not in WORLDS:
        raise ValueError(unknown("world", world, WORLDS))
    config: Pretrain = parse(Pretrain, words, f"pretrain {world}", page=PAGE)
    from rich.progress import Progress

    from ..pages import report
    from ..scenes.pretrain import pretrain  # after the flags, so that --help does not wait for torch and diffusers
    from ..system.threads import refuse_fewer

    set_threads(config.threads)
    refuse_fewer()
    with Progress() as bar:
        tasks = {}
        for line in pretrain(config):
            if line["stage"] not in tasks:
                tasks[line["stage"]] = bar.add_task(line["stage"], total=line["of"])
            said = f"{line['stage']} loss {line['loss']:.4f}"
            bar.update(tasks[line["stage"]], completed=line["step"], description=said)
    print(f"model: {config.output / 'model'}")
    print(f"loss curve: {report.write_loss_curve(config.output)}")
    return 0
