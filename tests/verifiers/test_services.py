"""Services that verifiers share: started once, watched, started again, ended; a dead one decides nothing."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from verigrad.verifiers import service_keeper, services
from verigrad.verifiers.base import Attempt, Problem
from verigrad.verifiers.isolation import VerifierPool
from verigrad.verifiers.service_keeper import Lease, ServiceUnavailable
from verigrad.verifiers.services import Service, ServiceLost

SERVER = """
import json, os, socketserver, sys, threading, time
from http.server import BaseHTTPRequestHandler
path, options = sys.argv[1], json.loads(sys.argv[2])
if options.get("say"):
    print("some chatter\\n" + options["say"], file=sys.stderr)
    sys.exit(3)
if options.get("starts"):  # counted in a file
    with open(options["starts"], "a") as file: file.write("x")
    if options.get("once") and os.path.getsize(options["starts"]) > 1: sys.exit("only once")
time.sleep(options.get("load_s", 0))
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def reply(self, status, data):
        body = json.dumps(data).encode()
        self.send_response(status); self.send_header("content-length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def address_string(self): return ""
    def log_message(self, *args): pass
    def do_GET(self): self.reply(200, {})
    def do_POST(self):
        said = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = said.get("text", "")
        if text == "die": os._exit(9)
        if text == "hang": time.sleep(60)
        if text == "wrong": return self.reply(400, "no such thing")
        if text == "broken": return self.reply(500, "a bug")
        if said.get("hint"): HINTS.append(text)
        self.reply(200, {"pid": os.getpid(), "length": len(text), "hints": HINTS})
HINTS = []
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer): daemon_threads = True
Server(path, Handler).serve_forever()
"""
VERIFIER = '''
from verigrad.verifiers import services
from verigrad.verifiers.base import POLICY_ATTRIBUTE, Policy, Verdict
from verigrad.verifiers.services import Service

class Served:
    """Pays a thousandth for each character, as a service counts them."""
    def __init__(self, server, wait_s=8.0, **options):
        self.service, self.wait_s = Service(server, options, ready_s=30.0), wait_s
        setattr(self, POLICY_ATTRIBUTE, Policy("served", deadline_s=wait_s + 2, services=(self.service,)))
    def verify(self, text):
        try:
            said = services.ask(self.service, "/score", {"text": text}, timeout_s=self.wait_s)
        except services.ServiceLost as error:
            return Verdict.undecided(str(error))
        parts = {"pid": said["pid"], "hints": len(said["hints"])}
        return Verdict(said["length"] / 1000, "partial", parts=parts)
    def prefetch(self, problem, attempts):
        for one in attempts:
            services.tell(self.service, "/score", {"text": one.text, "hint": True})
'''
PROBLEM = Problem("p", "1?", "1")


@pytest.fixture
def server(tmp_path):
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    return str(path)


@pytest.fixture
def served(tmp_path, server):
    """A verifier on the server, and its options."""
    path = tmp_path / "served.py"
    # Options by name: a class with **options takes none of a recipe.
    path.write_text(
        VERIFIER.replace("**options", "starts='', once=False, say=''").replace(
            "Service(server, options,", "Service(server, {'starts': starts, 'once': once, 'say': say},"
        )
    )
    return f"{path}:Served", {"server": server}


def judge(pool, *texts, problem=PROBLEM):
    return pool.submit(problem, [Attempt(text) for text in texts]).result(60)


def test_one_process_serves_all_workers_of_all_pools_and_ends_with_the_last(served):
    name, options = served
    with VerifierPool(name, options=options, num_workers=3) as first:
        with VerifierPool(name, options={**options, "wait_s": 5.0}, num_workers=2) as second:
            verdicts = [*judge(first, *["abc"] * 6), *judge(second, *["abc"] * 4)]
            assert {verdict.reward for verdict in verdicts} == {0.003}
            assert len({verdict.parts["pid"] for verdict in verdicts}) == 1
            assert first.service_pids() == second.service_pids()
        (pid,) = first.service_pids()
        assert judge(first, "ab")[0].reward == 0.002
    assert not psutil.pid_exists(pid)
    assert not service_keeper.running()


def test_another_options_is_another_service(server):
    one, other = Service(server, {}), Service(server, {"load_s": 0})
    assert one.key != other.key
    assert one.key == Service(server).key
    lease = Lease([one, other, one])
    try:
        assert len(set(lease.addresses.values())) == 2
    finally:
        lease.close()


def test_it_reaches_the_workers_through_combine(served):
    name, options = served
    parts = {
        "long": {"verifier": name, "options": options, "weight": 0.5},
        "right": {"verifier": "exact_match", "gate": True, "weight": 0.5},
    }
    with VerifierPool("combine", options={"parts": parts}, num_workers=1) as pool:
        assert [one.reward for one in judge(pool, "1", "12")] == [0.5005, 0]
        time.sleep(0.2)
        assert judge(pool, "1", problem=Problem("q", "", "1"))[0].decided


def test_the_pool_tells_a_service_what_will_be_judged(served):
    name, options = served
    with VerifierPool(name, options=options, num_workers=1) as pool:
        judge(pool, "a", "ab")
        time.sleep(0.5)
        assert judge(pool, "abc")[0].parts["hints"] >= 2


def test_hints_wait_in_a_queue_of_which_the_oldest_are_dropped_and_counted(caplog):
    caplog.set_level("WARNING", logger=services.__name__)
    teller, done, go = services.Teller(3), [], threading.Event()
    started = threading.Event()
    teller.put(lambda: (started.set(), go.wait(10)))
    assert started.wait(10)
    for number in range(8):
        teller.put(lambda number=number: done.append(number))
    assert teller.num_dropped == 5
    assert caplog.text.count("the oldest are dropped") == 1
    last = threading.Event()
    go.set()
    while len(done) < 3:
        time.sleep(0.01)
    teller.put(last.set)
    assert last.wait(10)
    assert done == [5, 6, 7]
    assert teller.num_dropped == 5


def test_telling_a_service_that_hangs_neither_waits_nor_fills_the_memory(server, monkeypatch):
    monkeypatch.setattr(services, "MAX_TOLD", 4)
    services.teller.cache_clear()
    service = Service(server)
    lease = Lease([service])
    try:
        started = time.monotonic()
        for _ in range(50):
            services.tell(service, "/score", {"text": "hang"})
        assert time.monotonic() - started < 5
        assert services.teller().num_dropped >= 40
    finally:
        services.teller.cache_clear()
        lease.close()


def test_a_killed_service_comes_back_and_nobody_is_blamed(served, tmp_path):
    name, options = served
    options = {**options, "starts": str(tmp_path / "starts")}
    with VerifierPool(name, options=options, num_workers=2) as pool:
        before = judge(pool, "abc")[0]
        os.kill(int(before.parts["pid"]), signal.SIGKILL)
        after = judge(pool, *["abcd"] * 5)
        assert [one.reward for one in after] == [0.004] * 5, [one.reason for one in after]
        assert after[0].parts["pid"] != before.parts["pid"]
    assert (tmp_path / "starts").read_text() == "xx"


def test_one_that_dies_of_a_request_leaves_that_one_undecided_and_serves_the_rest(served):
    name, options = served
    with VerifierPool(name, options=options, num_workers=1) as pool:
        deadly, harmless = judge(pool, "die", "abc")
        assert deadly.reward is None
        assert "died while it was asked" in deadly.reason
        assert harmless.reward == 0.003


def test_one_that_cannot_be_started_again_leaves_all_undecided_at_once(served, tmp_path, monkeypatch):
    monkeypatch.setattr(service_keeper, "MAX_RESTARTS", 1)
    name, options = served
    options = {**options, "starts": str(tmp_path / "starts"), "once": True}
    with VerifierPool(name, options=options, num_workers=1) as pool:
        os.kill(int(judge(pool, "abc")[0].parts["pid"]), signal.SIGKILL)
        assert judge(pool, "abc")[0].reward is None
        started = time.monotonic()
        verdict = judge(pool, "abcd")[0]
        assert verdict.reward is None
        assert "ended for good" in verdict.reason
        assert "only once" in verdict.reason
        assert time.monotonic() - started < 3


def test_a_service_that_hangs_leaves_the_verdict_undecided_before_the_worker_is_killed(served):
    name, options = served
    with VerifierPool(name, options=options, num_workers=1, deadline_s=1.0) as pool:
        judge(pool, "a")
        pids = pool.worker_pids()
        verdict = judge(pool, "hang")[0]
        assert verdict.reward is None
        assert "no answer" in verdict.reason
        assert pool.worker_pids() == pids
        assert judge(pool, "abc")[0].reward == 0.003


def test_one_that_does_not_start_says_why_in_one_line(served, server):
    name, options = served
    with pytest.raises(ServiceUnavailable, match=r"ended with status 3: no model there$"):
        VerifierPool(name, options={**options, "say": "no model there"})
    slow = Service(server, {"load_s": 30}, ready_s=0.5)
    with pytest.raises(ServiceUnavailable, match=r"not ready within 0.5 s"):
        Lease([slow])
    with pytest.raises(ServiceUnavailable, match=r"cannot be started: .*too long"):
        Lease([Service(server, {"say": "x" * 300_000})])
    assert not service_keeper.running()


def test_asking_without_a_pool_and_asking_wrongly(server):
    service = Service(server)
    with pytest.raises(ServiceLost, match="VerifierPool"):
        services.ask(service, "/score", {}, timeout_s=1)
    lease = Lease([service])
    try:
        with pytest.raises(ValueError, match="no such thing"):
            services.ask(service, "/score", {"text": "wrong"}, timeout_s=5)
        with pytest.raises(ServiceLost, match=r"status 500.*a bug"):
            services.ask(service, "/score", {"text": "broken"}, timeout_s=5)
        assert services.ask(service, "/score", {"text": "\ud800\x00"}, timeout_s=5)["length"] == 2
    finally:
        lease.close()
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        Service(server, {"x": object()}).key  # noqa: B018


def test_nothing_is_left_when_the_owner_is_killed(server, tmp_path):
    owner = textwrap.dedent(f"""
        import sys, time
        from verigrad.verifiers import services
        from verigrad.verifiers.service_keeper import Lease
        from verigrad.verifiers.services import Service
        one = Service({server!r})
        lease = Lease([one])
        print(services.ask(one, "/", {{}}, timeout_s=5)["pid"], flush=True)
        time.sleep(60)
    """)
    process = subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert psutil.pid_exists(pid)
    process.kill()
    process.wait()
    ends = time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)
