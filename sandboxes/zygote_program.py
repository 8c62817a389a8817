"""The template: requests for a new process go in, processes that are about to become a program come out.

Runs inside the box. The template is forked before any job is known, and never sees one: a request to fork
carries nothing but a socket, and the new process reads its job from there. So a program's memory holds
nothing of other programs. `["python3", "file.py", ...]` (also `-c` and `-m`) goes on in the interpreter
that is already running, and behaves as a new one would, but for this: modules imported ahead of time stay
imported, and the hash seed and the addresses are those of the template (programs of one box share them).
Random generators are seeded anew.
"""

import gc
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType, ModuleType
from typing import Any, NoReturn

from verigrad.sandboxes import zygote_walls
from verigrad.sandboxes.zygote_walls import Wall

LENGTH = struct.Struct("!I")
READY = b"r"  # said by a process that has given up its privileges and is about to become the program
CANNOT_RUN, NOT_FOUND = 126, 127  # exit codes of a command that cannot be started, as a shell's
PYTHON = ("python", "python3")
OPEN_FILES = 256
MIB = 1 << 20
# Imported ahead of time: what small programs use, and what an import of it drags in.
AHEAD = (
    *(
        "abc",
        "argparse",
        "array",
        "ast",
        "atexit",
        "bisect",
        "base64",
        "calendar",
        "cmath",
        "collections.abc",
    ),
    *("concurrent.futures", "contextlib", "contextvars", "copy", "csv", "ctypes", "dataclasses", "datetime"),
    *(
        "decimal",
        "difflib",
        "enum",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
        "importlib.util",
        "inspect",
    ),
    *("io", "itertools", "json", "linecache", "logging", "math", "multiprocessing", "numbers", "operator"),
    *("pathlib", "pickle", "pprint", "queue", "random", "re", "runpy", "secrets", "shutil", "statistics"),
    *(
        "string",
        "subprocess",
        "tempfile",
        "textwrap",
        "threading",
        "traceback",
        "types",
        "typing",
        "unittest",
    ),
    *("unicodedata", "uuid", "warnings", "weakref", "zlib"),
)


def template(control: socket.socket, wall: Wall) -> NoReturn:
    """Fork a process for each request and report each end, until the supervisor is gone."""
    devnull = os.open(os.devnull, os.O_RDWR)
    os.dup2(devnull, 0)
    os.dup2(devnull, 1)
    os.close(devnull)
    for name in AHEAD:
        with suppress(ImportError):
            __import__(name)
    gc.collect()
    gc.freeze()  # the collector of a program has nothing to do with what was there before it
    awake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, _wake_up)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([control.fileno(), awake], [], [])
        if awake in ready:
            with suppress(BlockingIOError):
                os.read(awake, 512)
            _report_ends(control)
        if control.fileno() in ready:
            asked, given, _, _ = socket.recv_fds(control, 16, 1)
            if not asked:
                os._exit(0)
            pid = os.fork()
            if pid == 0:
                for inherited in (awake, wake):
                    os.close(inherited)
                control.close()
                _program(socket.socket(fileno=given[0]), wall)
            os.close(given[0])
            control.send(json.dumps({"pid": pid}).encode())


def _wake_up(number: int, frame: FrameType | None) -> None:
    pass  # the wakeup descriptor tells


def _report_ends(control: socket.socket) -> None:
    while True:
        try:
            pid, status, used = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        cpu_s = used.ru_utime + used.ru_stime
        control.send(json.dumps({"ended": pid, "status": status, "cpu_s": cpu_s}).encode())


def _program(orders: socket.socket, wall: Wall) -> NoReturn:
    """A new process: get ready, wait for the job, become it. Never returns to the template."""
    code = CANNOT_RUN
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.umask(0o077)
        zygote_walls.set_flag(zygote_walls.PR_SET_NO_NEW_PRIVS)
        # The kernel, short of memory, shall take the program and never the zygote.
        with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
        wall.prepare()
        job = _take_job(orders)
        _limit(job["limits"], wall)
        wall.enter(job["ticket"])
        orders.send(READY)  # what fails from here on is the program's affair
        orders.close()
        zygote_walls.set_flag(zygote_walls.PR_SET_DUMPABLE)  # or /dev/stdin could not be opened
        os.chdir(wall.home)
        os.environ.update({"HOME": wall.home, **job["env"]})
        code = _become(job["command"])
    except BaseException as error:
        with suppress(Exception):
            os.write(2, f"sandbox: {type(error).__name__}: {error}\n".encode())
    os._exit(code)


def _take_job(orders: socket.socket) -> dict[str, Any]:
    """The job, with its standard input, output and error put in place."""
    head, given, _, _ = socket.recv_fds(orders, LENGTH.size, 3)
    if not head:
        os._exit(0)  # the supervisor is gone
    (size,) = LENGTH.unpack(head)
    body = bytearray()
    while len(body) < size:
        if not (chunk := orders.recv(size - len(body))):
            os._exit(0)
        body += chunk
    for number, file in enumerate(given):
        os.dup2(file, number)
    for file in given:
        os.close(file)
    job: dict[str, Any] = json.loads(body)
    return job


def _limit(limits: dict[str, Any], wall: Wall) -> None:
    import resource

    cpu_s = max(1, -int(-limits["cpu_s"] // 1))
    own = {
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_CPU: (cpu_s, cpu_s + 1),  # a signal first, then an end that cannot be ignored
        resource.RLIMIT_FSIZE: (limits["file_mb"] * MIB,) * 2,
        resource.RLIMIT_NOFILE: (OPEN_FILES, OPEN_FILES),
        resource.RLIMIT_AS: (limits["memory_mb"] * MIB,) * 2,
    }
    if wall.counts_processes:
        own[resource.RLIMIT_NPROC] = (limits["pids"],) * 2
    for kind, (soft, hard) in own.items():
        most = resource.getrlimit(kind)[1]
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)
        resource.setrlimit(kind, (soft, hard))


def _become(command: Sequence[str]) -> int:
    """Exit code of the program when it runs in this interpreter; otherwise never returns."""
    if (
        command[0] in PYTHON
        and len(command) > 1
        and not any(name.startswith("PYTHON") for name in os.environ)
    ):
        first = command[1]
        if first in ("-c", "-m") and len(command) > 2:
            return as_python(command)
        if not first.startswith("-") and _is_script(first):
            return as_python(command)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them; another program expects them
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        os.write(2, f"sandbox: cannot run {command[0]}: {error.strerror}\n".encode())
        return NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_RUN


def _is_script(path: str) -> bool:
    """Whether plain source is there; folders, archives and compiled files are for a new interpreter."""
    return os.path.isfile(path) and not path.endswith((".pyc", ".zip", ".pyz"))


def as_python(command: Sequence[str]) -> int:
    """Run `python3 file.py ...`, `-c code ...` or `-m module ...` in this interpreter; its exit code."""
    main = _new_main()
    sys.orig_argv[:] = [sys.executable, *command[1:]]
    kept = set(sys.modules)
    try:
        if command[1] == "-c":
            sys.argv[:] = ["-c", *command[3:]]
            sys.path.insert(0, "")
            source, name = command[2].encode(), "<string>"
        elif command[1] == "-m":
            sys.argv[:] = ["-m", *command[3:]]
            sys.path.insert(0, os.getcwd())
            import runpy

            runpy._run_module_as_main(command[2])  # type: ignore[attr-defined]  # what `python3 -m` itself calls
            return finish(0, main, kept)
        else:
            sys.argv[:] = list(command[1:])
            sys.path.insert(0, os.path.dirname(os.path.realpath(command[1])))
            name = os.path.abspath(command[1])
            with open(name, "rb") as file:
                source = file.read()
            main.__file__, main.__cached__ = name, None  # type: ignore[attr-defined]
        exec(compile(source, name, "exec", dont_inherit=True), main.__dict__)
        code = 0
    except SystemExit as left:
        code = _status_of(left)
    except BaseException as error:
        code = _report(error)
    return finish(code, main, kept)


def _new_main() -> ModuleType:
    """An empty `__main__`, and no trace of the zygote among the modules."""
    import builtins
    from importlib.machinery import BuiltinImporter

    for name in [name for name in sys.modules if name.partition(".")[0] == "verigrad"]:
        del sys.modules[name]
    main = ModuleType("__main__")
    main.__dict__.update(__builtins__=builtins, __annotations__={}, __loader__=BuiltinImporter)
    sys.modules["__main__"] = main
    return main


def _status_of(left: SystemExit) -> int:
    if left.code is None:
        return 0
    if isinstance(left.code, int):
        return left.code & 0xFF
    with suppress(Exception):
        print(left.code, file=sys.stderr)
    return 1


def _report(error: BaseException) -> int:
    """What the interpreter does with an exception that nothing caught."""
    _forget_us(error)
    with suppress(Exception):
        sys.stdout.flush()
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except SystemExit as left:
        return _status_of(left)
    except BaseException as second:
        _forget_us(second)
        with suppress(BaseException):
            sys.stderr.write("Error in sys.excepthook:\n")
            second.__context__ = None  # it is told below
            sys.__excepthook__(type(second), second, second.__traceback__)
            sys.stderr.write("\nOriginal exception was:\n")
            sys.__excepthook__(type(error), error, error.__traceback__)
    if isinstance(error, KeyboardInterrupt):
        with suppress(Exception):
            sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return 1


def _forget_us(error: BaseException) -> None:
    """Drop our own frames from the start of a traceback: they are no part of the program."""
    trace = error.__traceback__
    while trace and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    error.__traceback__ = trace


def finish(code: int, main: ModuleType, kept: set[str]) -> int:
    """The end of an interpreter: threads joined, exit functions called, the program's own objects let go."""
    import atexit
    import threading

    with suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are not daemons
    with suppress(BaseException):
        atexit._run_exitfuncs()
    if not _flush():
        code = 120
    sys.last_value = sys.last_traceback = None
    for name in [name for name in sys.modules if name not in kept]:
        del sys.modules[name]
    _empty(main)
    gc.collect()  # closes files that nobody closed, and so writes them
    _flush()
    return code


def _empty(module: ModuleType) -> None:
    """Let go of a module's contents in the interpreter's order: private names first."""
    contents = module.__dict__
    for private in (True, False):
        for name in list(contents):
            if name != "__builtins__" and (name[:1] == "_" and name[1:2] != "_") == private:
                with suppress(BaseException):
                    contents[name] = None


def _flush() -> bool:
    try:
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
    except BaseException:
        return False
    finally:
        with suppress(BaseException):
            sys.stderr.flush()
    return True
