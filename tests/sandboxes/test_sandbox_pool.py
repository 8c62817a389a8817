"""The pool: a job is done again when its sandbox is lost, and a sandbox is wiped before it is lent again."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from verigrad.sandboxes import container, registry
from verigrad.sandboxes.base import ProgramFault, SandboxLost, SandboxSpec, SandboxUnavailable
from verigrad.sandboxes.images.build import image_name
from verigrad.sandboxes.pool import SandboxPool, SandboxSettings

NUM_VERDICTS = 1000
READY_S = 60


class FakeBox:
    """Remembers what happened to it."""

    sibling = None

    def __init__(self, number):
        self.number, self.dirty, self.broken, self.closed, self.resets = number, False, False, False, 0

    def use(self):
        assert not self.dirty, "lent before it was wiped"
        self.dirty = True
        if self.broken:
            raise SandboxLost("gone")
        return self.number

    def begin_reset(self):
        if self.broken:
            raise SandboxLost("gone")

    def finish_reset(self):
        if self.broken:
            raise SandboxLost("gone")
        self.resets += 1
        self.dirty = False

    def close(self):
        self.closed = True


@pytest.fixture
def boxes(monkeypatch):
    made, numbers = [], itertools.count()

    def make(spec):
        if boxes.down:
            raise SandboxUnavailable("no engine")
        made.append(FakeBox(next(numbers)))
        return made[-1]

    def boxes():
        return made

    boxes.down = False
    monkeypatch.setattr(registry, "open_sandbox", make)
    return boxes


def pool_of(**settings):
    size = settings.pop("size", 1)
    return SandboxPool(SandboxSettings(SandboxSpec("fake"), **settings), size=size)


def test_one_warm_sandbox_serves_many_jobs_and_is_wiped_in_between(boxes):
    with pool_of() as pool:
        assert [pool.run(FakeBox.use) for _ in range(5)] == [0] * 5
        assert boxes()[0].resets == 4  # the fifth is done when it is lent again
        assert (pool.num_opened, pool.num_lost, pool.num_resets) == (1, 0, 5)
        assert not boxes()[0].closed
    assert boxes()[0].closed


def test_a_job_is_done_again_when_the_sandbox_is_lost_under_it(boxes):
    with pool_of() as pool:
        pool.warm()
        boxes()[0].broken = True
        assert pool.run(FakeBox.use) == 1
        assert boxes()[0].closed
        assert pool.num_lost == 1


def test_a_sandbox_that_is_lost_every_time_is_given_up_after_the_retries(boxes):
    turns = []

    def always_lost(box):
        turns.append(box.number)
        raise SandboxLost("again")

    with pool_of(retries=2) as pool:
        with pytest.raises(SandboxLost, match="again"):
            pool.run(always_lost)
        assert turns == [0, 1, 2]
        assert pool.run(FakeBox.use) == 3


def test_what_the_program_did_is_never_tried_again(boxes):
    turns = []

    def faulty(box):
        turns.append(box.number)
        raise ProgramFault("a link")

    with pool_of() as pool:
        with pytest.raises(ProgramFault):
            pool.run(faulty)
        assert turns == [0]
        assert pool.run(FakeBox.use) == 0


def test_a_sandbox_that_cannot_be_wiped_is_thrown_away_and_its_result_kept(boxes):
    def soil(box):
        box.broken = True
        return "result"

    with pool_of() as pool:
        assert pool.run(soil) == "result"
        assert boxes()[0].closed
        assert pool.run(FakeBox.use) == 1


def test_an_engine_that_is_down_is_waited_for(boxes):
    with pool_of(patience_s=20) as pool:
        boxes.down = True
        threading.Timer(0.4, lambda: setattr(boxes, "down", False)).start()
        assert pool.run(FakeBox.use) == 0


def test_patience_ends(boxes):
    boxes.down = True
    started = time.monotonic()
    with pool_of(patience_s=0.3) as pool, pytest.raises(SandboxUnavailable):
        pool.run(FakeBox.use)
    assert time.monotonic() - started < 5


def test_no_more_sandboxes_than_its_size_are_lent_at_once(boxes):
    lent, most, lock = [0], [0], threading.Lock()

    def job(box):
        box.use()
        with lock:
            lent[0] += 1
            most[0] = max(most[0], lent[0])
        time.sleep(0.005)
        with lock:
            lent[0] -= 1

    with pool_of(size=3) as pool, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: pool.run(job), range(60)))
        assert most[0] == 3
        assert pool.num_opened == 3


def test_siblings_are_kept_warm_and_wiped_too(boxes):
    def job(box):
        other = box.sibling()
        assert other is not box
        return box.use(), other.use()

    with pool_of() as pool:
        assert {pool.run(job) for _ in range(4)} == {(0, 1)}
        assert pool.num_opened == 2
    assert all(box.closed for box in boxes())


def test_a_sibling_that_is_lost_takes_its_partner_with_it(boxes):
    turns = []

    def job(box):
        other = box.sibling()
        turns.append((box.number, other.number))
        if len(turns) == 1:
            raise SandboxLost("one of them")
        return True

    with pool_of() as pool:
        assert pool.run(job)
        assert turns == [(0, 1), (2, 3)]
        assert [box.closed for box in boxes()] == [True, True, False, False]


def test_a_lease_gives_back_after_an_error_of_the_block(boxes):
    def fail(error):
        with pool.lease() as box:
            box.use()
            raise error

    with pool_of() as pool:
        with pytest.raises(KeyError):
            fail(KeyError())
        assert pool.run(FakeBox.use) == 0
        with pytest.raises(SandboxLost):
            fail(SandboxLost("gone"))
        assert pool.run(FakeBox.use) == 1


def test_a_sandbox_that_comes_back_to_a_closed_pool_is_closed(boxes):
    pool = pool_of()
    with pool.lease():
        pool.close()
        assert not boxes()[0].closed
    assert boxes()[0].closed


def test_settings_travel_as_plain_data(boxes):
    settings = SandboxSettings(SandboxSpec("fake", {"a": 1}), retries=4, patience_s=2.5)
    with SandboxPool.of(settings.to_json()) as pool:
        assert pool.settings == settings
        assert pool.num_opened == 1
    with pytest.raises(ValueError, match="at least 1"):
        SandboxPool(settings, size=0)


def test_programs_in_a_real_pool_see_nothing_of_each_other():
    settings = SandboxSettings(SandboxSpec("local_process", {"trusted": True}))

    def job(box):
        box.write_file("a.py", b"import os; print(sorted(os.listdir())); open('left', 'w')")
        return box.exec(["python3", "a.py"]).stdout

    with SandboxPool(settings, size=2) as pool, ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda _: pool.run(job), range(12))) == {b"['a.py']\n"}
        assert pool.num_opened <= 2


class Engine:
    """A Docker engine of the test's own, which can be killed without harm to anybody else's."""

    def __init__(self, folder):
        self.folder = folder
        self.socket = f"unix://{folder}/docker.sock"
        self.process = None

    def start(self):
        arguments = {"data-root": "data", "exec-root": "exec", "pidfile": "docker.pid"}
        command = ["dockerd", "-H", self.socket, "--bridge=none", "--iptables=false"]
        command += [f"--{name}={self.folder / place}" for name, place in arguments.items()]
        for pid_file in ("docker.pid", "exec/containerd/containerd.pid"):
            (self.folder / pid_file).unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        ends = time.monotonic() + READY_S
        while True:
            try:
                with container.engine(self.socket, timeout_s=5) as api:
                    api.ping()
                    return
            except (SandboxLost, SandboxUnavailable):
                assert time.monotonic() < ends, (self.folder / "log").read_text()[-2000:]
                assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
                time.sleep(0.2)

    def kill(self):
        containerd = int((self.folder / "exec/containerd/containerd.pid").read_text())
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.kill(containerd, signal.SIGKILL)

    def stop(self):
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)


@pytest.fixture
def own_engine():
    if not shutil.which("dockerd") or os.geteuid() != 0:
        if os.environ.get("VERIGRAD_REQUIRE_ALL") == "1":
            pytest.fail("dockerd and root are needed to start an engine that may be killed")
        # a laptop's engine must not be killed, and starting another takes root; CI has both
        pytest.skip("starting a Docker engine of one's own takes dockerd and root")
    folder = Path(tempfile.mkdtemp(prefix="vg-engine-"))
    engine = Engine(folder)
    engine.start()
    try:
        with container.engine(timeout_s=600) as usual, container.engine(engine.socket, timeout_s=600) as own:
            own.load_image(usual.get_image(image_name()))
        yield engine
    finally:
        engine.stop()
        subprocess.run(["rm", "-rf", str(folder)])


@pytest.mark.docker
@pytest.mark.slow
def test_an_engine_killed_amid_a_thousand_verdicts_loses_and_falsifies_none(own_engine):
    """Every other program is right, and every verdict must say so, whatever happens to the engine."""
    settings = SandboxSettings(SandboxSpec("container", {"docker_host": own_engine.socket}), patience_s=60)
    done, halfway = itertools.count(1), threading.Event()

    def verdict(number):
        expected = str(number * number)
        program = f"print(int(input()) ** 2 + {number % 2})"

        def job(box):
            box.write_file("program.py", program.encode())
            result = box.exec(["python3", "program.py"], stdin=str(number).encode())
            return result.ok and result.stdout.decode().strip() == expected

        answer = pool.run(job)
        if next(done) == NUM_VERDICTS // 3:
            halfway.set()
        return answer

    with SandboxPool(settings, size=2) as pool, ThreadPoolExecutor(2) as threads:
        verdicts = [threads.submit(verdict, number) for number in range(NUM_VERDICTS)]
        try:
            assert halfway.wait(300)
            own_engine.kill()
            time.sleep(1)
            own_engine.start()
            found = [one.result() for one in verdicts]
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
        lost = pool.num_lost
    assert found == [number % 2 == 0 for number in range(NUM_VERDICTS)]
    assert lost >= 1, "the engine's death was not noticed: nothing was shown"
