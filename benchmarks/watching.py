"""What `flowward watch` costs a run: CPU seconds of training per iteration, alone and while a page follows it.

    python benchmarks/watching.py --pairs 4

Runs alternate: alone, watched, watched, alone, ... CPU seconds are counted, not the clock, so other work on the machine
matters little. With `--browser /usr/bin/chromium` the page is open in Chromium; otherwise a client reads the stream.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from urllib.request import urlopen

SIZES = {"--images-per-update": 48, "--group-size": 8, "--microbatch": 48, "--evaluation.images": 24}
TRAIN = ["--precision", "bf16", "--threads", "1", *(str(word) for pair in SIZES.items() for word in pair)]
TICK = os.sysconf("SC_CLK_TCK")


def seconds(process: subprocess.Popen[bytes]) -> float:
    """CPU seconds of a process so far, in user and system mode."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def trained(folder: Path, iterations: int) -> float:
    """CPU seconds per iteration of a run, from the end of its first iteration to that of its last."""
    words = [
        sys.executable,
        "-m",
        "flowward",
        "train",
        *TRAIN,
        "--iterations",
        str(iterations),
        "--output",
        str(folder),
    ]
    metrics, known = folder / "metrics.jsonl", dict[int, float]()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and len(known) < iterations + 1:
            lines = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
            known.setdefault(lines - 1, seconds(process))  # line 0 is the evaluation before training
            time.sleep(0.05)
    return (known[iterations - 1] - known[1]) / (iterations - 2)  # the last iteration has an evaluation


@contextmanager
def watched(folder: Path, browser: str | None) -> Iterator[None]:
    """Inside, a page follows the folder."""
    words = [sys.executable, "-m", "flowward", "watch", str(folder), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = next(word for word in server.stdout.readline().split() if word.startswith("http"))
        reader = (
            [
                browser,
                "--headless",
                "--no-sandbox",
                f"--user-data-dir={folder}-profile",
                "--remote-debugging-port=0",
                address,
            ]
            if browser
            else [
                sys.executable,
                "-c",
                f"from urllib.request import urlopen\nfor _ in urlopen('{address}/events'): pass",
            ]
        )
        urlopen(address).read()
        with subprocess.Popen(reader, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as page:
            try:
                yield
            finally:
                page.terminate()
                server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--browser", help="Chromium; default: a client without a page")
    chosen = parser.parse_args()
    found: dict[str, list[float]] = {"alone": [], "watched": []}
    with tempfile.TemporaryDirectory() as work:
        for k in range(chosen.pairs):
            for name in ("alone", "watched") if k % 2 == 0 else ("watched", "alone"):
                runs = Path(work) / f"{name}-{k}"
                runs.mkdir()
                with watched(runs, chosen.browser) if name == "watched" else nullcontext():
                    found[name].append(trained(runs / "run", chosen.iterations))
            print(f"alone {found['alone'][-1]:.3f} s, watched {found['watched'][-1]:.3f} s per iteration", flush=True)
    alone, followed = median(found["alone"]), median(found["watched"])
    print(f"medians: alone {alone:.3f} s, watched {followed:.3f} s, ratio {followed / alone:.3f}")


if __name__ == "__main__":
    main()
