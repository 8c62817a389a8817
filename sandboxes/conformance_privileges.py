"""Conformance checks: a program has no privilege, gains none, and cannot touch what keeps it."""

from verigrad.sandboxes.conformance_bench import Bench, check, describe, expect


@check
def not_root(bench: Bench) -> None:
    """A program is not root, holds no capability, and cannot become more than it is."""
    bench.attack("""
if 0 in (*os.getresuid(), *os.getresgid(), *os.getgroups()):
    escaped("it runs as root")
rows = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
for name in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
    if int(rows[name], 16):
        escaped(name + rows[name])
for function, arguments in ((os.setuid, (0,)), (os.setgid, (0,)), (os.setgroups, ([0],)),
                            (os.setresuid, (0, 0, 0))):
    attempt(function.__name__, function, *arguments)
""")


@check
def no_setuid_programs(bench: Bench) -> None:
    """No program in the sandbox gives rights to who starts it."""
    bench.attack("""
rows = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
if int(rows.get("NoNewPrivs", "0")) != 1:
    escaped("new privileges are not ruled out")
""")


@check
def no_user_namespaces(bench: Bench) -> None:
    """A program makes no namespace in which it would be root."""
    bench.attack("""
for name, flag in (("users", 0x10000000), ("mounts", 0x20000), ("processes", 0x20000000), ("net", 0x40000000),
                   ("ipc", 0x8000000), ("hosts", 0x4000000)):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if libc.unshare(flag) == 0 else 1)
    if os.waitpid(pid, 0)[1] == 0:
        escaped("unshare " + name)
def cloned(flag):
    pid = syscall(56, 220, flag | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
attempt("clone users", cloned, 0x10000000)
""")


@check
def no_other_namespaces(bench: Bench) -> None:
    """A program enters no namespace of another process."""
    bench.attack("""
for pid in [name for name in os.listdir("/proc") if name.isdecimal()]:
    for kind in ("user", "mnt", "pid", "net", "ipc"):
        try:
            file = os.open("/proc/" + pid + "/ns/" + kind, os.O_RDONLY)
        except OSError:
            continue
        if libc.setns(file, 0) == 0:
            escaped("entered " + kind + " of process " + pid)
""")


@check
def no_mounts(bench: Bench) -> None:
    """A program mounts nothing, by the old calls or the new."""
    bench.attack("""
os.makedirs("point", exist_ok=True)
for kind, flags in ((b"tmpfs", 0), (b"proc", 0), (None, 4096)):
    if libc.mount(b"/" if kind is None else kind, b"point", kind, flags, None) == 0:
        escaped("mounted " + str(kind))
        libc.umount2(b"point", 2)
attempt("fsopen", lambda: syscall(430, 430, b"tmpfs", 0))
attempt("open_tree", lambda: syscall(428, 428, -100, b"/", 1))
attempt("unmounted /proc", lambda: syscall(166, 39, b"/no-such-place", 2))
attempt("chroot", os.chroot, ".")
""")


@check
def no_reach_into_processes(bench: Bench) -> None:
    """A program looks into no process but its own, and takes none over."""
    bench.attack("""
own = {os.getpid()}
for name in os.listdir("/proc"):
    if not name.isdecimal() or int(name) in own:
        continue
    pid = int(name)
    if libc.ptrace(0x4206, pid, 0, 0) == 0:
        escaped("traced process " + name)
        libc.ptrace(17, pid, 0, 0)
    memory = "/proc/" + name + "/mem"
    attempt("opened " + memory, lambda: os.close(os.open(memory, os.O_RDWR)))
    attempt("read the memory map of process " + name, lambda: open("/proc/" + name + "/maps").read(1)[0])
    for file in ("cwd", "root", "exe"):
        attempt("followed " + file + " of process " + name, os.readlink, "/proc/" + name + "/" + file)
""")


@check
def no_signals_to_others(bench: Bench) -> None:
    """A program cannot signal what keeps it."""
    bench.attack("""
for name in os.listdir("/proc"):
    if name.isdecimal() and int(name) not in (1, os.getpid()):
        attempt("may signal process " + name, os.kill, int(name), 0)
""")
    done = bench.run("import os, signal; os.kill(os.getppid(), signal.SIGKILL); print('sent')")
    expect(done.status in ("exited", "signalled"), f"after killing its parent: {describe(done)}")
    bench.still_works()


@check
def killing_all(bench: Bench) -> None:
    """A program that kills everything it can reach ends itself at most."""
    bench.attack("""
others = [int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) not in (1, os.getpid())]
for pid in others:
    attempt("may kill process " + str(pid), os.kill, pid, 0)  # where that is so, nothing more is tried
""")
    done = bench.run("import os, signal; os.kill(-1, signal.SIGKILL); print('alive')")
    expect(done.status in ("exited", "signalled"), describe(done))
    bench.still_works()


@check
def nothing_to_overwrite(bench: Bench) -> None:
    """Interpreter, libraries and tools cannot be written."""
    bench.attack("""
import json, shutil, subprocess
places = [sys.executable, os.__file__, json.__file__, subprocess.__file__, "/etc/passwd", "/etc/ld.so.cache"]
places += [shutil.which(tool) for tool in ("sh", "bash", "g++", "ls", "python3") if shutil.which(tool)]
try:
    import pytest
    places.append(pytest.__file__)
except ImportError:
    pass
for place in places:
    attempt("opened " + place + " to write", lambda: os.close(os.open(os.path.realpath(place), os.O_WRONLY)))
    folder = os.path.dirname(os.path.realpath(place))
    probe = folder + "/.probe"
    attempt("made " + probe, lambda: os.close(os.open(probe, os.O_CREAT | os.O_WRONLY)))
    if os.path.exists(probe):
        os.unlink(probe)
""")


@check
def few_places_to_write(bench: Bench) -> None:
    """A program writes to HOME and to the usual temporary folders, and nowhere else."""
    bench.attack("""
allowed = {os.path.realpath(p) for p in (os.getcwd(), "/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue")}
def probe(folder):
    path = os.path.join(folder, ".probe")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL))
    except OSError:
        return
    os.unlink(path)
    escaped("made a file in " + folder)
for top, folders, files in os.walk("/"):
    folders[:] = [f for f in folders if not os.path.islink(os.path.join(top, f))
                  and os.path.join(top, f) not in allowed | {"/proc", "/sys"}]
    if top.count("/") > 4:
        folders[:] = []
    probe(top)
""")


@check
def no_kernel_playground(bench: Bench) -> None:
    """The parts of the kernel with a history of holes are out of reach."""
    bench.attack("""
buffer = ctypes.create_string_buffer(256)
for name, x86, arm, arguments in (
    ("bpf", 321, 280, (0, buffer, 64)), ("perf_event_open", 298, 241, (buffer, 0, -1, -1, 0)),
    ("userfaultfd", 323, 282, (0,)), ("io_uring_setup", 425, 425, (4, buffer)),
    ("init_module", 175, 105, (buffer, 4, buffer)), ("kexec_load", 246, 104, (0, 0, buffer, 0)),
    ("open_by_handle_at", 304, 265, (-100, buffer, 0)), ("fanotify_init", 300, 262, (0, 0)),
    ("add_key", 248, 217, (b"user", b"name", b"data", 4, -4)), ("keyctl", 250, 219, (0, -4, 1)),
    ("process_vm_readv", 310, 270, (os.getppid(), buffer, 0, buffer, 0, 0)),
):
    attempt(name, lambda: syscall(x86, arm, *arguments))
for number in (38, 33, 45):  # kernel cryptography, RxRPC, SMC over sockets
    attempt("a socket of family " + str(number), socket.socket, number, socket.SOCK_SEQPACKET)
""")


@check
def no_clock(bench: Bench) -> None:
    """A program does not set the clock, and gives itself no better place in the queue."""
    bench.attack("""
class Time(ctypes.Structure):
    _fields_ = [("s", ctypes.c_long), ("ns", ctypes.c_long)]
now = Time(int(time.time()), 0)
attempt("set the clock", lambda: syscall(227, 112, 0, ctypes.byref(now)))
attempt("a nicer place", os.nice, -5)
attempt("a real-time place", os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))
""")
