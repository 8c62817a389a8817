"""Conformance checks: no program takes more than its limits, and the result says which one ended it."""

import time

from verigrad.sandboxes.base import ExecResult, Limits
from verigrad.sandboxes.conformance_bench import (
    DISK_MB,
    MEMORY_MB,
    Bench,
    check,
    describe,
    ends_at,
    expect,
    took,
)

LATE_S = 4.0  # what a busy machine may add to a limit


def in_time(bench: Bench, source: str, limits: Limits) -> ExecResult:
    """Run it; Broken when it goes on for long after its limit."""
    done, seconds = took(bench.run, source, limits=limits)
    expect(seconds < limits.wall_s + LATE_S, f"ended only after {seconds:.1f} s")
    assert isinstance(done, ExecResult)
    return done


@check
def wall_time(bench: Bench) -> None:
    """A program that sleeps ends at its wall time."""
    ends_at(in_time(bench, "import time; time.sleep(60)", Limits(wall_s=1)), "wall_time", "asleep")


@check
def wall_time_signals_ignored(bench: Bench) -> None:
    """A program that ignores every signal ends at its wall time, its children too."""
    source = """
import os, signal, threading
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
os.fork()
threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()
while True:
    pass
"""
    ends_at(in_time(bench, source, Limits(wall_s=1)), "wall_time", "deaf")
    bench.still_works()


@check
def wall_time_stopped(bench: Bench) -> None:
    """A program that stops itself ends at its wall time."""
    source = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    ends_at(in_time(bench, source, Limits(wall_s=1)), "wall_time", "stopped")


@check
def cpu_time(bench: Bench) -> None:
    """A program that computes ends at its processor time."""
    done = in_time(bench, "while True: pass", Limits(wall_s=90, cpu_s=1))
    ends_at(done, "cpu_time", "busy")


@check
def cpu_time_signal_ignored(bench: Bench) -> None:
    """Ignoring the warning does not help against the processor time."""
    source = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    ends_at(in_time(bench, source, Limits(wall_s=90, cpu_s=1)), "cpu_time", "busy and deaf")


@check
def memory_of_a_process(bench: Bench) -> None:
    """A process gets no more memory than its limit, and the result says so."""
    limits = Limits(memory_mb=256)
    ends_at(bench.run("x = bytearray(1 << 30)", limits=limits), "memory", "1 GiB of 256 MiB")
    source = "x = []\nwhile True: x.append(bytearray(1 << 20))"
    ends_at(bench.run(source, limits=limits), "memory", "1 MiB after the other")
    bench.still_works()


@check
def memory_can_be_used(bench: Bench) -> None:
    """A process gets the memory that its limit allows."""
    done = bench.run("x = bytearray(300 << 20); print(len(x) >> 20)", limits=Limits(memory_mb=512))
    expect(done.stdout == b"300\n", describe(done))


@check
def memory_of_all_processes(bench: Bench) -> None:
    """Many processes together get no more memory than the sandbox has."""
    most = max(2 * bench.option("memory_mb", MEMORY_MB), 2048)
    num = -(-most // 200)
    source = f"""
import os, time
read, write = os.pipe()
for number in range({num}):
    if os.fork() == 0:
        x = b"x" * (200 << 20)
        os.write(write, b"1")
        time.sleep(90)
ends = time.monotonic() + 30
os.set_blocking(read, False)
held = 0
while time.monotonic() < ends and held < {num}:
    try:
        held += len(os.read(read, 100))
    except BlockingIOError:
        time.sleep(0.1)
time.sleep(1)
alive = 0
for name in os.listdir("/proc"):
    if name.isdecimal():
        try:
            rows = open("/proc/" + name + "/status").read().split()
            alive += int(rows[rows.index("VmRSS:") + 1]) > 190 * 1024
        except (OSError, ValueError):
            pass
print("held", held, "alive", alive, flush=True)
"""
    done = bench.run(source, limits=Limits(wall_s=60, pids=num + 4))
    expect(f"alive {num}".encode() not in done.stdout, f"{num} processes hold 200 MiB each: {describe(done)}")
    if b"held" not in done.stdout and done.status not in ("memory", "signalled"):
        raise RuntimeError(f"the attack did not come to its end: {describe(done)}")
    bench.still_works()


def held_mb(done: ExecResult) -> int:
    """What an attack on memory got hold of: nothing when it was ended for it."""
    words = done.stdout.split()
    if done.ok and len(words) == 2:
        return int(words[1])
    if done.status in ("memory", "signalled"):
        return 0
    raise RuntimeError(f"the attack did not come to its end: {describe(done)}")


@check
def memory_that_nobody_maps(bench: Bench) -> None:
    """Memory behind descriptors and System V segments counts, too."""
    most = max(2 * bench.option("memory_mb", MEMORY_MB), 2048)
    # Processes hold files of memory, of which each stays below the limits on files and address space.
    source = f"""
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
libc.shmdt.argtypes = [ctypes.c_void_p]
held, segments = 0, []
block = b"x" * (8 << 20)
try:
    while held < {most // 2}:
        file = os.memfd_create("x")
        os.write(file, block)
        held += 8
except OSError:
    pass
while held < {most}:
    number = libc.shmget(0, 32 << 20, 0o1600)
    place = libc.shmat(number, None, 0) if number >= 0 else None
    if number < 0 or place in (None, 2**64 - 1):
        break
    segments.append(number)
    ctypes.memset(place, 1, 32 << 20)
    libc.shmdt(place)
    held += 32
time.sleep(1)
for number in segments:
    libc.shmctl(number, 0, None)
print("held", held, flush=True)
"""
    held = held_mb(bench.run(source, limits=Limits(wall_s=60)))
    allowed = bench.option("memory_mb", MEMORY_MB)
    expect(held <= allowed, f"a program holds {held} MiB outside its address space of {allowed} MiB for all")
    bench.box.reset()
    bench.still_works()


@check
def memory_of_files(bench: Bench) -> None:
    """Files in memory-backed folders hold no more than the sandbox's disk or memory."""
    most = 4 * max(bench.option("disk_mb", DISK_MB), bench.option("memory_mb", MEMORY_MB))
    source = f"""
import os
held, made = 0, []
for folder in (".", "/tmp", "/var/tmp", "/dev/shm", "/run", "/dev/mqueue"):
    try:
        for number in range({most} // 8):
            path = f"{{folder}}/f{{number}}"
            file = os.open(path, os.O_CREAT | os.O_WRONLY)
            made.append(path)
            held += os.write(file, b"x" * (8 << 20)) >> 20
            os.close(file)
    except OSError:
        pass
for path in made:
    os.unlink(path)
print("held", held, flush=True)
"""
    held = held_mb(bench.run(source, limits=Limits(wall_s=60)))
    expect(held < most, f"a program wrote {held} MiB")
    bench.box.reset()
    bench.still_works()


@check
def output_flood(bench: Bench) -> None:
    """Endless output ends the program soon, and little of it comes back."""
    for file in (1, 2):
        source = f"import os\nwhile True: os.write({file}, b'x' * 65536)"
        done, seconds = took(bench.run, source, limits=Limits(wall_s=20))
        ends_at(done, "output", f"descriptor {file}")
        expect(seconds < 10, f"descriptor {file}: only after {seconds:.1f} s")
        expect(len(done.stdout + done.stderr) <= Limits().output_bytes, "more than the limit came back")


@check
def file_size(bench: Bench) -> None:
    """No file grows over its limit."""
    source = """
import os, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = os.open("big", os.O_CREAT | os.O_WRONLY)
try:
    for _ in range(64):
        os.write(file, b"x" * (1 << 20))
    os.ftruncate(file, 1 << 40)
except OSError:
    pass
print(os.fstat(file).st_size)
"""
    done = bench.run(source, limits=Limits(file_mb=4))
    expect(done.ok and int(done.stdout) <= 4 << 20, describe(done))


@check
def many_files(bench: Bench) -> None:
    """There is an end to files and folders, and wiping them is quick."""
    source = """
import os
num = 0
try:
    for number in range(400_000):
        os.mkdir(f"d{number}")
        num += 1
except OSError:
    pass
print(num, flush=True)
"""
    done = bench.run(source, limits=Limits(wall_s=30, cpu_s=30))
    expect(done.status == "exited" and int(done.stdout or 0) < 400_000, f"400,000 folders: {describe(done)}")
    _, seconds = took(bench.box.reset)
    expect(seconds < 10, f"wiping took {seconds:.1f} s")
    bench.still_works()


@check
def processes(bench: Bench) -> None:
    """No more processes are alive at once than the limit."""
    source = """
import os, time
num = 0
for _ in range(200):
    try:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
    except OSError:
        break
    num += 1
print(num, flush=True)
os._exit(0)
"""
    done = bench.run(source, limits=Limits(pids=16))
    expect(done.ok and int(done.stdout) <= 16, f"of 16: {describe(done)}")
    expect(int(done.stdout) >= 8, f"of 16, only so many: {describe(done)}")


@check
def threads(bench: Bench) -> None:
    """Threads count as processes do."""
    source = """
import os, threading, time
num = 0
try:
    for _ in range(200):
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
        num += 1
except RuntimeError:
    pass
print(num, flush=True)
os._exit(0)
"""
    done = bench.run(source, limits=Limits(pids=16))
    expect(done.ok and int(done.stdout) <= 16, f"of 16: {describe(done)}")


@check
def fork_bomb(bench: Bench) -> None:
    """A fork bomb ends at its limits and leaves a sandbox that works."""
    source = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    in_time(bench, source, Limits(wall_s=1.5, pids=64))
    started = time.monotonic()
    bench.still_works()
    expect(time.monotonic() - started < 10, "the next program came late")


@check
def open_files(bench: Bench) -> None:
    """There is an end to open files."""
    source = "import os\ntry:\n    for n in range(100_000): os.dup(0)\nexcept OSError:\n    print(n)"
    done = bench.run(source)
    expect(done.ok and 32 <= int(done.stdout or 100_000) < 100_000, describe(done))


@check
def limits_cannot_be_raised(bench: Bench) -> None:
    """A program cannot raise its own limits."""
    bench.attack("""
import resource
for name in ("AS", "CPU", "FSIZE", "NOFILE", "NPROC", "CORE"):
    kind = getattr(resource, "RLIMIT_" + name)
    hard = resource.getrlimit(kind)[1]
    if hard == resource.RLIM_INFINITY:
        continue
    attempt(name + " raised", resource.setrlimit, kind, (hard + 1, hard + 1))
""")
