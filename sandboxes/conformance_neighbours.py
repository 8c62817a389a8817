"""Conformance checks: no program leaves anything for the next, and two sandboxes do not see each other."""

import secrets
import textwrap
import time

from verigrad.sandboxes.base import Limits
from verigrad.sandboxes.conformance_bench import Bench, check, describe, expect, took

TICKING = "while True:\n    open('ticks', 'a').write('x')\n    time.sleep(0.02)\n"


def ticks(bench: Bench) -> int:
    """How often a process that should be gone has written."""
    done = bench.box.exec(["sh", "-c", "cat ticks 2>/dev/null | wc -c"])
    expect(done.ok, describe(done))
    return int(done.stdout)


@check
def background_processes(bench: Bench) -> None:
    """A process in the background ends with its command."""
    source = f"import os, time\nif os.fork() == 0:\n{textwrap.indent(TICKING, '    ')}\ntime.sleep(0.3)"
    expect(bench.run(source).ok, "it did not run")
    before = ticks(bench)
    time.sleep(0.4)
    expect(before > 0, "the process never ran")
    expect(ticks(bench) == before, "it still runs after its command")


@check
def daemons(bench: Bench) -> None:
    """A daemon, forked twice in a session of its own, deaf to signals, ends with its command."""
    source = """
import os, signal, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        os.closerange(0, 3)
        while True:
            open("ticks", "a").write("x")
            time.sleep(0.02)
    os._exit(0)
time.sleep(0.3)
"""
    expect(bench.run(source).ok, "it did not run")
    before = ticks(bench)
    time.sleep(0.4)
    expect(before > 0, "the daemon never ran")
    expect(ticks(bench) == before, "it still runs after its command")


@check
def processes_of_the_last_command(bench: Bench) -> None:
    """No process of one command is there when the next one runs."""
    bench.run("import os, time\nfor _ in range(5):\n    if os.fork() == 0:\n        time.sleep(60)\n")
    text = bench.attack("""
num = 0
for name in os.listdir("/proc"):
    if name.isdecimal() and int(name) != os.getpid():
        try:
            num += os.stat("/proc/" + name).st_uid == os.getuid() and int(name) != 1
        except OSError:
            pass
print(num)
""")
    expect(int(text.split()[0]) == 0, f"{text.split()[0]} processes of this user")


@check
def files_are_wiped(bench: Bench) -> None:
    """A reset leaves no file behind, in HOME or in the temporary folders."""
    name = f"left-{secrets.token_hex(4)}"
    source = f"""
import os
for folder in (".", "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue"):
    for path in (folder + "/{name}", folder + "/.{name}"):
        try:
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        except OSError:
            pass
"""
    expect(bench.run(source).ok, "it did not run")
    bench.box.reset()
    bench.attack(f"""
for top, folders, files in os.walk("/"):
    folders[:] = [f for f in folders if os.path.join(top, f) not in ("/proc", "/sys", "/usr")]
    for name in files + folders:
        if "{name}" in name:
            escaped(os.path.join(top, name))
""")


@check
def home_is_as_new(bench: Bench) -> None:
    """After a reset HOME is empty and writable, whatever was done to it."""
    bench.run("import os; os.chmod('.', 0); os.mkdir('x') if os.access('.', os.W_OK) else None")
    bench.box.reset()
    done = bench.box.exec(["sh", "-c", "ls -A; touch new && echo ok"])
    expect(done.stdout == b"ok\n", describe(done))


@check
def system_v_objects(bench: Bench) -> None:
    """A reset leaves no System V shared memory, semaphore or queue behind."""
    key = secrets.randbelow(1 << 30)
    make = f"""
import ctypes
libc = ctypes.CDLL(None)
libc.shmget({key}, 4096, 0o1666); libc.semget({key}, 1, 0o1666); libc.msgget({key}, 0o1666)
"""
    expect(bench.run(make).ok, "it did not run")
    bench.box.reset()
    bench.attack(f"""
for name, found in (("memory", libc.shmget({key}, 0, 0)), ("semaphore", libc.semget({key}, 0, 0)),
                    ("queue", libc.msgget({key}, 0))):
    if found >= 0:
        escaped("System V " + name)
""")


@check
def message_queues(bench: Bench) -> None:
    """A reset leaves no POSIX message queue behind."""
    name = f"/q{secrets.token_hex(4)}"
    bench.run(f"import ctypes; libc = ctypes.CDLL(None); libc.mq_open({name.encode()!r}, 0o102, 0o666, None)")
    bench.box.reset()
    bench.attack(f"""
if libc.mq_open({name.encode()!r}, 2) >= 0:
    escaped("a queue is still there")
""")


@check
def keyrings(bench: Bench) -> None:
    """No program finds a key that another one left."""
    name = secrets.token_hex(8)
    bench.run(f"""
import ctypes, platform
libc = ctypes.CDLL(None)
add_key = 248 if platform.machine() == "x86_64" else 217
for ring in (-3, -4, -5):
    libc.syscall(add_key, b"user", {name.encode()!r}, b"secret", 6, ring)
""")
    bench.box.reset()
    bench.attack(f"""
attempt("a key is still there", lambda: syscall(249, 218, b"user", {name.encode()!r}, None, 0))
""")


@check
def memory_of_the_last_program(bench: Bench) -> None:
    """Nothing of one program is in the memory of the next."""
    first, second = secrets.token_hex(8), secrets.token_hex(8)
    secret = first + second
    bench.box.write_file("secret.txt", secret.encode())
    bench.run(
        f"import sys\ntext = sys.stdin.read() + sys.argv[1] + {secret!r}; print(text)\nsys.secret = text",
        secret,
        stdin=secret.encode(),
        env={"SECRET": secret},
    )
    bench.box.reset()
    # The two halves are never put together here, so what is found whole was there before.
    bench.attack(f"""
first, second = b"{first}", b"{second}"
with open("/proc/self/mem", "rb", 0) as memory:
    for line in open("/proc/self/maps"):
        where, rights = line.split()[:2]
        if "r" not in rights or "[v" in line:
            continue
        begin, end = (int(part, 16) for part in where.split("-"))
        while begin < end:
            size = min(1 << 20, end - begin)
            try:
                memory.seek(begin)
                data = memory.read(size)
            except (OSError, ValueError, OverflowError):
                break
            at = data.find(first)
            while at >= 0:
                if data[at + 16 : at + 32] == second:
                    escaped("found at " + hex(begin + at) + " in " + line.strip())
                at = data.find(first, at + 1)
            begin += size
""")


@check
def variables_of_the_last_program(bench: Bench) -> None:
    """What a program changes in its interpreter is not there for the next one."""
    bench.run(
        "import builtins, json, sys; builtins.print = None; json.loads = None; sys.path.insert(0, '/tmp')"
    )
    done = bench.run("import json, sys; print(json.loads('1'), '/tmp' in sys.path)")
    expect(done.stdout == b"1 False\n", describe(done))


@check
def files_that_change_the_interpreter(bench: Bench) -> None:
    """A module left in the temporary folders or in the user's folder changes no later program."""
    source = """
import os, sys
version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
for top in (os.path.expanduser("~"), os.environ.get("HOME", "."), "/tmp", "."):
    folder = os.path.join(top, ".local/lib", version, "site-packages")
    try:
        os.makedirs(folder, exist_ok=True)
        for name in ("sitecustomize.py", "usercustomize.py", "evil.pth"):
            open(os.path.join(folder, name), "w").write("import sys; sys.stdout.write('planted')\\n")
    except OSError:
        pass
"""
    bench.run(source)
    bench.box.reset()
    for command in (["python3", "-c", "print(1)"], ["sh", "-c", "python3 -c 'print(1)'"]):
        done = bench.box.exec(command)
        expect(done.stdout == b"1\n", f"{command[0]}: {describe(done)}")


@check
def reset_while_it_runs(bench: Bench) -> None:
    """A reset in the middle of a command ends it and wipes what it does."""
    bench.box.write_file(
        "busy.py", b"import time\nwhile True: open('late', 'a').write('x'); time.sleep(0.01)"
    )
    bench.box.start(["python3", "busy.py"], limits=Limits(wall_s=30))
    time.sleep(0.3)
    _, seconds = took(bench.box.reset)
    expect(seconds < 10, f"{seconds:.1f} s")
    time.sleep(0.2)
    done = bench.box.exec(["ls", "-A"])
    expect(done.ok and not done.stdout, f"left: {done.stdout!r}")


@check
def two_sandboxes(bench: Bench) -> None:
    """Two sandboxes at the same time see nothing of each other."""
    token, key = secrets.token_hex(8), secrets.randbelow(1 << 30)
    source = f"""
import ctypes, os, socket, time
libc = ctypes.CDLL(None)
libc.shmget({key}, 4096, 0o1666)
server = socket.socket(socket.AF_UNIX); server.bind("\\0{token}"); server.listen()
local = socket.socket(); local.bind(("127.0.0.1", 47123)); local.listen()
for folder in (".", "/tmp", "/var/tmp", "/dev/shm"):
    try:
        open(folder + "/{token}", "w").close()
    except OSError:
        pass
print("ready", flush=True)
time.sleep(60)
"""
    other = bench.another()
    other.write_file("neighbour.py", source.encode())
    process = other.start(["python3", "neighbour.py", token], limits=Limits(wall_s=60))
    expect(process.receive(timeout_s=10) == b"ready\n", "the neighbour did not start")
    bench.attack(f"""
attempt("its abstract socket", socket.socket(socket.AF_UNIX).connect, "\\0{token}")
attempt("its port", socket.create_connection, ("127.0.0.1", 47123), 1)
if libc.shmget({key}, 0, 0) >= 0:
    escaped("its shared memory")
for folder in (".", "/tmp", "/var/tmp", "/dev/shm"):
    if os.path.exists(folder + "/{token}"):
        escaped("its file in " + folder)
for name in os.listdir("/proc"):
    if name.isdecimal():
        try:
            if "neighbour.py" in open("/proc/" + name + "/cmdline").read():
                escaped("its process " + name)
        except OSError:
            pass
""")
    process.kill()
