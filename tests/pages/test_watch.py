"""A folder of runs as it changes: each line is sent once, and nothing outside the folder is read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from watched_runs import line, made, written

from flowward.pages.watch import overlay, pictures, state
from flowward.pages.watch.folder import Folder, Seen
from flowward.pages.watch.tail import Tail
from flowward.training.folder import RunFolder
from flowward.training.record import Record

RECORDS = Record.records


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowward.pages.watch.folder.PAUSE", 0.0)


def events(folder: Folder, seen: Seen) -> list[tuple[str, Any]]:
    return [(name, json.loads(data)) for name, data in folder.news(seen)]


def add(run: Path, text: str) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        file.write(text)


def test_a_line_counts_once_and_when_it_is_whole(tmp_path: Path) -> None:
    path, whole = tmp_path / "metrics.jsonl", written([line(1)])
    tail = Tail(path)
    assert tail.read() == (False, [])
    path.write_text(whole + whole.replace("1", "2", 1)[:20])
    assert [each["iteration"] for each in tail.read()[1]] == [1] and tail.read() == (False, [])
    add(tmp_path, whole.replace("1", "2", 1)[20:] + '{"iteration": 3, "reward": [\nnothing\n\xff\n')
    assert [each["iteration"] for each in tail.read()[1]] == [2]
    assert tail.offset == path.stat().st_size


def test_a_file_that_was_written_anew_replaces_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    path.write_text(written([line(k) for k in range(3)]))
    tail.read()
    (tmp_path / "other").write_text(written([line(k) for k in range(3)]))
    os.replace(tmp_path / "other", path)  # as a resumed run does, here with the same size
    anew, lines = tail.read()
    assert anew and len(lines) == 3
    path.write_text(written([line(0)]))
    assert tail.read()[0]
    path.unlink()
    assert tail.read() == (True, []) and tail.read() == (False, [])


@pytest.mark.parametrize(
    ("done", "summary", "silent", "held", "kind"),
    [
        (4, {}, 5.0, True, "running"),
        (4, {"finished": True, "iterations": 2}, 5.0, True, "running"),  # resumed
        (10, {"finished": True, "iterations": 10}, 1e6, False, "finished"),
        (4, {"finished": False, "iterations": 4}, 1e6, False, "stopped"),
        (10, {}, 1e6, False, "finished"),  # from Python
        (4, {}, 5.0, False, "running"),  # on another machine, whose locks are not seen
        (4, {}, 1e4, False, "failed"),
        (4, {}, 5.0, None, "failed"),  # its lock was seen before
        (4, {"finished": True, "iterations": 2}, 1e4, False, "failed"),  # resumed, then killed
    ],
)
def test_the_state_of_a_run(done: int, summary: dict, silent: float, held: bool | None, kind: str) -> None:
    assert state.of([line(k) for k in range(done + 1)], summary, 10, silent, held).kind == kind


def test_slow_iterations_are_waited_for() -> None:
    slow = [line(k, seconds={"total": 900.0}) for k in range(4)]
    assert state.of(slow, {}, 10, 1000.0, False).kind == "running"
    assert state.of(slow, {}, 10, 5000.0, False).kind == "failed"
    assert state.of([], {}, 10, 10.0, True).said == "" and "no new line" in state.of([], {}, 10, 1e5, True).said


@pytest.mark.skipif(not state.LOCKS.exists(), reason="this system does not list locks")
def test_the_lock_of_a_run_is_seen_and_not_taken(tmp_path: Path) -> None:
    run = RunFolder(made(tmp_path / "run"))
    assert not state.is_held(run.path, state.locks())
    with run.held():
        assert state.is_held(run.path, state.locks()) and not state.is_held(tmp_path, state.locks())
    assert not state.is_held(tmp_path / "gone", state.locks())


@pytest.mark.parametrize("cut", [0, 1, 6, 7, 10])
def test_parts_of_a_run_join_to_the_whole(cut: int) -> None:
    """What a page appends gives the curves that it would get at once."""
    lines = [line(k) for k in range(12)]
    whole, parts = (
        overlay.drawn(lines, "run"),
        [overlay.drawn(lines[:cut], "run"), overlay.drawn(lines[cut:], "run", 2.0 * cut)],
    )
    for kind, axis in whole.axes.items():
        assert axis == {name: parts[0].axes[kind][name] + parts[1].axes[kind][name] for name in axis}
    for name, series in whole.series.items():
        joined = [y for part in parts for y in part.series.get(name, {"y": []})["y"]]
        assert joined == series["y"] and len(joined) == len(whole.axes[series["axis"]]["iteration"])
    assert {"metric/reward", "metric/pull@0", "score/x-strict", "score/x-strict/a"} <= whole.charts.keys()
    assert whole.charts["metric/pull@0"]["section"] == "step"


def test_a_long_run_keeps_its_spikes_and_its_last_points() -> None:
    lines = [line(k) for k in range(1, 1001)]
    lines[316]["gradient_norm"] = 9.0
    keep = overlay.thinned(lines)
    assert len(keep) <= overlay.MOST and keep == sorted(set(keep))
    assert keep[0] == 0 and 316 in keep and keep[-overlay.LAST :] == list(range(1000 - overlay.LAST, 1000))
    drawn = overlay.drawn(lines, "run")
    assert drawn.series["metric/gradient_norm"]["y"][keep.index(316)] == 9.0
    assert drawn.axes["trained"]["iteration"][keep.index(316)] == 317
    assert overlay.thinned([{"iteration": k} for k in range(1000)])[-1] == 999


def test_only_new_lines_are_sent(tmp_path: Path) -> None:
    run = made(tmp_path / "runs" / "one", many=6)
    made(tmp_path / "runs" / "deep" / "one", many=3)
    folder, seen = Folder(tmp_path / "runs"), Seen()
    ((name, first),) = events(folder, seen)
    assert name == "runs" and [each["id"] for each in first["runs"]] == ["deep/one", "one"]
    assert first["runs"][1]["facts"]["score"] == "strict accuracy 50.0 % [40.0, 60.0]"
    assert events(folder, seen) == []
    add(run, written([line(6)]) + written([line(7)])[:30])
    ((name, news),) = events(folder, seen)
    assert name == "lines" and news["id"] == "one" and news["axes"]["trained"]["iteration"] == [6]
    assert news["axes"]["trained"]["seconds"] == [14.0] and news["charts"] == {} and news["facts"]["iteration"] == 6
    assert events(folder, seen) == []
    shutil.copy(run / "samples" / "000000.json", run / "samples" / "000005.json")
    ((name, news),) = events(folder, seen)
    assert name == "facts" and news["facts"]["samples"] == [0, 5]
    ((_, again),) = events(folder, Seen())  # a second page
    assert again["runs"][1]["axes"]["trained"]["iteration"] == [1, 2, 3, 4, 5, 6]


def test_runs_that_come_go_and_begin_again(tmp_path: Path) -> None:
    folder, seen = Folder(tmp_path), Seen()
    assert events(folder, seen)[0][1]["runs"] == []
    run = made(tmp_path / "one", many=6)
    assert [name for name, _ in events(folder, seen)] == ["run"]
    (run / "other").write_text(written([line(k) for k in range(2)]))
    os.replace(run / "other", run / "metrics.jsonl")  # resumed from an earlier checkpoint
    ((name, news),) = events(folder, seen)
    assert name == "run" and news["axes"]["trained"]["iteration"] == [1]
    shutil.rmtree(run)
    assert events(folder, seen) == [("gone", {"id": "one"})] and events(folder, seen) == []
    made(tmp_path / "one", many=3)
    assert [name for name, _ in events(folder, seen)] == ["run"]
    shutil.rmtree(tmp_path)
    assert {name for name, _ in events(folder, seen)} == {"gone", "folder"}


def test_a_damaged_run_is_shown_with_its_fault(tmp_path: Path) -> None:
    made(tmp_path / "one")
    (tmp_path / "one" / "config.yaml").write_text("model: 7\n")
    (tmp_path / "one" / "summary.json").write_text("{")
    made(tmp_path / "two", many=0)
    ((_, first),) = events(Folder(tmp_path), Seen())
    one, two = (each["facts"] for each in first["runs"])
    assert "config.yaml is damaged: model is '7'" in one["wrong"] and two["wrong"] == ""
    assert one.keys() == two.keys() and two["health"] == [] and two["state"] == "running"


def test_a_run_folder_alone_can_be_watched(tmp_path: Path) -> None:
    ((_, first),) = events(Folder(made(tmp_path / "one")), Seen())
    assert [each["id"] for each in first["runs"]] == ["one"]


@pytest.mark.parametrize("name", ["gone", "file"])
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="does not exist" if name == "gone" else "is not a folder"):
        Folder(tmp_path / name)


def test_links_that_lead_outside_are_not_followed(tmp_path: Path) -> None:
    outside = made(tmp_path / "outside" / "secret")
    runs = tmp_path / "runs"
    for part in ("metrics.jsonl", "config.yaml", "samples"):
        own = made(runs / f"its-{part}", many=2)
        shutil.rmtree(own / part) if part == "samples" else (own / part).unlink()
        (own / part).symlink_to(outside / part)
    (runs / "linked").symlink_to(outside)
    (runs / "all").symlink_to(tmp_path / "outside")
    folder = Folder(runs)
    ((_, first),) = events(folder, Seen())
    found = {each["id"]: each for each in first["runs"]}
    assert found.keys() == {"its-metrics.jsonl", "its-samples"} and first["outside"] == 3
    assert found["its-metrics.jsonl"]["axes"]["trained"]["iteration"] == []
    assert found["its-samples"]["facts"]["samples"] == [] and folder.picture_file("its-samples", 0) is None


@pytest.mark.parametrize("name", ["../outside/secret", "linked", "", ".", "/etc", "one/../../outside/secret", "one\0"])
def test_only_known_names_lead_to_pictures(tmp_path: Path, name: str) -> None:
    made(tmp_path / "outside" / "secret")
    made(tmp_path / "runs" / "one")
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "outside" / "secret")
    folder = Folder(tmp_path / "runs")
    folder.news(Seen())
    assert folder.picture_file(name, 0) is None and folder.picture_file("one", 7) is None
    path = folder.picture_file("one", 0)
    assert path is not None and pictures.of(path)[0]["prompt"] == "<b>a cat</b>"


def test_damaged_pictures_are_none(tmp_path: Path) -> None:
    (tmp_path / "000000.json").write_text('{"iteration": 0, "samples": [{"image": "<b>"}]}')
    assert pictures.of(tmp_path / "000000.json") == [] == pictures.of(tmp_path / "gone.json")


def test_pictures_are_listed_again_only_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, looked = made(tmp_path / "run"), []
    monkeypatch.setattr(Record, "records", lambda record: looked.append(1) or RECORDS(record))
    folder, seen = Folder(tmp_path), Seen()
    for _ in range(3):
        folder.news(seen)
    assert len(looked) == 3  # the folder has just changed, and may change again within one tick of the clock
    os.utime(run / "samples", (1e9, 1e9))
    for _ in range(3):
        assert folder.runs["run"].facts["samples"] == [0] and not folder.news(seen)
    assert len(looked) == 4
    shutil.copy(run / "samples" / "000000.json", run / "samples" / "000005.json")
    assert [json.loads(data)["facts"]["samples"] for _, data in folder.news(seen)] == [[0, 5]]
    shutil.rmtree(run / "samples")
    assert [json.loads(data)["facts"]["samples"] for _, data in folder.news(seen)] == [[]]


def test_figures_line_by_line_are_those_of_all_lines() -> None:
    lines = [line(k, health=[f"{k} groups had equal rewards"] * (k % 3 > 0)) for k in range(41)]
    growing = overlay.Figures()
    for k, each in enumerate(lines):
        growing.add([each])
        assert growing.values({}, 10) == overlay.figures(lines[: k + 1], {}, 10)
    assert growing.values({})["health"][0][1:] == ["27", "1–2, 4–5, 7–8, 10–11, 13–14, 16–17, 19–20, 22–23, 25–26, "
                                                   "28–29, 31–32, … 40 (27 in all)"]  # fmt: skip
