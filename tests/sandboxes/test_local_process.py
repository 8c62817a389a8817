"""local_process: refused unless trusted, and gone without a trace afterwards."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from verigrad.sandboxes import registry
from verigrad.sandboxes.base import SandboxLost, SandboxSpec, SandboxUnavailable

TRUSTED = SandboxSpec("local_process", {"trusted": True})


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone_soon(check):
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        if not check():
            return True
        time.sleep(0.05)
    return False


def test_it_is_refused_unless_the_code_is_trusted():
    for options in ({}, {"trusted": False}):
        with pytest.raises(SandboxUnavailable, match="trusted = true"):
            registry.open_sandbox(SandboxSpec("local_process", options))
        with pytest.raises(SandboxUnavailable, match="isolates nothing"):
            registry.choose(SandboxSpec("local_process", options))


def test_options_of_the_whole_sandbox_are_accepted_and_others_are_not():
    sizes = {"memory_mb": 64, "disk_mb": 1, "pids": 8, "cpus": 0.5}
    registry.open_sandbox(SandboxSpec("local_process", {"trusted": True, **sizes})).close()
    with pytest.raises(TypeError):
        registry.open_sandbox(SandboxSpec("local_process", {"trusted": True, "image": "debian"}))


def test_closing_leaves_no_folder_and_no_process():
    box = registry.open_sandbox(TRUSTED)
    home = box.exec(["pwd"]).stdout.decode().strip()
    box.write_file("a/b", b"x")
    process = box.start(["sh", "-c", "echo $$; exec sleep 1000"])
    pid = int(process.receive(timeout_s=10))
    assert Path(home).is_dir()
    assert alive(pid)
    box.close()
    box.close()
    assert gone_soon(lambda: alive(pid))
    assert not Path(home).parent.exists()
    with pytest.raises(SandboxLost):
        box.exec(["true"])


def test_a_client_that_is_killed_leaves_no_folder_and_no_process(tmp_path):
    script = """
import sys
from verigrad.sandboxes import registry
from verigrad.sandboxes.base import SandboxSpec
box = registry.open_sandbox(SandboxSpec("local_process", {"trusted": True}))
process = box.start(["sh", "-c", "echo $$ $PWD; exec sleep 1000"])
print(process.receive(timeout_s=10).decode(), flush=True)
sys.stdin.read()
"""
    client = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    pid, home = client.stdout.readline().split()
    assert alive(pid)
    client.kill()
    client.wait()
    assert gone_soon(lambda: alive(pid))
    assert gone_soon(Path(home).parent.exists)


def test_a_zygote_that_is_killed_is_a_lost_sandbox():
    box = registry.open_sandbox(TRUSTED)
    supervisor = int(box.exec(["sh", "-c", "cut -d' ' -f4 /proc/$PPID/stat"]).stdout)
    os.kill(supervisor, signal.SIGKILL)
    with pytest.raises(SandboxLost):
        box.exec(["true"])
    box.close()


def test_what_moved_to_another_session_is_ended_too():
    with registry.open_sandbox(TRUSTED) as box:
        daemon = "setsid sh -c 'echo $$ > pid; exec sleep 1000' & while [ ! -s pid ]; do sleep 0.05; done"
        assert box.exec(["sh", "-c", daemon]).ok
        assert not alive(int(box.read_file("pid")))
