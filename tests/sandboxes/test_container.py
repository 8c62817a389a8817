"""The container's walls, seen from inside and from the engine; what is left when somebody dies."""

import os
import subprocess
import sys
import time

import pytest

from verigrad.sandboxes import container, registry
from verigrad.sandboxes.base import Limits, SandboxLost, SandboxSpec, SandboxUnavailable

pytestmark = pytest.mark.docker
SPEC = SandboxSpec("container")
SMALL = {"memory_mb": 200, "disk_mb": 8, "pids": 40, "cpus": 0.5}


@pytest.fixture(scope="module")
def shared_box():
    with registry.open_sandbox(SPEC) as box:
        yield box


@pytest.fixture
def box(shared_box):
    shared_box.reset()
    return shared_box


@pytest.fixture
def api():
    with container.engine(timeout_s=60) as api:
        yield api


def run(box, source, **more):
    box.write_file("program.py", source.encode())
    return box.exec(["python3", "program.py"], **more)


def config_of(box, api):
    return api.inspect_container(box._channel.container)


def there(api, name):
    return any(row["Id"] == name for row in api.containers(all=True))


def gone_soon(api, name):
    ends = time.monotonic() + 20
    while there(api, name):
        if time.monotonic() > ends:
            return False
        time.sleep(0.1)
    return True


def test_the_engine_is_told_to_hold_everything_back(api):
    with registry.open_sandbox(SandboxSpec("container", SMALL)) as box:
        found = config_of(box, api)
        host = found["HostConfig"]
        assert host["NetworkMode"] == "none"
        assert host["ReadonlyRootfs"] is True
        assert host["CapDrop"] == ["ALL"]
        assert {name.removeprefix("CAP_") for name in host["CapAdd"]} == set(container.CAPABILITIES)
        assert host["SecurityOpt"] == ["no-new-privileges"]  # and no seccomp=unconfined
        assert not host["Privileged"]
        assert host["IpcMode"] == "private"
        assert host["PidMode"] == host["UTSMode"] == host["UsernsMode"] == ""
        assert not host["Binds"]
        assert found["Mounts"] == []
        assert not host["Devices"]
        assert host["LogConfig"]["Type"] == "none"
        assert host["AutoRemove"] is True
        assert host["Memory"] == host["MemorySwap"] == (200 + 8 + 8 + 16) << 20  # files count as memory
        assert host["PidsLimit"] == 40
        assert host["NanoCpus"] == 500_000_000
        assert set(host["Tmpfs"]) == {"/box", "/tmp", "/dev/shm"}
        assert found["Config"]["Env"] == ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"]
        assert container.LABEL in found["Config"]["Labels"]


def test_a_program_has_a_user_of_its_own_and_no_power(box):
    source = "import os; print(os.getresuid(), os.getgroups(), open('/proc/self/status').read())"
    first = run(box, source).stdout.decode()
    box.reset()
    second = run(box, source).stdout.decode()
    assert first.split(")")[0] != second.split(")")[0]
    for text in (first, second):
        assert "(0," not in text
        assert "CapEff:\t0000000000000000" in text
        assert "CapPrm:\t0000000000000000" in text
        assert "NoNewPrivs:\t1" in text


def test_nothing_outside_home_and_scratch_can_be_written(box):
    found = box.exec(["sh", "-c", "find / -xdev -writable -not -type l 2>/dev/null | grep -v ^/proc"])
    mounts = box.exec(["cat", "/proc/mounts"]).stdout.decode()
    assert set(found.stdout.decode().split()) <= {"/box", "/tmp", "/dev/shm"}
    rw = {line.split()[1] for line in mounts.splitlines() if line.split()[3].startswith("rw")}
    assert {"/box", "/tmp", "/dev/shm"} <= rw
    for place in sorted(rw - {"/box", "/tmp", "/dev/shm"}):
        assert not box.exec(["test", "-d", place, "-a", "-w", place]).ok or place == "/dev/mqueue"


def test_there_is_no_network(box):
    source = "import socket; print(socket.if_nameindex()); socket.create_connection(('192.0.2.1', 80), 2)"
    result = run(box, source)
    assert result.stdout == b"[(1, 'lo')]\n"
    assert b"unreachable" in result.stderr


def test_the_zygote_cannot_be_looked_into_or_killed(box):
    source = """
import os
for pid in set(range(1, 50)) - {os.getpid()}:
    for name in ("environ", "mem", "maps", "fd/0", "root"):
        try:
            os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
            print("opened", pid, name)
        except OSError:
            pass
    try:
        os.kill(pid, 9)
        print("killed", pid)
    except OSError:
        pass
"""
    assert run(box, source).stdout == b""
    assert box.exec(["true"]).ok


def test_a_fork_bomb_is_held_and_cleared_away(box):
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    result = run(box, bomb, limits=Limits(wall_s=1, pids=20))
    assert result.status == "wall_time"
    box.reset()
    assert run(box, "import os; print(len([p for p in os.listdir('/proc') if p.isdecimal()]))").stdout < b"5"


def test_processes_are_counted_per_program(box):
    count = """
import os
number = 0
try:
    while True:
        if os.fork() == 0:
            os.read(os.pipe()[0], 1)
        number += 1
except OSError:
    print(number)
"""
    assert int(run(box, count, limits=Limits(pids=7)).stdout) <= 7


def test_colluding_programs_find_nothing_of_each_other(box):
    leave = """
import ctypes, os
libc, rt = ctypes.CDLL(None), ctypes.CDLL("librt.so.1")
for place in ("/tmp", "/dev/shm", "/box"):
    os.makedirs(place + "/deep/er")
    open(place + "/left", "w").write("secret")
made = [libc.shmget(77, 4096, 0o1666), libc.semget(77, 1, 0o1666), libc.msgget(77, 0o1666)]
print(min(made), rt.mq_open(b"/left", 0o102, 0o666, None) > 0)
if os.fork() == 0:
    os.setsid()
    while True:
        pass
"""
    assert run(box, leave).stdout == b"0 True\n"
    box.reset()
    find = """
import ctypes, os
libc, rt = ctypes.CDLL(None), ctypes.CDLL("librt.so.1")
print([os.listdir(place) for place in ("/tmp", "/dev/shm", "/box", "/dev/mqueue")])
print(libc.shmget(77, 0, 0), libc.semget(77, 0, 0), libc.msgget(77, 0), rt.mq_open(b"/left", 0))
print(len([p for p in os.listdir("/proc") if p.isdecimal()]))
"""
    expected = b"[[], [], ['program.py'], []]\n-1 -1 -1 -1\n3\n"
    assert run(box, find).stdout == expected


def test_a_program_that_fills_every_folder_does_not_hinder_the_next(box):
    fill = """
for place in ("/box", "/tmp"):
    for number in range(20000):
        try:
            open(f"{place}/{number}", "w").write("x" * 5000)
        except OSError:
            break
print("full")
"""
    assert run(box, fill, limits=Limits(wall_s=120, cpu_s=120)).stdout == b"full\n"
    box.reset()
    box.write_file("a", b"x" * (1 << 20))
    assert run(box, "print(open('a').read().count('x'))").stdout == b"1048576\n"


def test_memory_of_all_processes_together_is_limited():
    eat = """
import os, time
for _ in range(6):
    if os.fork() == 0:
        text = bytearray(60 << 20)
        time.sleep(60)
text = b""
while True:
    text += bytes(1 << 20)
"""
    with registry.open_sandbox(SandboxSpec("container", SMALL)) as box:
        result = run(box, eat, limits=Limits(wall_s=20, memory_mb=2000))
        assert result.status in ("memory", "wall_time"), result
        box.reset()
        assert run(box, "print(1)").stdout == b"1\n"


def test_a_container_whose_client_is_killed_goes_away(api):
    script = """
import sys
from verigrad.sandboxes import registry
from verigrad.sandboxes.base import SandboxSpec
box = registry.open_sandbox(SandboxSpec("container"))
box.start(["sleep", "1000"])
print(box._channel.container, flush=True)
sys.stdin.read()
"""
    client = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    name = client.stdout.readline().decode().strip()
    assert there(api, name)
    client.kill()
    client.wait()
    assert gone_soon(api, name)


def test_closing_leaves_no_container(api):
    box = registry.open_sandbox(SPEC)
    name = box._channel.container
    box.start(["sh", "-c", "yes; sleep 1000"])
    box.close()
    box.close()
    assert gone_soon(api, name)
    with pytest.raises(SandboxLost):
        box.exec(["true"])


def test_a_container_that_is_removed_is_a_lost_sandbox(api):
    box = registry.open_sandbox(SPEC)
    api.remove_container(box._channel.container, force=True)
    with pytest.raises(SandboxLost):
        box.exec(["true"])
    box.close()


def test_what_a_dead_owner_left_is_swept_and_what_a_living_one_has_is_not(api):
    def labelled(label):
        made = api.create_container(container.build.image_name(), "true", labels={container.LABEL: label})
        return made["Id"]

    ended = subprocess.Popen(["true"])
    ended.wait()
    mine = container.owner()
    dead = mine.replace(f" {os.getpid()},", f" {ended.pid},")
    elsewhere = dead.replace('["', '["of another machine ')
    names = [labelled(label) for label in (mine, dead, elsewhere, "no label of ours")]
    try:
        container.sweep(api)
        assert [there(api, name) for name in names] == [True, False, True, True]
    finally:
        for name in (names[0], *names[2:]):
            api.remove_container(name)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"docker_host": "unix:///nonexistent/docker.sock"},
            "no Docker engine answered at unix:///nonexistent/docker.sock; start it, or set "
            "sandbox.docker_host or DOCKER_HOST (No such file or directory)",
        ),
        ({"image": "verigrad/none:1"}, "there is no image verigrad/none:1; pull or build it"),
        ({"runtime": "warp"}, "no runtime 'warp'"),
    ],
)
def test_what_is_missing_is_told_at_once(options, told):
    started = time.monotonic()
    reason = registry.load("container").unavailable(options)
    assert told in reason
    assert "\n" not in reason
    assert time.monotonic() - started < 2
    with pytest.raises((SandboxUnavailable, SandboxLost)):
        registry.open_sandbox(SandboxSpec("container", options))


def test_without_the_image_the_command_that_builds_it_is_told(monkeypatch):
    monkeypatch.setattr(container.build, "image_name", lambda: "verigrad-sandbox:none")
    assert "verigrad sandboxes --build" in registry.load("container").unavailable({})
