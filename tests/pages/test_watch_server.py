"""The server of `flowward watch`: it answers reads alone, with the token, and sends new lines as they come."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from local_servers import running
from program import contents
from watched_runs import line, made, written

from flowward.cli import main
from flowward.pages.watch import server
from flowward.pages.watch.folder import Folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    made(tmp_path / "outside")
    made(tmp_path / "runs" / "a <b>run</b> & more", many=6)
    return tmp_path / "runs"


@pytest.fixture
def at(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(server, "PAUSE", 0.05)
    monkeypatch.setattr(server, "STEP", 0.05)
    monkeypatch.setattr("flowward.pages.watch.folder.PAUSE", 0.0)
    ends = threading.Event()
    with running(server.application(Folder(runs), None, ends.is_set)) as at:
        yield at
        ends.set()


def asked(at: str, path: str = "/", method: str = "GET", **headers: str) -> HTTPResponse:
    parts = urlsplit(at)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    return connection.getresponse()


def event(stream: HTTPResponse) -> tuple[str, dict]:
    """The next event that is no comment."""
    name = ""
    while True:
        said = stream.readline().decode()
        if said.startswith("event: "):
            name = said.removeprefix("event: ").strip()
        if said.startswith("data: "):
            return name, json.loads(said.removeprefix("data: "))


def test_new_lines_are_sent_as_they_come(at: str, runs: Path) -> None:
    stream = asked(at, "/events")
    assert stream.getheader("content-type", "").startswith("text/event-stream")
    name, first = event(stream)
    assert name == "runs" and first["runs"][0]["id"] == "a <b>run</b> & more"
    with open(runs / first["runs"][0]["id"] / "metrics.jsonl", "a") as file:
        file.write(written([line(6)]))
    name, news = event(stream)
    assert name == "lines" and news["axes"]["trained"]["iteration"] == [6]


def test_the_page_runs_its_own_scripts_alone(at: str) -> None:
    answer = asked(at)
    html, policy = answer.read().decode(), answer.getheader("content-security-policy", "")
    scripts = re.findall(r"<script(?: type=\"[^\"]*\")?[^>]*>(.*?)</script>", html, re.DOTALL)
    codes = [each for each in scripts if "use strict" in each or "plotly" in each[:200]]
    assert len(codes) == 4
    for code in codes:
        assert base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() in policy
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy
    assert not re.search(r"<(script|link|img)[^>]*(src|href)\s*=\s*\"?(https?:)?//", html)
    assert answer.getheader("referrer-policy") == "no-referrer"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/", "/events", "/pictures?run=x&iteration=0", "/runs"])
def test_nothing_can_be_written(at: str, runs: Path, method: str, path: str) -> None:
    before = contents(runs)
    assert asked(at, path, method, **{"Content-Length": "0"}).status in (404, 405)
    assert contents(runs) == before


@pytest.mark.parametrize(
    "path",
    [
        "/../outside/config.yaml",
        "/%2e%2e/outside/config.yaml",
        "/a/config.yaml",
        "//etc/passwd",
        "/pictures?run=..%2Foutside&iteration=0",
        "/pictures?run=%2Fetc&iteration=0",
        "/pictures?run=.&iteration=../../outside/samples/000000",
        "/openapi.json",
        "/docs",
    ],
)
def test_no_path_leads_to_a_file(at: str, path: str) -> None:
    answer = asked(at, path)
    assert answer.status in (404, 422) and b"awm" not in answer.read()


def test_pictures_of_a_run(at: str) -> None:
    event(asked(at, "/events"))
    answer = asked(at, "/pictures?run=a%20%3Cb%3Erun%3C/b%3E%20%26%20more&iteration=0")
    assert answer.status == 200 and json.loads(answer.read())[0]["facts"] == [
        ["", "right", "right"],
        ["x", "0.500", ""],
    ]


@pytest.mark.parametrize(
    ("host", "status"), [("localhost:80", 200), ("[::1]", 200), ("evil.example", 403), ("10.0.0.1", 403)]
)
def test_a_name_of_another_site_is_refused(at: str, host: str, status: int) -> None:
    assert asked(at, Host=host).status == status


def test_a_token_is_needed_everywhere(runs: Path) -> None:
    with running(server.application(Folder(runs), "s+cret", lambda: True)) as at:
        for path in ("/", "/events", "/pictures?run=x&iteration=0"):
            more = "&" if "?" in path else "?"
            assert asked(at, path).status == asked(at, f"{path}{more}token=s%2Bcre").status == 401
            assert asked(at, f"{path}{more}token=%ff%c3%28").status == 401
            wanted = 404 if "pictures" in path else 200
            assert asked(at, f"{path}{more}token=s%2Bcret").status == wanted
            assert asked(at, path, Authorization="Bearer s+cret", Host="other.example").status == wanted


def test_other_machines_need_a_token_that_is_printed(runs: Path) -> None:
    words = [sys.executable, "-m", "flowward", "watch", str(runs), "--host", "0.0.0.0", "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        found = re.search(r"http://0\.0\.0\.0:(\d+)(/\?token=[\w-]{32})", program.stdout.readline())
        assert found
        local = f"http://127.0.0.1:{found[1]}"
        assert (asked(local).status, asked(local, found[2]).status) == (401, 200)
        stream = asked(local, found[2].replace("/", "/events"))
        assert event(stream)[0] == "runs"
        program.terminate()
        assert program.wait(timeout=10) in (0, -15)
        assert stream.read() is not None  # the stream has ended with the server


def test_a_port_that_is_taken_is_refused(runs: Path, refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refused("watch", runs, "--port", str(taken.getsockname()[1]))
    assert "cannot listen at 127.0.0.1" in said and "name another --host or --port" in said
    assert "a port lies between 0 and 65535" in refused("watch", runs, "--port", "70000")
    assert "does not exist" in refused("watch", runs / "gone")
    assert "token must be printable" in refused("watch", runs, "--token", "")


def test_a_missing_extra_is_named(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package, name in (("flowward.system", "serving"), ("flowward.pages.watch", "server")):
        monkeypatch.delitem(sys.modules, f"{package}.{name}", raising=False)
        monkeypatch.delattr(f"{package}.{name}", raising=False)
    for name in ("fastapi", "uvicorn"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["watch", str(runs)]) == 2
    assert "pip install 'flowward[server]'" in capsys.readouterr().err
