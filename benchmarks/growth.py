"""Double iterations, images, prompts, models and evaluations: does time more than double anywhere?

    OMP_NUM_THREADS=1 python benchmarks/growth.py [--only WORD ...] [--repeats 5]

Each case is something that flowward does. It runs at n, 2n and 4n of what it depends on, in turns, and counts CPU
seconds: the least of several repeats. Inputs are made up and lie in a temporary folder. Nothing is subtracted, and
sizes are so large that constant costs do not hide growth. Printed: a table with the ratio of the last doubling. It may
be at most 2.5: more data fits the processor's caches less well, and there is noise. Some costs must not grow at all:
their ratio may be at most 1.3. A case above its bound is measured again, up to twice. Exits with 1 if one stays above.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
import yaml

from flowward import prompts
from flowward.evaluation import comparison, leakage, measurement, statistics
from flowward.evaluation.measurement import Measurement
from flowward.learning import credit
from flowward.learning.mixing import MIXES, RewardBuffer
from flowward.learning.points import Renoise, unit_order
from flowward.pages import evaluation, index, report
from flowward.pages.watch import compare
from flowward.pages.watch import folder as watching
from flowward.process.policy import Condition
from flowward.process.rollout import Rollout
from flowward.prompts import PromptSet
from flowward.prompts.loading import split
from flowward.rewards.images.jpeg import Compressible
from flowward.rewards.images.scenes import Strict
from flowward.rewards.scoring import Scoring
from flowward.training.folder import RunFolder
from flowward.training.record import Record
from flowward.training.teachers import Teachers

DOUBLED, SAME = 2.5, 1.3  # bounds for the ratio of the last doubling
ATTEMPTS = 3  # what is above its bound is measured again: noise goes away, growth stays
Work = Callable[[], object]
GROUP = 12  # images per prompt
WORDS = "a small red circle on the left of a large blue square in the evening light"
CATEGORIES = ("counting", "colours", "position", "shapes", "two objects", "relations")
CONFIG = {"model": "scenes", "reward": ["scenes"], "algorithm": {"name": "awm"}, "run": {"iterations": 10**6}}


@dataclass(frozen=True)
class Case:
    """Something that flowward does, and what its time depends on."""

    cause: str  # what is doubled
    what: str
    size: int  # n
    made: Callable[[int, Path], Work]  # n and an empty folder -> what is measured; it can be repeated
    same: bool = False  # it must not grow at all

    @property
    def bound(self) -> float:
        return SAME if self.same else DOUBLED

    def sizes(self, n: int = 0) -> tuple[int, int, int]:
        return (n or self.size), 2 * (n or self.size), 4 * (n or self.size)


def line(k: int, every: int) -> dict[str, Any]:
    """The metrics of iteration k; each `every`th has an evaluation."""
    found: dict[str, Any] = {"iteration": k, "images": 288 * k, "seconds": {"rollout": 3.0, "total": 8.0}}
    found["health"] = [f"equal rewards in {k % 50}% of the groups"] if k % 3 else []
    found |= {name: random.random() for name in ("reward", "gradient_norm", "kl", "loss", "latent_rms")}
    if k % every == 0:
        score = {"mean": random.random(), "low": 0.0, "high": 1.0, "n": 768}
        scored = {"overall": score, "categories": dict.fromkeys(CATEGORIES, score)}
        found["evaluation"] = {"seed": 1, "prompts": "held-out", "scores": {"strict": scored, "balance": scored}}
    return found


def run(folder: Path, lines: int, every: int) -> Path:
    """A run folder with so many lines of metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG), "utf-8")
    text = "".join(json.dumps(line(k, every)) + "\n" for k in range(lines))
    (folder / "metrics.jsonl").write_text(text, "utf-8")
    return folder


def checkpointed(folder: Path, lines: int, every: int) -> Path:
    """The same with an empty file for the checkpoint of each evaluation."""
    made = run(folder, lines, every)
    (made / "checkpoints").mkdir()
    for k in range(0, lines, every):
        (made / "checkpoints" / f"{k:06d}.safetensors").touch()
    return made


def appending(n: int, folder: Path) -> Work:
    made = RunFolder.create(folder / "run", CONFIG)
    lines = [line(k, 20) for k in range(n)]

    def work() -> None:
        made.metrics.unlink(missing_ok=True)
        for each in lines:
            made.append(each)

    return work


def news(n: int, folder: Path) -> Work:
    """A page follows a run of n lines: 20 more lines come, one by one."""
    made = run(folder / "run", n, 50)
    watched, numbers = watching.Watched(made, folder.resolve(), "run"), count(n)
    watched.refresh(set(), time.time())

    def work() -> None:
        for k in (next(numbers) for _ in range(20)):
            with (made / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line(k, 10**9)) + "\n")
            seen = len(watched.lines)
            watched.refresh(set(), time.time())
            watched.curves(seen)

    return work


def opened(n: int, folder: Path) -> Work:
    """A page of `flowward watch` is opened."""
    run(folder / "run", n, 50)
    return lambda: watching.Folder(folder).news(watching.Seen())


def compared(folders: Sequence[Path], folder: Path) -> Work:
    return lambda: compare.write(folders, folder / "compare.html")


def several(n: int, folder: Path) -> list[Path]:
    return [run(folder / f"run{k}", 150, 10) for k in range(n)]


def indexed(n: int, folder: Path) -> Work:
    every = several(n, folder / "runs")

    def work() -> None:
        for each in every:
            (each / "report.html").unlink(missing_ok=True)
        index.write(folder / "runs")

    return work


def pretraining(n: int, folder: Path) -> Work:
    lines = [{"stage": f"stage {k * 3 // n}", "step": k, "loss": 1 / (k + 1)} for k in range(n)]
    (folder / "log.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines), "utf-8")
    return lambda: report.write_loss_curve(folder)


def scoring(n: int, folder: Path) -> Work:
    """JPEG sizes and the checker of the built-in world; groups arrive one by one."""
    images, texts = torch.rand(n, 3, 32, 32), ["a red circle next to a blue square"] * n
    rewards = [(f"{k}", each) for k, each in enumerate((Compressible(), Strict()))]

    def work() -> None:
        with Scoring(rewards, texts, unit=GROUP) as found:
            for part in images.split(GROUP):
                found.add(part)
            found.result(images)

    return work


def groups(n: int) -> torch.Tensor:
    return torch.arange(n) // GROUP


def crediting(kinds: Iterable[Any]) -> Callable[[int, Path], Work]:
    every = list(kinds)

    def made(n: int, folder: Path) -> Work:
        rewards, own = torch.rand(n), groups(n)
        return lambda: [each(rewards, own) for each in every]

    return made


def mixing(n: int, folder: Path) -> Work:
    rewards, own, weights = torch.rand(n, 3), groups(n), torch.ones(3)
    return lambda: [mix(credit.ZScore(), rewards, weights, own) for mix in MIXES.values()]


def remembering(n: int, folder: Path) -> Work:
    own, rewards = groups(n), torch.rand(n, 2)
    texts = [f"{WORDS}, number {k}" for k in range(int(own.max()) + 1)]

    def work() -> None:
        buffer = RewardBuffer(2 * GROUP)
        for _ in range(3):
            buffer.beside(rewards, own, own, texts)
            buffer.add(rewards, own, texts)

    return work


def training_points(n: int, folder: Path) -> Work:
    """The points of an iteration in four updates, in microbatches of 64."""
    own, x0 = groups(n), torch.randn(n, 4, 8, 8)
    condition = Condition({"text": torch.randn(int(own.max()) + 1, 8)})
    rollout = Rollout(x0, condition, own, own, torch.rand(n), torch.randn(n).double(), torch.linspace(1, 0.1, 10))

    def work() -> None:
        points = Renoise(2)(rollout, ("points", 0, 0))
        units = points.units()
        for update in unit_order(points, 4, ("order", 0, 0)):
            for part in torch.cat([units[k] for k in update.tolist()]).split(64):
                points.take(part)

    return work


def numbered(n: int, categories: int = 6) -> PromptSet:
    texts = tuple(f"{WORDS}, number {k}" for k in range(n))
    return PromptSet("made-up", texts, tuple(f"category {k % categories}" for k in range(n)))


def drawing(categories: int, n: int, folder: Path) -> Work:
    """100 iterations within an epoch, which has been shuffled before."""
    found = numbered(n, categories)
    found.draw(0, 0, categories)
    return lambda: [found.draw(0, k, 24) for k in range(100)]


def teaching(n: int, folder: Path) -> Work:
    """The teachers of the prompts of 100 iterations."""
    found, condition = numbered(n), Condition({"text": torch.zeros(24, 1)})
    teachers = Teachers({name: f"of {name}" for name in dict.fromkeys(found.categories)})
    chosen = [[found[k] for k in found.draw(0, number, 24)] for number in range(100)]
    teachers.beside(condition, chosen[0], found)
    return lambda: [teachers.beside(condition, each, found) for each in chosen]


def loading(kind: str, n: int, folder: Path) -> Work:
    path = folder / f"prompts.{kind}"
    every = (f"{WORDS}, number {k}" for k in range(n))
    rows = (text if kind == "txt" else json.dumps({"prompt": text, "category": "all", "n": 1}) for text in every)
    path.write_text("\n".join(rows), "utf-8")
    return lambda: prompts.load(str(path))


def splitting(n: int, folder: Path) -> Work:
    found = numbered(n)
    return lambda: [split(found, held_out) for held_out in (True, False)]


def leaking(n: int, folder: Path) -> Work:
    found = numbered(n)
    return lambda: leakage.leak(found, found, range(0, n, 20))


def measured(name: str, images: int, per_prompt: int = 4) -> Measurement:
    """Made-up scores of so many images."""
    numbers = [k // per_prompt for k in range(images)]
    used = {"weights": "policy", "steps": 10, "seed": 7, "guidance": None, "prompts": "made-up", "images": images}
    used |= {"model": {"name": name}, "rewards": {}, "guard": [], "versions": {"torch": "2"}}
    scores = {"strict": torch.randint(0, 2, (images,)).float(), "balance": torch.rand(images)}
    texts, parts = tuple(f"prompt {k}" for k in numbers), tuple(CATEGORIES[k % 3] for k in numbers)
    return Measurement(name, used, texts, parts, scores, frozenset({"strict"}))


def pairs(n: int) -> list[Measurement]:
    """As many models as have n pairs, or almost."""
    return [measured(f"model {k}", 24) for k in range(min(range(2, n + 3), key=lambda m: abs(m * (m - 1) // 2 - n)))]


def comparing(n: int, folder: Path) -> Work:
    found = pairs(n)
    return lambda: comparison.differences(found)


def page_of_models(n: int, folder: Path) -> Work:
    found = pairs(n)
    changes = comparison.differences(found)
    return lambda: evaluation.of(found, changes)


def telling_apart(n: int, folder: Path) -> Work:
    found = [(f"file {k % 7}", measured(f"model {k % 5}", 4)) for k in range(n)]
    return lambda: measurement.told_apart(found)


def bootstrapped(n: int, folder: Path) -> Work:
    found = measured("model", n)
    return lambda: statistics.bootstrap(found.scores["balance"].numpy(), found.prompt, resamples=2000)


def summarised(n: int, folder: Path) -> Work:
    found = measured("model", n)
    return lambda: found.summary()


def stored(n: int, folder: Path) -> Work:
    found = [measured("model", n)]
    text, path = measurement.to_json(found), folder / "scores.json"
    path.write_text(text, "utf-8")
    return lambda: measurement.read(path)


GRADED = (credit.CentredRMS(), credit.ZScore(), credit.ZScore("group", least=16), credit.Softmax(gate="group"),
          credit.HalfDifference())  # fmt: skip
CASES = (
    Case("iterations", "write the report of a run", 2000, lambda n, at: partial(report.write, run(at, n, n // 20))),
    Case("iterations", "append metrics", 1000, appending),
    Case("iterations", "read metrics", 2000, lambda n, at: Record(run(at, n, 20)).lines),
    Case("iterations", "choose the best checkpoint", 10000, lambda n, at: Record(checkpointed(at, n, n // 20)).best),
    Case("iterations", "watch: open the page", 2000, opened),
    Case("iterations", "watch: 20 new lines", 2000, news, same=True),
    Case("iterations", "compare two runs", 1000, lambda n, at: compared([run(at / k, n, 50) for k in "ab"], at)),
    Case("iterations", "loss curves of a pretraining", 4000, pretraining),
    Case("evaluations", "write the report of a run", 400, lambda n, at: partial(report.write, run(at, n, 1))),
    Case("evaluations", "choose the best checkpoint", 1000, lambda n, at: Record(checkpointed(at, n, 1)).best),
    Case("evaluations", "compare two runs", 200, lambda n, at: compared([run(at / k, n, 1) for k in "ab"], at)),
    Case("images", "score", 240, scoring),
    Case("images", "advantages of graded credits", 60000, crediting(GRADED)),
    Case("images", "advantages of best and worst", 12000, crediting([credit.BestAndWorst()])),
    Case("images", "advantages of several rewards", 12000, mixing),
    Case("images", "remember rewards per prompt", 6000, remembering),
    Case("images", "training points of an iteration", 1200, training_points),
    Case("images", "bootstrap over prompts", 4000, bootstrapped),
    Case("images", "summary of an evaluation", 1200, summarised),
    Case("images", "read saved scores", 20000, stored),
    Case("prompts", "draw, one category", 20000, partial(drawing, 1), same=True),
    Case("prompts", "draw, 100 categories", 20000, partial(drawing, 100), same=True),
    Case("prompts", "teachers of the prompts drawn", 20000, teaching, same=True),
    Case("prompts", "load a text file", 50000, partial(loading, "txt")),
    Case("prompts", "load JSON lines", 30000, partial(loading, "jsonl")),
    Case("prompts", "split", 50000, splitting),
    Case("prompts", "look for shared prompts", 100000, leaking),
    Case("models", "compare runs on one page", 8, lambda n, at: compared(several(n, at / "runs"), at)),
    Case("models", "index of runs with their reports", 4, indexed),
    Case("pairs of models", "differences", 53, comparing),
    Case("pairs of models", "page of an evaluation", 53, page_of_models),
    Case("models", "tell names apart", 2000, telling_apart),
)


def timed(work: Work) -> float:
    gc.collect()
    started = time.process_time()
    work()
    return time.process_time() - started


def seconds(case: Case, repeats: int, n: int = 0) -> list[float]:
    """The least CPU seconds of `case` at n, 2n and 4n, in turns."""
    with tempfile.TemporaryDirectory() as work:
        every = []
        for size in case.sizes(n):
            (folder := Path(work) / str(size)).mkdir()
            every.append(case.made(size, folder))
        for each in every:
            each()  # what is loaded or remembered once
        gc.collect()
        gc.freeze()  # what this process had before must not be looked at by collections meanwhile
        try:
            return [min(own) for own in zip(*([timed(each) for each in every] for _ in range(repeats)), strict=True)]
        finally:
            gc.unfreeze()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="cases that contain one of these words")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| doubled | what | n, 2n, 4n | CPU seconds | last doubling | at most | |\n" + "| --- " * 7 + "|", flush=True)
    failed = 0
    for case in CASES:
        if not any(word in f"{case.cause} {case.what}" for word in options.only):
            continue
        found, attempts = seconds(case, options.repeats), 1
        while (ratio := found[2] / found[1]) > case.bound and attempts < ATTEMPTS:
            found, attempts = list(map(min, found, seconds(case, options.repeats))), attempts + 1
        failed += ratio > case.bound
        cells = [case.cause, case.what, ", ".join(f"{size:,}" for size in case.sizes())]
        cells += [", ".join(f"{each:.3f}" for each in found), f"{ratio:.2f}", f"{case.bound}"]
        print("| " + " | ".join([*cells, "grows too fast" if ratio > case.bound else "ok"]) + " |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
