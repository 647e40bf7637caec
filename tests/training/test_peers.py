"""Programs beside each other (benchmarks/peers.py): protocol, order of rounds, ratios, and workers that fail."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import benchmark

HOME = Path(__file__).parents[2]
peers = benchmark("peers")

LOG = "import json, sys, time\n"
HONEST = LOG + (  # writes its name to a file for each epoch, so that the order can be seen
    "for k, line in enumerate(sys.stdin):\n"
    "    if line.strip() == 'quit': break\n"
    "    open(sys.argv[1], 'a').write(sys.argv[2])\n"
    "    print(json.dumps({'wall': 2.0 + k, 'cpu': float(sys.argv[3]), 'threads': 1}), flush=True)\n"
)


def conducted(scripts: dict[str, list[str]], rounds: int = 2, warm: int = 1) -> list[list[dict[str, Any]]]:
    with ExitStack() as stack:
        workers = [
            stack.enter_context(peers.started(name, [sys.executable, "-c", *words], 1))
            for name, words in scripts.items()
        ]
        found: list[list[dict[str, Any]]] = peers.conducted(workers, rounds, warm)
    assert all(worker.process.returncode is not None for worker in workers)
    return found


def test_two_workers_take_turns_and_every_second_round_goes_backwards(tmp_path: Path) -> None:
    log = tmp_path / "log"
    scripts = {name: [HONEST, str(log), name, cpu] for name, cpu in (("A", "2"), ("B", "3"))}
    found = conducted(scripts, rounds=3, warm=2)
    assert log.read_text() == "AABB" + "AB" + "BA" + "AB"
    assert [each["cpu"] for each in found[1]] == [3.0, 3.0, 3.0]
    assert [each["wall"] for each in found[0]] == [4.0, 5.0, 6.0]  # the two epochs of the warm-up do not count


def test_order_of_three() -> None:
    assert [peers.order(k, 3) for k in range(3)] == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]


def test_ratios_are_paired_by_round() -> None:
    """Ratios of the rounds: 2, 0.5, 1. The ratio of the medians would be 1.5."""
    first = [{"cpu": 1.0}, {"cpu": 10.0}, {"cpu": 2.0}]
    other = [{"cpu": 2.0}, {"cpu": 5.0}, {"cpu": 2.0}]
    assert peers.ratios(other, first, "cpu") == peers.Figures(1.0, 0.5, 2.0)
    assert str(peers.Figures.of([3.0, 1.0, 2.0])) == "2.000 [1.000 3.000]"


def test_the_table_has_all_figures_and_says_if_threads_differ() -> None:
    one = [{"cpu": 2.0, "wall": 1.0, "threads": 1, "evaluations": {"forward": 40}}]
    two = [{"cpu": 1.0, "wall": 2.0, "threads": 2}]
    lines = peers.table(["ours", "theirs"], [one, two])
    assert lines[1].endswith("1, 40 forward") and lines[2].endswith("2, not reported")
    assert re.findall(r"\d\.\d{3}(?= \[)", lines[2]) == ["1.000", "2.000", "0.500", "2.000"]
    assert "different numbers of threads" in lines[3]
    assert len(peers.table(["ours", "ours again"], [one, one])) == 3


def test_a_worker_that_dies_is_told_with_its_last_error_lines() -> None:
    dying = LOG + "input()\nprint('no memory left', file=sys.stderr)\nsys.exit(3)"
    with pytest.raises(peers.WorkerError, match=r"worker B ended with exit code 3; its last error lines:\nno memory"):
        conducted({"B": [dying]})


def test_a_worker_that_was_dead_before_its_epoch_is_told(tmp_path: Path) -> None:
    with pytest.raises(peers.WorkerError, match=r"worker B ended with exit code 0; it wrote no error"):
        conducted({"A": [HONEST, str(tmp_path / "log"), "A", "1"], "B": ["pass"]})


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("loading model", "answered 'loading model', not JSON"),
        ("[1, 2]", "not JSON"),
        ('{"wall": 1.0}', "needs 'cpu' in seconds"),
        ('{"wall": 1.0, "cpu": 0}', "needs 'cpu' in seconds, above 0"),
        ('{"wall": "fast", "cpu": 1}', "needs 'wall' in seconds"),
    ],
)
def test_an_answer_that_cannot_be_used_is_told(said: str, why: str) -> None:
    with pytest.raises(peers.WorkerError, match=re.escape(why)):
        conducted({"B": [f"{LOG}\nfor line in sys.stdin: print({said!r}, flush=True)"]})


def test_a_program_that_does_not_exist_is_told() -> None:
    with pytest.raises(peers.WorkerError, match="worker B cannot be started"), peers.started("B", ["/no/such"], 1):
        pass


def test_the_command_prints_the_table_and_one_sentence_on_failure(tmp_path: Path) -> None:
    import shlex

    script = tmp_path / "worker.py"
    script.write_text(HONEST)
    words = [sys.executable, str(HOME / "benchmarks" / "peers.py"), "--rounds", "2"]
    good = shlex.join([sys.executable, str(script), str(tmp_path / "log"), "A", "2"])
    done = subprocess.run([*words, "--worker", "A", good, "--worker", "again", good], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("again") and "1.000 [1.000 1.000]" in done.stdout
    bad = shlex.join([sys.executable, "-c", "raise SystemExit('out of luck')"])
    done = subprocess.run([*words, "--worker", "A", good, "--worker", "bad", bad], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["worker bad ended with exit code 1; its last error lines:", "out of luck"]


def test_our_side_answers_until_quit() -> None:
    answers = io.StringIO()
    peers.answer(lambda: {"forward": 40}, 1, io.StringIO("epoch\nepoch\nquit\nepoch\n"), answers)
    found = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert len(found) == 2 and found[0]["evaluations"] == {"forward": 40}
    assert all(each["wall"] > 0 and each["cpu"] > 0 and each["threads"] == 1 for each in found)


def test_variants_of_ours_are_contenders_of_their_own() -> None:
    import argparse

    chosen = argparse.Namespace(
        ours=["awm"], scenes=[], images=144, beside=[], microbatch=[32, 8], compile=True, plain=False, threads=1
    )
    found = peers.ours(chosen)
    assert list(found) == ["awm, microbatch 32", "awm, microbatch 32, compile", "awm, microbatch 8",
                           "awm, microbatch 8, compile"]  # fmt: skip
    assert found["awm, microbatch 8, compile"][-1] == "--compile"


def test_an_older_checkout_goes_first_and_runs_the_same_workload() -> None:
    import argparse

    chosen = argparse.Namespace(
        ours=[], scenes=["awm"], images=72, beside=[["before", "../old"]], microbatch=[None], compile=True, plain=False,
        threads=1,
    )  # fmt: skip
    found = peers.ours(chosen)
    assert list(found) == ["awm, before", "awm"] and found["awm, before"] == [*found["awm"], "--home", "../old"]
    assert found["awm"][2:] == ["--serve-scenes", "awm", "--images", "72", "--threads", "1"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--beside", "before", str(HOME), "--scenes", "awm", "flow_grpo"], "--beside compares one workload"),
        (["--beside", "before", "/nowhere", "--scenes", "awm"], "there is no flowward in /nowhere"),
    ],
)
def test_two_checkouts_of_one_workload_are_compared(words: list[str], why: str) -> None:
    command = [sys.executable, str(HOME / "benchmarks" / "peers.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and why in done.stderr


def test_the_worker_on_the_page_keeps_to_the_protocol() -> None:
    page = (HOME / "docs" / "benchmarks.md").read_text("utf-8")
    code = re.findall(r"^```py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0]
    found = conducted({"example": [code]}, rounds=1)
    assert found[0][0]["evaluations"] == {"forward": 40}


@pytest.mark.slow
def test_a_workload_of_ours_makes_the_evaluations_of_its_description() -> None:
    """8 images in 5 steps, and 8 images with 4 points each."""
    words = [sys.executable, str(HOME / "benchmarks" / "peers.py"), "--ours", "flow_grpo", "--rounds", "1"]
    done = subprocess.run([*words, "--warm", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "40 forward, 8 decode, 32 forward+backward" in done.stdout.splitlines()[-1]
    words[words.index("flow_grpo")] = "flow"
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1 and "there is no workload 'flow'; known: 'flow_grpo', " in done.stderr
