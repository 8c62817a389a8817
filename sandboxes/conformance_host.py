"""Conformance checks: of the machine, its files, its judge and its network, a program finds nothing."""

import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from verigrad.sandboxes.conformance_bench import Bench, check, expect


@check
def files_of_the_host(bench: Bench) -> None:
    """A program reads no file of the host."""
    with tempfile.TemporaryDirectory() as folder:
        secret = Path(folder) / "secret"
        secret.write_text(bench.secret)
        Path(folder).chmod(0o755)
        secret.chmod(0o644)
        bench.attack(f"""
places = [{str(secret)!r}, {str(Path.cwd())!r}, {str(Path(__file__).resolve())!r}, {str(Path.home())!r}]
# targets of the attack: where machines keep what no program may read
places += ["/etc/shadow", "/root/.ssh", "/proc/1/root/root", "/var/lib/docker", "/boot/grub"]
for place in places:
    if os.path.isdir(place):
        names = attempt.__globals__["os"].listdir(place) if os.access(place, os.R_OK) else []
        if names and place != os.getcwd():
            escaped(place + " holds " + ", ".join(names[:3]))
    elif os.path.exists(place):
        attempt("read " + place, open, place)
""")


@check
def sockets_of_the_host(bench: Bench) -> None:
    """A program reaches no socket of the host by its path, the Docker engine's least of all."""
    with tempfile.TemporaryDirectory() as folder, listening(socket.AF_UNIX, f"{folder}/socket") as path:
        Path(folder).chmod(0o777)
        os.chmod(path, 0o777)
        bench.attack(f"""
for path in ({path!r}, "/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock",
             "/run/podman/podman.sock", "/run/dbus/system_bus_socket", "/run/systemd/private"):
    attempt("connected to " + path, socket.socket(socket.AF_UNIX).connect, path)
""")


@check
def abstract_sockets(bench: Bench) -> None:
    """A program reaches no abstract socket of the host."""
    name = f"verigrad-{secrets.token_hex(8)}"
    with listening(socket.AF_UNIX, "\0" + name):
        bench.attack(f"""
attempt("connected", socket.socket(socket.AF_UNIX).connect, "\\0" + {name!r})
""")


@check
def loopback_of_the_host(bench: Bench) -> None:
    """A program reaches no port of the host."""
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as (_, port):
        bench.attack(f"""
for address in ("127.0.0.1", "localhost", "host.docker.internal", "172.17.0.1", "10.0.2.2"):
    try:
        socket.create_connection((address, {port}), timeout=1).close()
    except OSError:
        continue
    escaped("connected to " + address)
""")


@check
def network(bench: Bench) -> None:
    """There is no way to any network."""
    bench.attack("""
for family, address in ((socket.AF_INET, "1.1.1.1"), (socket.AF_INET, "169.254.169.254"),
                        (socket.AF_INET6, "2606:4700:4700::1111")):
    try:
        probe = socket.socket(family, socket.SOCK_DGRAM)
    except OSError:
        continue
    attempt("a route to " + address, probe.connect, (address, 53))  # nothing is sent
""")


@check
def names_of_the_network(bench: Bench) -> None:
    """No name of the network is resolved."""
    bench.attack("""
attempt("a name was resolved", socket.gethostbyname, "example.com")
""")


@check
def sockets_around_the_network(bench: Bench) -> None:
    """No socket goes around the network's walls: to the hypervisor, or to the wire itself."""
    bench.attack("""
for name, family, kind in (("vsock", 40, socket.SOCK_STREAM), ("packet", 17, socket.SOCK_RAW),
                           ("raw", 2, socket.SOCK_RAW), ("bluetooth", 31, socket.SOCK_RAW),
                           ("can", 29, socket.SOCK_RAW), ("xdp", 44, socket.SOCK_RAW)):
    attempt("a " + name + " socket", socket.socket, family, kind, 1 if family in (2, 29) else 0)
""")


@check
def environment_of_the_judge(bench: Bench) -> None:
    """Nothing of the judge's environment is in the sandbox, in no process."""
    bench.attack(f"""
needle = {bench.secret[:16]!r}.encode() , {bench.secret[16:]!r}.encode()
for name in os.listdir("/proc") + ["self"]:
    for file in ("environ", "cmdline") if name.isdecimal() or name == "self" else ():
        try:
            data = open("/proc/" + name + "/" + file, "rb").read()
        except OSError:
            continue
        at = data.find(needle[0])
        if at >= 0 and data[at + 16 : at + 32] == needle[1]:
            escaped("the judge's secret is in /proc/" + name + "/" + file)
if {bench.secret[:16]!r} in str(os.environ):
    escaped("the judge's secret is in the environment")
""")


@check
def processes_of_the_host(bench: Bench) -> None:
    """A program sees no process of the host."""
    program = Path("/proc/self/comm").read_text().strip() if Path("/proc/self/comm").exists() else ""
    text = bench.attack("""
print(len([name for name in os.listdir("/proc") if name.isdecimal()]))
""")
    num = int(text.split()[0])
    expect(num <= 16, f"{num} processes are seen from inside, such as the judge ({program})")


@check
def devices(bench: Bench) -> None:
    """No device of the machine can be opened, and none made."""
    bench.attack("""
harmless = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "console"}
for folder, folders, files in os.walk("/dev"):
    for name in files:
        path = os.path.join(folder, name)
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            continue
        if (stat.S_ISBLK(mode) or stat.S_ISCHR(mode)) and name not in harmless and "/pts" not in folder:
            attempt("opened " + path, lambda: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK)))
for kind in (stat.S_IFCHR, stat.S_IFBLK):
    attempt("made a device", os.mknod, "device", kind | 0o600, os.makedev(1, 5))
""")


@check
def settings_of_the_kernel(bench: Bench) -> None:
    """No setting of the kernel can be changed, and its log not be read."""
    bench.attack("""
for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sys/vm/overcommit_memory",
             "/proc/sysrq-trigger", "/sys/kernel/uevent_helper", "/proc/sys/kernel/modprobe", "/proc/kcore",
             "/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory/tasks", "/sys/fs/cgroup/memory.max",
             "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/pids/pids.max"):
    attempt("opened " + path + " to write", lambda: os.close(os.open(path, os.O_WRONLY)))
for path in ("/proc/kcore", "/dev/mem", "/dev/kmsg"):
    attempt("opened " + path, lambda: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK)))
buffer = ctypes.create_string_buffer(64)
attempt("read the kernel's log", lambda: syscall(103, 116, 3, buffer, 64))
attempt("named the machine", lambda: syscall(170, 161, b"mine", 4))
""")


@contextmanager
def listening(family: int, address: Any) -> Iterator[Any]:
    """A socket of the host that answers; the address it got."""
    with socket.socket(family) as server:
        server.bind(address)
        server.listen(8)
        threading.Thread(target=_accept, args=(server,), daemon=True).start()
        yield server.getsockname()


def _accept(server: socket.socket) -> None:
    try:
        while True:
            server.accept()[0].close()
    except OSError:
        pass  # closed
