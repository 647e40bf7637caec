"""The tool `python`: what a snippet may do, and that whatever it tries ends as an observation within its limits."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from flowward.agent import confined
from flowward.agent.confined import Bounds, Python, cannot_confine, run
from flowward.agent.tools import ToolError

SMALL = Bounds(cpu=1, wall=10, memory=512, processes=12, disk=4, output=2000)
BRIEF = replace(SMALL, wall=0.6)
QUICK = 30.0  # seconds that any test here may take, on a busy machine too

confined_here = not cannot_confine()  # where namespaces are switched off, the refusal below is what is tested
both = pytest.mark.parametrize("sealed", [True, False] if confined_here else [False])


@pytest.fixture(autouse=True)
def within_the_limits() -> Iterator[None]:
    """Every test here ends in time, and leaves no process beside those that other tests share (processes.py)."""
    before, started = {*_children()}, time.monotonic()
    yield
    assert time.monotonic() - started < QUICK
    assert {*_children()} <= before


def _children() -> list[str]:
    """The processes that this one has started and not forgotten, zombies too (Linux)."""
    found = []
    for task in Path("/proc/self/task").glob("*/children"):
        found += task.read_text().split()
    return found


def _running(mark: str) -> bool:
    """Whether a process has this word in its command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                return True
        except OSError:
            continue
    return False


def failure(code: str, sealed: bool, bounds: Bounds = SMALL) -> str:
    with pytest.raises(ToolError) as raised:
        run(code, bounds, sealed)
    return str(raised.value)


@both
@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("6 * 7", "42"),
        ("print('a')\nprint('b')", "a\nb"),
        ("x = 3\nprint(x)\n'last'", "3\n'last'"),
        ("x = 3", ""),
        ("None", ""),
        ("def f(n):\n    return n * f(n - 1) if n else 1\n\nf(20)", "2432902008176640000"),
        ("import math\nmath.gcd(12, 18)", "6"),
        ("import numpy\nint(numpy.arange(4).sum())", "6"),
        ("open('note', 'w').write('abc')\nopen('note').read()", "'abc'"),
        ("import multiprocessing\nmultiprocessing.Pool(2).map(abs, [-1, 2])", "[1, 2]"),
        ("exit()", ""),
        ("'é' + chr(0xd800)", "'é\\ud800'"),
        ("print('é' + chr(0xd800))", "é\\ud800"),
        ("list({'one', 'two', 'three'}) == list({'one', 'two', 'three'})", "True"),
    ],
)
def test_what_a_snippet_prints_and_its_last_value(code: str, result: str, sealed: bool) -> None:
    assert run(code, Bounds(), sealed) == result


@both
@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("print('so far')\n1 / 0", "so far\nline 2: ZeroDivisionError: division by zero"),
        ("def f(:", "line 1: SyntaxError: invalid syntax"),
        ("def f():\n    raise KeyError('x')\n\nf()", "line 2: KeyError: 'x'"),
        ("import json\njson.loads('{')", "line 2: JSONDecodeError: "),
        ("\x00", "SyntaxError: source code "),
        ("input()", "line 1: EOFError: "),
        ("exit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "line 1: KeyboardInterrupt"),
        ("class E(Exception):\n    def __str__(self):\n        raise ValueError\n\nraise E", "line 5: E"),
        ("import os\nos._exit(7)", "the snippet ended with the exit code 7"),
        ("f = lambda: f()\nf()", "line 1: RecursionError: "),
        ("import ctypes\nctypes.string_at(1)", "the snippet crashed the interpreter"),
        ("1" * (confined.LONGEST + 1), "the snippet has 100001 characters"),
    ],
)
def test_an_error_is_the_last_line_of_the_traceback(code: str, why: str, sealed: bool) -> None:
    assert failure(code, sealed).startswith(why)


@both
def test_each_snippet_runs_once_and_nothing_is_kept(sealed: bool, tmp_path: Path) -> None:
    assert run("print('once')", SMALL, sealed) == "once"
    run("open('left', 'w').write('x'); y = 1", SMALL, sealed)
    assert run("import os\nos.listdir('.'), 'y' in globals()", SMALL, sealed) == "([], False)"
    assert run("import os\nos.getcwd() == os.path.expanduser('~')", SMALL, sealed) == "True"


@both
def test_an_endless_loop_is_ended(sealed: bool) -> None:
    assert failure("print('in')\nwhile True: pass", sealed) == (
        "the snippet was ended after 1 s of processor time; before that it printed:\nin"
    )


@both
def test_endless_sleep_is_ended(sealed: bool) -> None:
    assert failure("import time\ntime.sleep(1000)", sealed, BRIEF) == "the snippet was ended after 0.6 s"


@both
@pytest.mark.parametrize(
    "code",
    [
        "while True: print('x' * 100)",
        "import os\nwhile True: os.write(1, b'x' * 100_000)",
        "import signal, os\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: print('x' * 100)",
    ],
)
def test_endless_output_is_cut(code: str, sealed: bool) -> None:
    said = failure(code, sealed)
    assert said.startswith("the snippet was ended: it printed more than 2,000 bytes") and len(said) < 2200


@both
def test_memory_is_bounded(sealed: bool) -> None:
    little = replace(SMALL, memory=128)
    assert failure("x = bytearray(10 ** 11)", sealed) == "line 1: MemoryError"
    assert "MemoryError" in failure("x = []\nwhile True: x.append(bytearray(10 ** 7))", sealed, little)
    assert run("len(bytearray(10 ** 7))", SMALL, sealed) == "10000000"


BOMB = """
import os, time
for i in range(400):  # a bound of its own, should ours fail
    if not os.fork():
        time.sleep(30)
        os._exit(0)
"""


@both
def test_a_fork_bomb_is_bounded(sealed: bool) -> None:
    assert "BlockingIOError: [Errno 11] Resource temporarily unavailable" in failure(BOMB, sealed)
    code = "import threading, time\nfor i in range(400): threading.Thread(target=time.sleep, args=(30,)).start()"
    assert "RuntimeError: can't start new thread" in failure(code, sealed)


@both
def test_a_fork_bomb_that_goes_on_is_ended(sealed: bool) -> None:
    code = """
import os, time
until = time.monotonic() + 3  # a bound of its own, should ours fail
while time.monotonic() < until:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
"""
    assert "was ended" in failure(code, sealed, BRIEF)


COUNT = """
import os, time
n = 0
try:
    for i in range(100):
        if not os.fork():
            time.sleep(9)
            os._exit(0)
        n += 1
except OSError:
    pass
n
"""


def test_only_so_many_processes_at_once() -> None:
    if confined_here:
        assert int(run(COUNT, SMALL, True)) == SMALL.processes - 1


@both
@pytest.mark.parametrize(
    "start",
    [
        "import subprocess\nsubprocess.Popen(['sleep', '{}'])",
        "import subprocess\nsubprocess.Popen(['sleep', '{}'], start_new_session=True)",
        "import os\nos.system('setsid sleep {} & ')",
        "import os\nif not os.fork():\n    os.setsid()\n    os.fork() or os.execlp('sleep', '-', '{}')\n    exit()",
    ],
)
@pytest.mark.parametrize("then", ["'done'", "import time; time.sleep(99)"])
def test_no_process_outlives_its_snippet(start: str, then: str, sealed: bool) -> None:
    mark = f"{5000 + uuid.uuid4().int % 10**6}.25"
    code = start.format(mark) + "\n" + then
    if then == "'done'":
        assert run(code, SMALL, sealed) == "'done'"
    else:
        assert "was ended" in failure(code, sealed, BRIEF)
    assert not _running(mark)


if confined_here:

    def test_files_of_the_machine_are_not_there(tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("keys")
        for place in (secret, Path(__file__), Path.home() / ".bashrc", "/etc/passwd", "/proc/1/environ", "/sys/kernel"):
            assert "FileNotFoundError" in failure(f"open({str(place)!r})", True)

    def test_nothing_outside_its_home_can_be_written(tmp_path: Path) -> None:
        for place in (tmp_path, Path(sys.prefix), Path(os.__file__).parent, Path("/usr"), Path("/")):
            said = failure(f"open({str(place / 'written_by_a_snippet')!r}, 'w')", True)
            assert re.search("Read-only file system|Permission denied|No such file", said), said
            assert not (place / "written_by_a_snippet").exists()
        for code in ("os.remove(os.__file__)", "os.chmod(os.__file__, 0o777)", "os.rename('/usr', '/home/x')"):
            assert re.search("Read-only file system|Permission denied", failure(f"import os\n{code}", True))

    def test_what_is_shown_is_read_only_for_an_ordinary_user_too() -> None:
        """Nobody may write little anyway, but who runs this may own the folder of Python."""
        code = (
            "import os, sys\n[os.statvfs(each).f_flag & os.ST_RDONLY > 0 for each in ('/usr', sys.prefix, os.__file__)]"
        )
        assert run(code, SMALL, True) == "[True, True, True]"

    def test_files_are_bounded_each_and_together() -> None:
        assert re.search("File too large|No space left", failure("open('a', 'w').write('x' * 10 ** 7)", True))
        many = "for i in range(10): open(str(i), 'w').write('x' * 10 ** 6)"
        assert "No space left" in failure(many, True)
        assert "No space left" in failure("for i in range(10 ** 5): open(str(i), 'w').close()", True)
        assert "Too many open files" in failure("x = [open('a', 'w') for i in range(1000)]", True)

    def test_there_is_no_network() -> None:
        with subprocess.Popen(  # a server on this machine, which the snippet must not reach
            [sys.executable, "-c", "import socket; s = socket.create_server(('127.0.0.1', 0)); "
             "print(s.getsockname()[1], flush=True); s.accept()"], stdout=subprocess.PIPE, text=True,
        ) as server:  # fmt: skip
            assert server.stdout
            port = int(server.stdout.readline())
            for address in (("127.0.0.1", port), ("10.0.0.1", 80), ("::1", port)):
                said = failure(f"import socket\nsocket.create_connection({address}, 1)", True)
                assert re.search("unreachable|refused|Cannot assign", said), said
            assert "gaierror" in failure("import socket\nsocket.create_connection(('localhost.test', 80), 1)", True)
            assert server.poll() is None
            server.kill()

    def test_it_is_nobody_alone_and_cannot_become_more() -> None:
        shown = run("import os\nos.getpid(), os.getuid() == 0, os.path.exists('/proc/self')", SMALL, True)
        assert shown == "(1, False, False)"
        libc = "import ctypes, os\nc = ctypes.CDLL(None, use_errno=True)\n"
        for call in ("c.unshare(0x10000000)", "c.unshare(0x20000)", "c.mount(None, b'/usr', None, 0x1020, None)"):
            assert run(f"{libc}{call}", SMALL, True) == "-1"
        assert "Operation not permitted" in failure("import os\nos.setuid(0)", True)
        assert "Operation not permitted" in failure("import os\nos.chroot('/usr')", True)
        assert run("import os\nos.getppid()", SMALL, True) == "0"
        assert "ProcessLookupError" in failure(f"import os\nos.kill({os.getpid()}, 9)", True)


@both
def test_secrets_of_our_environment_are_not_seen(sealed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET_KEY", "hush-hush")
    assert "hush" not in run("import os\nprint(os.environ)", SMALL, sealed)
    assert "hush" not in run("import os\nos.system('env')\n''", SMALL, sealed)
    if sealed:
        look = "import glob\n[open(each, 'rb').read() for each in glob.glob('/proc/*/environ')]"
        assert run(look, SMALL, True) == "[]"


def test_files_of_an_unconfined_snippet_are_bounded_too() -> None:
    assert "File too large" in failure("open('a', 'w').write('x' * 10 ** 7)", False)


@both
def test_many_at_once_keep_their_own_results(sealed: bool) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda n: run(f"open('n', 'w').write('{n}')\nopen('n').read()", SMALL, sealed), range(12))
        )
    assert found == [f"'{n}'" for n in range(12)]


def test_killing_us_ends_the_snippet(tmp_path: Path) -> None:
    """Ctrl-C, or a killed run, in the middle of a snippet."""
    mark = f"{5000 + uuid.uuid4().int % 10**6}.5"
    code = f"import subprocess; subprocess.run(['sleep', '{mark}'])"
    program = f"from flowward.agent.confined import *\nrun({code!r}, Bounds(), {confined_here})"
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 4
    while not _running(mark) and time.monotonic() < until:
        time.sleep(0.02)
    assert _running(mark)
    process.send_signal(signal.SIGINT)
    process.wait()
    while _running(mark) and time.monotonic() < until + 1:
        time.sleep(0.02)
    assert not _running(mark)


def test_a_system_that_cannot_isolate_refuses_the_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "cannot_confine", lambda: "it gives no user namespaces")
    with pytest.raises(ValueError, match=r"it gives no user namespaces.*--python-unconfined"):
        Python()
    tool = Python(SMALL, unconfined=True)
    assert tool(code="1 + 1") == "2" and "within reach" in tool.card.limits


def test_a_system_without_user_namespaces_is_noticed() -> None:
    """A namespace in which no further one may be made is such a system."""
    if not confined_here:
        return
    said = subprocess.run(
        ["unshare", "-r", "sh", "-c", 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$0" -c "$1"', sys.executable,
         "from flowward.agent.confined import cannot_confine; print(cannot_confine())"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert said.startswith("it gives no user namespaces to this process; unshare: ")


@pytest.mark.parametrize("wrong", [{"cpu": 0}, {"wall": 0.0}, {"output": 0}, {"memory": -1}])
def test_bounds_must_be_positive(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Bounds(**wrong)
