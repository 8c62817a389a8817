"""Conformance checks: honest programs find what they need, and Python behaves as Python does."""

from verigrad.sandboxes.base import ExecResult, Limits
from verigrad.sandboxes.conformance_bench import Bench, check, describe, expect

MODULES = (
    "argparse array ast asyncio base64 bisect bz2 calendar cmath codecs collections concurrent.futures "
    "csv ctypes curses dataclasses datetime dbm decimal difflib dis email enum fractions functools "
    "getpass glob gzip hashlib heapq hmac html http.server inspect io ipaddress itertools json keyword "
    "linecache locale logging lzma mailbox math mimetypes mmap multiprocessing netrc numbers operator "
    "optparse os pathlib pdb pickle platform plistlib posixpath pprint profile pstats pty queue random re "
    "readline resource runpy sched secrets select selectors shelve shlex shutil signal socket "
    "socketserver sqlite3 ssl stat statistics string struct subprocess symtable sys sysconfig tabnanny "
    "tarfile tempfile textwrap threading time timeit token tokenize trace traceback tracemalloc types "
    "typing unicodedata unittest urllib.request uuid venv warnings wave weakref xml.etree.ElementTree "
    "xmlrpc.client zipapp zipfile zlib zoneinfo "
)
TOOLS = ("bash", "sh", "grep", "sed", "awk", "find", "tar", "diff", "sort", "head", "cut", "xargs", "g++")
# What `python3 file.py` and a new interpreter must agree on, one program each.
SAME = {
    "a plain program": "import sys; print(__name__, __file__, sys.argv[1:], sys.path[0])",
    "its own module": "import __main__; x = 5; print(__main__.x, __main__.__name__)",
    "no exit": "print('end')",
    "exit 3": "import sys; sys.exit(3)",
    "exit None": "import sys; sys.exit(None)",
    "exit True": "import sys; sys.exit(True)",
    "exit 256": "import sys; sys.exit(256)",
    "exit -1": "import sys; sys.exit(-1)",
    "exit with words": "import sys; print('out'); sys.exit('words')",
    "raise SystemExit": "raise SystemExit(4)",
    "an exception": """\
def f(n):
    return 1 / n
f(0)""",
    "an exception while handling one": """\
try:
    {}['a']
except KeyError as e:
    raise ValueError('b') from e""",
    "an exception of its own": """\
class Mine(Exception):
    pass
raise Mine('x')""",
    "a syntax error": """\
x = (1,
""",
    "_exit": "import os; print('lost'); os._exit(9)",
    "atexit": "import atexit; atexit.register(print, 'later'); print('now')",
    "atexit after an error": "import atexit; atexit.register(print, 'later'); 1 / 0",
    "threads are waited for": """\
import threading, time
threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start(); print('main')""",
    "daemons are not": """\
import threading, time
threading.Thread(target=time.sleep, args=(30,), daemon=True).start()""",
    "finalizers": """\
class A:
    def __del__(self): print('gone')
a = A()""",
    "output without a newline": "import sys; sys.stdout.write('abc')",
    "a file left open": """\
f = open('left', 'w'); f.write('x' * 10)
import os; print(os.path.getsize('left'))""",
    "recursion": """\
def f(n): return f(n + 1)
try:
    f(0)
except RecursionError:
    print('deep')""",
    "flags": "import sys; print(sys.flags.no_site, sys.flags.optimize, sys.getrecursionlimit())",
    "streams": "import sys; print(sys.stdin.encoding, sys.stdout.encoding, "
    "sys.stdout.line_buffering, sys.stdin.read())",
    "excepthook": "import sys; sys.excepthook = lambda *a: print('hook', a[0].__name__); 1 / 0",
    "modules beside it": "import beside; print(beside.x)",
    "names": "print(sorted(n for n in globals() if n != '__cached__'))",
    "locale": "import sys, locale; print(sys.getfilesystemencoding(), sys.getdefaultencoding())",
    "signals": """\
import signal
print(*(signal.getsignal(number) for number in signal.valid_signals()))
print(signal.pthread_sigmask(signal.SIG_BLOCK, []))""",
    "fork": """\
import os
if os.fork() == 0:
    print('child', flush=True); os._exit(0)
os.wait(); print('parent')""",
    "breakpoints are off": "import sys; print(sys.gettrace(), sys.getprofile())",
    "pickling of own classes": """\
import pickle
class P: pass
print(type(pickle.loads(pickle.dumps(P()))).__name__)""",
    "dataclasses": """\
from dataclasses import dataclass
@dataclass
class P:
    x: int
print(P(1))""",
    "keyboard interrupt": "raise KeyboardInterrupt",
}


@check
def python_is_python(bench: Bench) -> None:
    """A Python program behaves as in a new interpreter: arguments, exits, errors, threads, streams."""
    bench.box.write_file("beside.py", b"x = 7")
    wrong = []
    for what, source in SAME.items():
        bench.box.write_file("same.py", source.encode())
        fast = bench.box.exec(["python3", "same.py", "a", "b c"], stdin=b"input")
        new = bench.box.exec(["sh", "-c", 'exec python3 same.py "$@"', "sh", "a", "b c"], stdin=b"input")
        if told(fast) != told(new):
            wrong.append(f"{what}: {describe(fast)} where a new one has {describe(new)}")
    expect(not wrong, "; ".join(wrong[:5]))


def told(done: ExecResult) -> tuple[object, ...]:
    """What a result says, paths aside."""
    return done.status, done.exit_code, done.signal, done.stdout, done.stderr


@check
def python_by_code_and_module(bench: Bench) -> None:
    """`python3 -c` and `python3 -m` behave as in a new interpreter."""
    bench.box.write_file("mod.py", b"import sys; print(__name__, sys.argv[1:], sys.path[0] != '')")
    for words in (["-c", "import sys; print(sys.argv, __name__)", "x"], ["-m", "mod", "y"], ["-c", "1/0"],
                  ["-m", "no_such_module"], ["-m", "json.tool", "no-file"]):  # fmt: skip
        fast = bench.box.exec(["python3", *words])
        new = bench.box.exec(["sh", "-c", 'exec python3 "$@"', "sh", *words])
        expect(told(fast) == told(new), f"{words}: {describe(fast)} where a new one has {describe(new)}")


@check
def randomness(bench: Bench) -> None:
    """Two programs draw different random numbers."""
    source = "import random, secrets, uuid\nprint(random.random(), uuid.uuid4(), secrets.token_hex(8))"
    drawn = [bench.run(source).stdout for _ in range(3)]
    expect(len(set(drawn)) == 3, f"the same numbers twice: {drawn[0]!r}")


@check
def standard_library(bench: Bench) -> None:
    """The whole standard library is there, but for what needs a display."""
    source = (
        "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\nprint('all')"
    )
    done = bench.run(source, *MODULES.split(), limits=Limits(wall_s=30, cpu_s=30))
    expect(done.stdout == b"all\n", describe(done))


@check
def ordinary_programs(bench: Bench) -> None:
    """What ordinary programs do works: threads, processes, temporary files, databases, own sockets."""
    source = """
import asyncio, concurrent.futures, multiprocessing, os, socket, sqlite3, subprocess, tempfile, threading
def square(n):
    return n * n
if __name__ == "__main__":
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(square, range(5))) == [0, 1, 4, 9, 16]
    with multiprocessing.Pool(2) as pool:
        assert pool.map(square, range(5)) == [0, 1, 4, 9, 16]
    assert subprocess.run(["echo", "hi"], capture_output=True).stdout == b"hi\\n"
    assert subprocess.check_output("echo $((6 * 7)) | cat", shell=True) == b"42\\n"
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x")
    base = sqlite3.connect("base.db")
    base.execute("create table t (x)"); base.execute("insert into t values (1)"); base.commit()
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname(), 2)
    server.accept()[0].sendall(b"hello")
    assert client.recv(5) == b"hello"
    async def later():
        await asyncio.sleep(0.01)
        return 5
    assert asyncio.run(later()) == 5
    print("all")
"""
    done = bench.run(source)
    expect(done.stdout == b"all\n", describe(done))


@check
def pytest_is_there(bench: Bench) -> None:
    """pytest runs, and tells what passed from what did not."""
    bench.box.write_file("test_a.py", b"def test_good(): assert 1 + 1 == 2\ndef test_bad(): assert 1 == 2\n")
    done = bench.box.exec(["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_a.py"])
    expect(done.exit_code == 1 and b"1 failed, 1 passed" in done.stdout, describe(done))


@check
def compiler_is_there(bench: Bench) -> None:
    """g++ compiles and its program runs."""
    bench.box.write_file(
        "a.cpp",
        b"#include <bits/stdc++.h>\nint main() { std::vector<int> v{3, 1, 2}; std::sort(v.begin(), v.end()); "
        b"for (int x : v) std::cout << x; }",
    )
    big = Limits(wall_s=60, cpu_s=60, memory_mb=1024)
    done = bench.box.exec(["g++", "-O1", "-std=c++17", "-o", "a", "a.cpp"], limits=big)
    expect(done.ok, f"compiling: {describe(done)}")
    done = bench.box.exec(["./a"])
    expect(done.stdout == b"123", describe(done))


@check
def tools_are_there(bench: Bench) -> None:
    """A shell and its everyday tools are there."""
    look = f"for t in {' '.join(TOOLS)}; do command -v $t >/dev/null || echo $t; done"
    done = bench.box.exec(["sh", "-c", look])
    expect(done.ok and not done.stdout, f"missing: {done.stdout.decode().split()}")
