"""SandboxFusion's HTTP API as a sandbox.

The server here is a stand-in of 40 lines that does what the API documents, by running programs for real. With
VERIGRAD_SANDBOX_FUSION=http://... the same tests run against a real server too.
"""

import base64
import io
import json
import os
import subprocess
import tarfile
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from verigrad.engine import sandboxing
from verigrad.engine.settings import SandboxConfig
from verigrad.sandboxes import registry
from verigrad.sandboxes.base import Limits, ProgramFault, SandboxLost, SandboxSpec, SandboxUnavailable
from verigrad.sandboxes.pool import SandboxPool, SandboxSettings

REAL = os.environ.get("VERIGRAD_SANDBOX_FUSION")


class StandIn(BaseHTTPRequestHandler):
    """GET /v1/ping and POST /run_code with language bash."""

    def do_GET(self):
        self.answer(200, "pong")

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.failing:
            failing = self.server.failing.pop()
            self.answer(*failing)
            return
        assert request["language"] == "bash"
        with tempfile.TemporaryDirectory() as folder:
            for name, content in request["files"].items():
                Path(folder, name).write_bytes(base64.b64decode(content))
            done = subprocess.run(
                ["bash", "-c", request["code"]],
                cwd=folder,
                capture_output=True,
                timeout=request["run_timeout"],
            )
            files = {
                name: base64.b64encode(Path(folder, name).read_bytes()).decode()
                for name in request["fetch_files"]
                if Path(folder, name).is_file()
            }
        ran = {"status": "Finished", "return_code": done.returncode, "stdout": "", "stderr": ""}
        status = "Failed" if done.returncode else "Success"
        self.answer(200, {"status": status, "message": "", "run_result": ran, "files": files})

    def answer(self, code, body):
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.failing = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield server
    server.shutdown()


@pytest.fixture(params=["stand-in", *(["real"] if REAL else [])])
def box(request, server):
    url = REAL if request.param == "real" else server.url
    with registry.open_sandbox(SandboxSpec("sandbox_fusion", {"base_url": url})) as box:
        yield box


def test_a_command_reads_its_input_and_says_how_it_ended(box):
    code = "import sys; print(sys.stdin.read()[::-1]); print('no', file=sys.stderr); sys.exit(3)"
    done = box.exec(["python3", "-c", code], stdin=b"abc", env={"X": "1"})
    assert (done.status, done.exit_code, done.stdout, done.stderr) == ("exited", 3, b"cba\n", b"no\n")


def test_files_persist_from_command_to_command_and_links_do_not(box):
    box.write_file(
        "/box/a/run.sh", b"#!/bin/sh\necho made > b; ln -s /etc/passwd c; mkdir -p d", executable=True
    )
    assert box.exec(["a/run.sh"]).ok
    assert box.read_file("b") == b"made\n"
    with pytest.raises(ProgramFault):
        box.read_file("c")
    assert box.exec(["cat", "b"]).stdout == b"made\n"
    with tarfile.open(fileobj=io.BytesIO(box.save(["a", "d", "missing"]))) as archive:
        assert sorted(archive.getnames()) == ["a", "a/run.sh", "d"]
    kept = box.save()
    box.reset()
    assert box.exec(["ls"]).stdout == b""
    box.load(kept)
    assert box.exec(["cat", "b"]).stdout == b"made\n"


@pytest.mark.parametrize(
    ("code", "limits", "status"),
    [
        ("import time; time.sleep(60)", {"wall_s": 1.0}, "wall_time"),
        ("while True: pass", {"cpu_s": 1.0, "wall_s": 60.0}, "cpu_time"),
        (
            "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
            {"cpu_s": 1.0, "wall_s": 60.0},
            "cpu_time",
        ),
        ("while True: print('x' * 1000)", {"output_bytes": 5000, "wall_s": 60.0}, "output"),
        ("import os; os.abort()", {}, "signalled"),
    ],
)
def test_what_a_program_does_wrong_is_a_result(box, code, limits, status):
    done = box.exec(["python3", "-c", code], limits=Limits(**limits))
    assert (done.status, done.exit_code) == (status, None)
    assert len(done.stdout) <= 5000


def test_memory_and_files_are_limited(box):
    done = box.exec(["python3", "-c", "x = bytearray(10**9)"], limits=Limits(memory_mb=256))
    assert b"MemoryError" in done.stderr
    done = box.exec(["python3", "-c", "open('f', 'wb').write(b'x' * (4 << 20))"], limits=Limits(file_mb=1))
    assert not done.ok
    with pytest.raises(ProgramFault):
        box.read_file("f", max_bytes=1000)


def test_what_a_program_starts_ends_with_it(box):
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    while True: open('alive', 'a').write('x'); time.sleep(0.01)\n"
        "time.sleep(0.3); print('done')"
    )
    assert box.exec(["python3", "-c", code]).stdout == b"done\n"
    first = box.read_file("alive")
    box.exec(["sleep", "0.5"])
    assert box.read_file("alive") == first


def test_more_files_than_are_kept_is_the_programs_fault(server):
    spec = SandboxSpec("sandbox_fusion", {"base_url": server.url, "disk_mb": 1})
    with registry.open_sandbox(spec) as box:
        done = box.exec(["python3", "-c", "open('f', 'wb').write(b'x' * (2 << 20))"])
        assert (done.status, done.detail) == ("output", "left more files than may be kept")
        assert box.files == {}


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", ".", "a\0b"])
def test_paths_outside_home_are_refused(box, path):
    with pytest.raises(ValueError, match="below /box"):
        box.write_file(path, b"")
    with pytest.raises(ValueError, match="below /box"):
        box.read_file(path)


def test_an_archive_nobody_trusts_cannot_name_places_outside(box):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("../out", "/abs", "in"):
            archive.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    box.load(packed.getvalue())
    assert sorted(box.files) == ["in"]


@pytest.mark.parametrize(
    "failure",
    [
        (500, {}),
        (200, {"status": "SandboxError", "message": "no workers"}),
        (200, {"status": "Success", "files": {}}),
        (200, {"status": "Success", "files": {"result.json": base64.b64encode(b"{}").decode()}}),
        (200, ["?"]),
    ],
)
def test_a_failure_of_the_server_is_never_the_programs(server, failure):
    with registry.open_sandbox(SandboxSpec("sandbox_fusion", {"base_url": server.url})) as box:
        server.failing = [failure]
        with pytest.raises(SandboxLost):
            box.exec(["true"])


def test_a_program_that_kills_its_driver_decides_nothing(box):
    with pytest.raises(SandboxLost, match="without a result"):
        box.exec(["python3", "-c", "import os; os.kill(os.getppid(), 9)"])


def test_a_pool_tries_again_when_the_server_fails_once(server):
    settings = SandboxSettings(SandboxSpec("sandbox_fusion", {"base_url": server.url}), retries=1)
    with SandboxPool(settings) as pool:
        server.failing = [(500, {})]
        assert pool.run(lambda box: box.exec(["echo", "again"]).stdout) == b"again\n"


def test_what_it_cannot_do_is_said(box):
    with pytest.raises(SandboxUnavailable, match="cannot be talked to"):
        box.start(["cat"])


def test_a_missing_server_address_or_option_is_one_clear_line(server):
    for options, says in (
        ({}, "set sandbox.options.base_url"),
        ({"base_url": "http://127.0.0.1:9"}, "start it"),
    ):
        with pytest.raises(SandboxUnavailable, match=says):
            registry.choose(SandboxSpec("sandbox_fusion", options))
    with pytest.raises(ValueError, match="no option 'url'"):
        registry.choose(SandboxSpec("sandbox_fusion", {"url": server.url}))


def test_a_recipe_names_it_with_its_options(server):
    chosen = sandboxing.chosen(SandboxConfig(backend="sandbox_fusion", options={"base_url": server.url}))
    assert chosen.spec.to_json() == {"backend": "sandbox_fusion", "options": {"base_url": server.url}}
