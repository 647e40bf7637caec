"""Faults, what a user sees of each, and what is saved. training/test_faults.py checks every row.

`python tests/fault_rows.py > docs/faults.md` writes the page for users from the same rows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any

import faults
import pytest
from faults import Strikes, full_disk, read_only
from judges import honest
from local_servers import Answer, reply
from program import BUDGET

from flowward.evaluation import drawing
from flowward.pages import report
from flowward.process.policy import Policy
from flowward.rewards.service.wire import decode
from flowward.training.trainer import Trainer

DOCS = Path(__file__).parents[2] / "docs"
HOW = [*BUDGET, "--precision", "float32", "--threads", "1", "--iterations", "2", "--evaluate-every", "2"]
TRAIN = "train --checkpoint-every 1 --output run --resume auto"
REMOTE = "--reward remote --reward-options remote.address={server} remote.timeout=0.5 remote.patience={patience}"
AGAIN = "Free some space. Then give the same command with `--resume auto`."
WRITE = report.write
FULL, INTACT = "No space left on device", "; the checkpoint 000001.safetensors is intact"


@dataclass(frozen=True)
class Row:
    """A fault, and what must be true afterwards."""

    fault: str
    inject: Callable[[], AbstractContextManager[Strikes]]
    sees: str  # the sentence on stderr; if the command goes on (code 0), a part of the output
    saved: str  # for the page
    todo: str  # for the page
    command: str = TRAIN
    code: int = 2
    left: int | None = None  # iteration of the newest checkpoint; None: there is none
    like: str = ""  # more words of the run that this one must equal in the end
    metrics: bool = True  # these are equal too
    then: str = ""  # a part of what the same command prints the next time
    begun: bool = False  # there is a run of one iteration before


class Server:
    """A reward server that fails as it is told, once per entry: the trouble of the next calls. It is a judge, too."""

    def __init__(self) -> None:
        self.troubles: list[Any] = []
        self.calls = 0
        self.struck = Strikes()

    def __call__(self, path: str, headers: dict[str, str], body: bytes) -> Answer | None:
        if path == "/v1/models":
            return reply({"data": [{"id": "vlm"}]})
        if path == "/v1/chat/completions":
            return honest(json.loads(body))
        if path != "/score":
            return reply({"reward": "bright"} if path == "/reward" else {})
        self.calls += 1
        trouble = self.troubles.pop(0) if self.troubles else "fine"
        if trouble != "fine":
            self.struck.append(str(trouble))
        if trouble == "slow":
            time.sleep(0.8)
        if callable(trouble):
            return trouble()  # type: ignore[no-any-return]
        if trouble is None:
            return None
        images = decode(body, headers["Content-Type"]).images
        scores = images.mean((1, 2, 3)).tolist()
        return reply({"scores": [float("nan"), *scores[1:]] if trouble == "nan" else scores})


SERVER = Server()


@contextmanager
def server(*troubles: Any, also: AbstractContextManager[Strikes] | None = None) -> Iterator[Strikes]:
    """The server fails so in the next calls; one call per iteration."""
    SERVER.troubles, SERVER.struck = list(troubles), Strikes()
    try:
        if also is None:
            yield SERVER.struck
        else:
            with also as struck:
                yield struck
    finally:
        SERVER.troubles = []


def later() -> Answer:
    """Busy, until a date by the server's own clock, which is five hours ahead."""
    now = time.time() + 5 * 3600
    dates = {"Date": formatdate(now, usegmt=True), "Retry-After": formatdate(now + 1, usegmt=True)}
    return reply({"detail": "busy"}, 503, **dates)


@contextmanager
def nothing() -> Iterator[Strikes]:
    yield Strikes(["the command names a closed port"])


@contextmanager
def report_on_a_full_disk() -> Iterator[Strikes]:
    with pytest.MonkeyPatch.context() as patch, full_disk("run/.report.html*") as struck:
        patch.setattr(report, "write", WRITE)
        yield struck


@contextmanager
def read_only_parent() -> Iterator[Strikes]:
    Path("run").mkdir()
    with read_only("run") as struck:
        yield struck


def no_memory_in_python(*_: Any, **__: Any) -> Any:
    raise MemoryError("Unable to allocate 2.00 GiB for an array")


DISK = [
    Row(
        "The disk is full: `config.yaml` of a new run", partial(full_disk, "run/.config.yaml*"),
        f"cannot write run/config.yaml: {FULL}", "Nothing yet.", AGAIN,
    ),
    Row(
        "The disk is full: `inputs.json` of a new run", partial(full_disk, "run/.inputs.json*"),
        f"cannot write run/inputs.json: {FULL}", "Nothing yet.", AGAIN,
    ),
    Row(
        "The disk is full: a line of `metrics.jsonl`", partial(full_disk, "run/metrics.jsonl", 3),
        f"cannot write run/metrics.jsonl: {FULL}{INTACT}",
        "The weights of all iterations, also of this one. Its line of metrics is lost; a warning says so on resume.",
        AGAIN, left=2, metrics=False, then="metrics.jsonl lacks the metrics of iteration 2",
    ),
    Row(
        "The disk is full: a checkpoint", partial(full_disk, "run/checkpoints/*", 2),
        f"cannot write run/checkpoints/000002.safetensors: {FULL}{INTACT}",
        "The checkpoint before it. The iterations after that one are trained again.", AGAIN, left=1,
    ),
    Row(
        "The disk is full: a sample grid", partial(full_disk, "run/samples/*0000?.png*", 2),
        f"cannot write run/samples/000002.png: {FULL}{INTACT}",
        "All iterations. The evaluation is repeated on resume.", AGAIN, left=2,
    ),
    Row(
        "The disk is full: `summary.json`", partial(full_disk, "run/.summary.json*"),
        f"cannot write run/summary.json: {FULL}; the checkpoint 000002.safetensors is intact",
        "The finished run.", "Free some space. Then run `flowward report RUN`.", left=2,
    ),
    Row(
        "The disk is full: `report.html`", report_on_a_full_disk,
        f"cannot write run/report.html: {FULL}; the checkpoint 000002.safetensors is intact",
        "The finished run.", "Free some space. Then run `flowward report RUN`.", left=2,
    ),
    Row(
        "The disk is full: `flowward export`", partial(full_disk, "run/export/*"),
        f"cannot write run/export: {FULL}; nothing was written there",
        "The run. A half-written export is deleted.", "Free some space, or name another `--output`.",
        "export run", left=1, begun=True,
    ),
    Row(
        "The disk is full: the model card of an export", partial(full_disk, "run/export/.README.md*"),
        f"cannot write run/export: {FULL}; nothing was written there",
        "The run. A half-written export is deleted.", "Free some space, or name another `--output`.",
        "export run", left=1, begun=True,
    ),
    Row(
        "The disk is full: `flowward eval --json`", partial(full_disk, "here/.n.json*"),
        f"cannot write here/n.json: {FULL}", "The scores are printed as a table.",
        "Free some space, and measure again.",
        "eval run --images 6 --steps 1 --json here/n.json", left=1, begun=True,
    ),
    Row(
        "The disk is full: `flowward sample`", partial(full_disk, ".y.png*"),
        f"{FULL}: y.png", "An older file of this name.", "Free some space, or name another `--output`.",
        "sample run circle --count 1 --steps 1 --output y.png --overwrite", left=1, begun=True,
    ),
    Row(
        "The disk is full: the cache of encoded prompts", partial(full_disk, "cache/*"),
        f"cannot write cache/HASH/HASH.safetensors: {FULL}; name another folder with the environment variable "
        "FLOWWARD_CACHE",
        "The prompts that were encoded before.", "Free some space, or set FLOWWARD_CACHE.",
        "eval {pipeline} --prompts drawbench-style --rewards jpeg-compressibility --images 2 --steps 1 "
        "--precision float32",
    ),
    Row(
        "The disk is full: the cache of a judge's answers", partial(full_disk, "answers/*"),
        "cannot store answers in answers: No space left on device; continuing without",
        "The answers that were stored before.", "Free some space, or the judge is asked again in the next run.",
        "eval run --rewards judge --reward-options judge.server={server}/v1 judge.cache=answers --images 2 --steps 1",
        0, left=1, begun=True,
    ),
    Row(
        "The folder of a new run is read-only", read_only_parent,
        "cannot write to {here}/run: it is read-only, or you have no permission; use another --output",
        "Nothing yet. The model was not loaded.", "Name another `--output`.",
        "train --output run/new --resume auto",
    ),
    Row(
        "The folder of a run that continues is read-only", partial(read_only, "run"),
        "cannot write run/metrics.jsonl: Read-only file system; the checkpoint 000001.safetensors is intact",
        "The run as it was.", "Make the folder writable, or copy the run.",
        f"{TRAIN} --iterations 2", left=1, metrics=False, begun=True,
    ),
    Row(
        "The folder of a finished run is read-only: `flowward export`", partial(read_only, "run"),
        "cannot write run/export: Read-only file system; nothing was written there",
        "The run as it was.", "Name another `--output`. `sample` and `eval` only read the run.",
        "export run", left=1, begun=True,
    ),
]  # fmt: skip
SERVERS = [
    Row(
        "The reward server is gone at the start", nothing,
        "reward 'remote': no reward server answers (http://gpu1:8000: [Errno 111] Connection refused); start one with: "
        "flowward serve-reward NAME --port 8000",
        "Nothing yet.", "Start the server. Then give the same command.",
        f"{TRAIN} {REMOTE}".replace("{server}", "{closed}"),
    ),
    Row(
        "The reward server is gone during the run, for longer than `patience`",
        partial(server, "fine", *[None] * 99),
        "scoring 'PROMPT': gave up after 0.2 s (raise `patience` to wait longer); http://gpu1:8000: "
        "Server disconnected without sending a response.",
        "All finished iterations.", "Start the server. Then give the same command with `--resume auto`.",
        f"{TRAIN} {REMOTE}", left=1,
    ),
    Row(
        "The reward server is gone for a short time", partial(server, "fine", None),
        "waiting for http://gpu1:8000: Server disconnected without sending a response.",
        "Everything. The images are sent again.", "Nothing.", f"{TRAIN} {REMOTE}", 0, left=2,
    ),
    Row(
        "The reward server is slower than `timeout`", partial(server, "fine", "slow"),
        "waiting for http://gpu1:8000: no answer within 0.5 s",
        "Everything. The images are sent again.", "If it happens often, raise `timeout` or lower `batch`.",
        f"{TRAIN} {REMOTE}", 0, left=2,
    ),
    Row(
        "The reward server returns NaN for one image", partial(server, "fine", "nan"),
        "reward 'remote' returned nan for 1 of 8 images, the first for the prompt 'PROMPT'",
        "All finished iterations.", "Repair the reward. Then give the same command with `--resume auto`.",
        f"{TRAIN} {REMOTE}", left=1,
    ),
]  # fmt: skip
CLOCKS = [
    Row(
        "The wall clock is five hours behind that of the server, which asks for a pause until a date",
        partial(server, "fine", later), "waiting for http://gpu1:8000 answered 503: busy",
        "Everything. The pause has the right length.", "Nothing.", f"{TRAIN} {REMOTE}", 0, left=2,
    ),
    Row(
        "The wall clock jumps by hours, forwards and backwards",
        lambda: server("fine", later, also=faults.clock("time", *[0, 5, -5] * 9)),
        "waiting for http://gpu1:8000 answered 503: busy",
        "Everything. No number depends on the time.", "Nothing.", f"{TRAIN} {REMOTE}", 0, left=2,
    ),
    Row(
        "The steady clock is set back while a server does not answer",
        lambda: server("fine", None, also=faults.clock("monotonic", 0, 0, -5)),
        "waiting for http://gpu1:8000: Server disconnected without sending a response.",
        "Everything.", "Nothing.", f"{TRAIN} {REMOTE}", 0, left=2,
    ),
    Row(
        "The steady clock jumps forwards while a server does not answer (a computer that slept)",
        lambda: server("fine", None, also=faults.clock("monotonic", 0, 0, 5)),
        "scoring 'PROMPT': gave up after 30 s (raise `patience` to wait longer); http://gpu1:8000: "
        "Server disconnected without sending a response.",
        "All finished iterations.", "Give the same command with `--resume auto`.", f"{TRAIN} {REMOTE}", left=1,
    ),
]  # fmt: skip
NUMBERS = [
    Row(
        "A gradient is NaN or infinite", partial(faults.loss, faults.nan, 3),
        "the gradient of iteration 2 is NaN or infinite; training stopped before the weights were updated. Lower the "
        "learning rate, or try --precision float32",
        "All finished iterations.", "Resume with a lower learning rate, or with `--skip-nonfinite`.", left=1,
    ),
    Row(
        "The same with `--skip-nonfinite 1`", partial(faults.loss, faults.nan, 3),
        "1 optimiser step was skipped because of a gradient that is NaN or infinite: if this happens often, lower the "
        "learning rate",
        "Everything. This step changes no weight.", "Nothing, if it is rare.",
        f"{TRAIN} --skip-nonfinite 1", 0, left=2, like="-",
    ),
    Row(
        "The same with `--rollback 1`", partial(faults.loss, faults.nan, 3),
        "went back from iteration 2 to 1, and goes on with 0.5 times the learning rate: the gradient of iteration 2 "
        "is NaN or infinite",
        "Everything. The iterations since the last checkpoint are trained again.", "Nothing, if it is rare.",
        f"{TRAIN} --rollback 1", 0, left=2, like="-",
    ),
]  # fmt: skip
MEMORY = [
    Row(
        "Memory runs out once in training", partial(faults.loss, faults.no_memory, 1),
        "out of memory with 8 training points per pass; going on with 4: the same result, in more time "
        "(--microbatch 4)",
        "Everything. The result is that of a run with half the microbatch, to the bit.",
        "Set the smaller microbatch in the next run.", code=0, left=2, like="--microbatch 4",
    ),
    Row(
        "Memory runs out while sampling", lambda: faults.replaced(Trainer, "draw", faults.no_memory, 2),
        "out of memory with images of 32 x 32, 288 images sampled at once and 8 training points per forward and "
        "backward pass: lower --rollout-batch and --microbatch, or use --gradient-checkpointing or --vae-tiling",
        "All finished iterations.", "Resume with a smaller `--rollout-batch`. It does not change the samples.", left=1,
    ),
    Row(
        "Memory runs out in an evaluation", lambda: faults.replaced(drawing, "Noise", faults.no_memory, 3),
        "out of memory with images of 32 x 32, 6 images sampled at once: lower --batch (in training "
        "--evaluation.batch), or use --vae-tiling",
        "All iterations. The evaluation is repeated on resume.",
        "Resume with a smaller `--evaluation.batch`. It does not change the scores.", left=2,
    ),
    Row(
        "GPU memory runs out while the model is loaded",
        lambda: faults.replaced(Policy, "prepare", faults.no_memory, 1),
        "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.): use smaller batches or images, or free "
        "memory that other programs use; `flowward memory` estimates what a model needs",
        "Nothing yet.", "Free memory. Then give the same command.",
    ),
    Row(
        "The main memory runs out", lambda: faults.replaced(Policy, "prepare", no_memory_in_python, 1),
        "out of memory (Unable to allocate 2.00 GiB for an array): use smaller batches or images, or free memory "
        "that other programs use; `flowward memory` estimates what a model needs",
        "Nothing yet, or all finished iterations.", "Free memory. Then give the same command with `--resume auto`.",
    ),
]  # fmt: skip
SECTIONS = {
    "Disks": DISK, "Reward servers": SERVERS, "Clocks": CLOCKS, "Gradients": NUMBERS, "Memory": MEMORY,
}  # fmt: skip
ROWS = [row for rows in SECTIONS.values() for row in rows]


HEAD = """# Faults and what you see

This page lists faults of a machine or a server, what the command prints, what is saved, and what to do. Most faults end
a run with one sentence and exit code 2. To continue it:

```
flowward train --resume runs/first
```

Every row is a test. It injects the fault, compares the sentence, and gives the same command again. The resumed run then
ends with the weights, the optimiser state and the metrics of a run without the fault, to the bit. There are three
exceptions: a lost line of metrics, and `--skip-nonfinite` and `--rollback`, which take other steps.

The examples are a run in the folder `run` that saves a checkpoint in every iteration, and a reward server on
`http://gpu1:8000`. PROMPT is a prompt, and HASH is the name of a cache file.
"""


def page() -> str:
    """docs/faults.md."""
    parts = [HEAD]
    for title, rows in SECTIONS.items():
        parts.append(f"## {title}\n\n| fault | what you see | what is saved | what to do |\n| --- | --- | --- | --- |")
        for row in rows:
            said = f"`` {row.sees.replace('{here}', '/data')} ``"
            seen = f"The command ends: {said}" if row.code else f"The command goes on: {said}"
            parts.append(f"| {row.fault} | {seen} | {row.saved} | {row.todo} |")
        parts.append("")
    parts.append(
        "This page is generated by `python tests/fault_rows.py > docs/faults.md`. Runs that were killed: see\n"
        "[reliability.md](reliability.md#killed-runs)."
    )
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")
