"""The program that runs one Python snippet in a process of its own. Only the standard library; `confined.py` starts it.

It reads a job as JSON from standard input (see `Job`). If the job is `sealed`, it first gives up what it has:

1. It enters new namespaces (Linux): users, mounts, processes, network, IPC, host name. There is no network device but a
   loopback that is down, and no process of others.
2. The root becomes a small file system in memory, with a folder /home to write to, and read-only views of the system's
   libraries and of Python. Nothing else of the machine is there: no home, no /proc, no working folder.
3. Root becomes the user nobody, and all capabilities are dropped for good.

Resource limits hold with and without this. What the snippet prints goes to standard output, then the value of its last
expression, or the last line of its traceback. The exit code is 0, FAILED after an exception, or one of those below.
"""

from __future__ import annotations

import ast
import builtins
import ctypes
import json
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypedDict

FAILED = 1  # the snippet raised an exception
UNSEALED = 120  # the namespaces could not be made; standard output says why
CPU, WALL, KILLED, CRASHED = 121, 122, 123, 124  # the snippet was ended: by a limit, by a signal, by its own fault


class Job(TypedDict):
    code: str
    sealed: bool
    cpu: int  # seconds of each process
    wall: float  # seconds
    memory: int  # bytes of address space of each process
    processes: int  # with threads
    files: int  # open at once
    disk: int  # bytes of each file, and of all together if sealed


# linux/sched.h, linux/mount.h, linux/prctl.h
NEW_MOUNTS, NEW_HOST, NEW_IPC, NEW_USERS, NEW_PIDS, NEW_NETWORK = 1 << 17, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30
NOSUID, NODEV, BIND, REC, PRIVATE = 2, 4, 1 << 12, 1 << 14, 1 << 18
MOUNT_SETATTR, RECURSIVE, AT_FDCWD = 442, 0x8000, -100  # the same number on all processors
ATTRIBUTES = 0x1 | 0x2  # read-only, no set-user-id
DETACH = 2
DIE_WITH_PARENT, DROP_BOUND, ADOPT, NO_NEW_PRIVILEGES = 1, 24, 36, 38
CAPABILITIES_3 = 0x20080522
NOBODY = 65534
UNLIMITED = (21, 24)  # CAP_SYS_ADMIN, CAP_SYS_RESOURCE: with either, there is no limit of processes
OTHERS = 64  # processes that other snippets and programs of the user may start meanwhile; only without a namespace

SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/opt/conda", "/nix/store")
DEVICES = ("null", "zero", "full", "random", "urandom")
LIBRARIES = Path("/etc/ld.so.cache")  # where the dynamic linker finds libraries
HOME = "/home"


class Unsealed(Exception):
    """The system does not allow what isolation needs."""


def main() -> NoReturn:
    job: Job = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 2)
    try:
        if job["sealed"]:
            _enter_namespaces()
        else:
            _adopt_orphans()
    except (Unsealed, OSError) as error:
        print(error, flush=True)
        os._exit(UNSEALED)
    first = os.fork()
    if not first:
        _snippet(job)
    os._exit(_watched(first, job))


def _watched(first: int, job: Job) -> int:
    """The exit code of the snippet, which is ended with all its processes at the limit of time or at SIGTERM."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    until = time.monotonic() + job["wall"]
    while not (found := os.wait4(first, os.WNOHANG))[0] and time.monotonic() < until and not told:
        time.sleep(0.002)
    if not job["sealed"]:  # in one step, so that no fork of the group escapes it
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(first, signal.SIGKILL)
    if not found[0]:
        with suppress(ProcessLookupError):
            os.kill(first, signal.SIGKILL)  # the end of the first process of a namespace ends all others
        os.wait4(first, 0)
    if not job["sealed"]:
        _kill_orphans()
    if not found[0]:
        return KILLED if told else WALL
    _, status, used = found
    if os.WIFEXITED(status):
        return os.WEXITSTATUS(status)
    if used.ru_utime + used.ru_stime >= job["cpu"] - 0.5 and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return CPU
    return KILLED if os.WTERMSIG(status) == signal.SIGKILL else CRASHED


def _snippet(job: Job) -> NoReturn:
    """The child: limits, then the code."""
    try:
        if job["sealed"]:
            _seal(job["disk"])
            _drop_rights()
            processes = job["processes"]
        else:
            os.setpgid(0, 0)
            processes = _bounded_as_root(job["processes"])
        _limit(job, processes)
    except (Unsealed, OSError) as error:
        print(error, flush=True)
        os._exit(UNSEALED)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    status = FAILED
    with suppress(BaseException):  # a full pipe, a deleted sys.stdout
        status = run(job["code"])
        sys.stdout.flush()
    os._exit(status)


def run(code: str) -> int:
    """Run code once; print the value of its last expression, or the last line of its traceback."""
    space: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
    try:
        tree = ast.parse(code, "<snippet>")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "<snippet>", "exec"), space)  # nosec B102
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<snippet>", "eval"), space)  # nosec B307
            if value is not None:
                print(repr(value))
    except SystemExit as end:
        if end.code in (None, 0):
            return 0
        print(f"SystemExit: {end.code}")
        return FAILED
    except BaseException as error:
        print(f"{_line(error)}{_sentence(error)}")
        return FAILED
    return 0


def _line(error: BaseException) -> str:
    """'line 3: ', the deepest line of the snippet that the error passed."""
    number = error.lineno if isinstance(error, SyntaxError) and error.filename == "<snippet>" else None
    step = error.__traceback__
    while step:
        number = step.tb_lineno if step.tb_frame.f_code.co_filename == "<snippet>" else number
        step = step.tb_next
    return f"line {number}: " if number else ""


def _sentence(error: BaseException) -> str:
    try:
        text = str(error.msg if isinstance(error, SyntaxError) else error)
    except BaseException:  # a class of the snippet
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _limit(job: Job, processes: int) -> None:
    for what, most in (
        (resource.RLIMIT_CPU, job["cpu"]),
        (resource.RLIMIT_AS, job["memory"]),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, job["files"]),
        (resource.RLIMIT_FSIZE, job["disk"]),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with suppress(ValueError):  # macOS refuses some
            resource.setrlimit(what, (most, most))


def _libc(name: str, *arguments: Any) -> int:
    """Raises Unsealed, with the name of the call."""
    library = ctypes.CDLL(None, use_errno=True)
    given = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    found: int = getattr(library, name)(*given)
    if found < 0:
        raise Unsealed(f"{name}: {os.strerror(ctypes.get_errno())}")
    return found


def _enter_namespaces() -> None:
    """Enter new namespaces. Root keeps its number for now, because nobody may not look into folders such as /root."""
    _prefer_in_want()
    ids = f"0 0 1\n{NOBODY} {NOBODY} 1" if os.geteuid() == 0 else ""
    (made, tell), process = os.pipe(), os.getpid()
    helper = os.fork()
    if not helper:  # it stays outside: only from there may root give the new namespace two users
        os.close(tell)
        with suppress(OSError):
            os.read(made, 1)
            if not ids:
                Path(f"/proc/{process}/setgroups").write_text("deny")
            Path(f"/proc/{process}/uid_map").write_text(ids or f"{os.geteuid()} {os.geteuid()} 1")
            Path(f"/proc/{process}/gid_map").write_text(ids or f"{os.getegid()} {os.getegid()} 1")
            os._exit(0)
        os._exit(1)
    try:
        _libc("unshare", NEW_USERS | NEW_MOUNTS | NEW_PIDS | NEW_NETWORK | NEW_IPC | NEW_HOST)
    except Unsealed as error:
        raise Unsealed(f"it gives no user namespaces to this process; {error}") from error
    finally:
        os.close(tell)
        status = os.waitpid(helper, 0)[1]
    if status:
        raise Unsealed("users cannot be mapped into a new namespace")
    with suppress(OSError):
        Path("/proc/sys/user/max_user_namespaces").write_text("0")  # of this namespace: none within it


def _places() -> list[str]:
    """The folders of Python and of the system's libraries, without those inside another."""
    wanted = [*SYSTEM, sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix]
    real = {os.path.realpath(each) for each in wanted if os.path.isdir(each)} - {"/"}
    return sorted(place for place in real if not any(place.startswith(f"{other}/") for other in real))


def _seal(disk: int) -> None:
    """Make a small root in memory, with read-only views of what Python needs, and leave the old one."""
    root = "/tmp"  # nosec B108: hidden by the new file system, never written
    links = [(each, os.readlink(each)) for each in (*SYSTEM, sys.prefix, sys.base_prefix) if os.path.islink(each)]
    libraries = LIBRARIES.read_bytes() if LIBRARIES.is_file() else b""
    places = [(place, os.open(place, os.O_PATH | os.O_DIRECTORY)) for place in _places()]  # /tmp may hide them
    _libc("mount", None, b"/", None, REC | PRIVATE, None)
    _libc("mount", b"tmpfs", root.encode(), b"tmpfs", NOSUID | NODEV, f"size={disk},nr_inodes=4096,mode=755".encode())
    for place, opened in places:
        os.makedirs(root + place, exist_ok=True)
        os.fchdir(opened)
        _libc("mount", b".", (root + place).encode(), None, BIND | REC, None)
        _read_only(root + place)
        os.close(opened)
    for folder in ("/dev/shm", "/etc", "/tmp", HOME):  # nosec B108
        os.makedirs(root + folder, exist_ok=True)
    for name in DEVICES:
        Path(f"{root}/dev/{name}").touch()
        _libc("mount", f"/dev/{name}".encode(), f"{root}/dev/{name}".encode(), None, BIND, None)
    for place, target in links:
        if not os.path.lexists(root + place):
            os.makedirs(os.path.dirname(root + place), exist_ok=True)
            os.symlink(target, root + place)
    Path(root + str(LIBRARIES)).write_bytes(libraries)
    if os.geteuid() == 0:
        for folder in ("/dev/shm", "/tmp", HOME):  # nosec B108
            os.chown(root + folder, NOBODY, NOBODY)
    os.chdir(root)
    _libc("pivot_root", b".", b".")
    _libc("umount2", b".", DETACH)
    os.chdir(HOME)


def _read_only(place: str) -> None:
    """A view of a folder, and of all file systems within it, that cannot be written."""
    attributes = (ctypes.c_uint64 * 4)(ATTRIBUTES, 0, 0, 0)
    _libc("syscall", MOUNT_SETATTR, AT_FDCWD, place.encode(), RECURSIVE, ctypes.byref(attributes), 32)


def _drop_rights() -> None:
    """Root becomes nobody. All capabilities go for good."""
    for number in range(64):
        with suppress(Unsealed):  # above the last one
            _libc("prctl", DROP_BOUND, number, 0, 0, 0)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header, none = (ctypes.c_uint32 * 2)(CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
    _libc("capset", ctypes.byref(header), ctypes.byref(none))
    _libc("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _libc("prctl", DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def _prefer_in_want() -> None:
    """If memory is short, the system should end this process, and not the training."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _adopt_orphans() -> None:
    """Processes that leave the snippet's group become children of this one, where it can end them (Linux)."""
    _prefer_in_want()
    with suppress(Unsealed, AttributeError):
        _libc("prctl", ADOPT, 1, 0, 0, 0)


def _bounded_as_root(processes: int) -> int:
    """Let the limit of processes hold for root too, and return it: it counts all processes and threads of a user.

    Root has no such limit. So the real user becomes nobody, and the effective one stays, which decides about files.
    """
    with suppress(Unsealed, AttributeError):
        _libc("prctl", DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    if os.geteuid() == 0 and sys.platform == "linux":
        for capability in UNLIMITED:
            _libc("prctl", DROP_BOUND, capability, 0, 0, 0)
        os.setresuid(NOBODY, 0, 0)
        header, sets = (ctypes.c_uint32 * 2)(CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
        _libc("capget", ctypes.byref(header), ctypes.byref(sets))
        for capability in UNLIMITED:
            for place in range(3):
                sets[place] &= ~(1 << capability)
        _libc("capset", ctypes.byref(header), ctypes.byref(sets))
    return processes + OTHERS + _tasks(os.getuid())


def _tasks(user: int) -> int:
    """How many processes and threads a user has now; 0 where that is not shown."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError, KeyError, ValueError):
            shown = dict(line.split(":", 1) for line in path.read_text().splitlines())
            found += int(shown["Threads"]) * (int(shown["Uid"].split()[0]) == user)
    return found


def _kill_orphans() -> None:
    """End the children of this process, and theirs, until none is left."""
    until = time.monotonic() + 1
    while time.monotonic() < until:
        with suppress(OSError):
            for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


if __name__ == "__main__":
    main()
