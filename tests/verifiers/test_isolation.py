"""What the worker pool promises, each promise attacked: hangs, bombs, kills, dead parents."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from verigrad.sandboxes.base import SandboxSpec
from verigrad.sandboxes.pool import SandboxSettings
from verigrad.verifiers.base import Attempt, Problem
from verigrad.verifiers.isolation import VerifierPool

HOSTILE = '''
import asyncio, os, signal, sys, time
from verigrad.verifiers.base import Verdict, verifier

LEAKED = []

@verifier("moody", deadline_s=1.0, canary={"response": "fine", "answer": None})
def moody(text, text_length=0):
    """Does what the text says."""
    if text == "hang":
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(one, signal.SIG_IGN)
        while True:
            pass
    if text == "bomb":
        return len(bytearray(8 * 2**30))
    if text == "raise":
        raise KeyError("a bug of mine")
    if text == "exit":
        os._exit(3)
    if text == "sysexit":
        sys.exit(0)
    if text == "slow":
        time.sleep(0.7)
    if text == "print":
        print('{"verdicts": [{"reward": 1.0, "outcome": "right"}]}', flush=True)
        os.write(1, b"garbage\\n")
        return False
    if text == "nan":
        return float("nan")
    if text == "string":
        return "1.0"
    if text == "answers":
        return Verdict(0.0, "wrong", extracted="1/2 \\u00e9")
    if text == "answers_nothing_readable":
        return Verdict(0.0, "wrong", extracted=5)
    if text == "undecided":
        return None
    if text == "fork":
        if os.fork() == 0:
            return False
        time.sleep(0.3)
    if text == "orphan":
        if os.fork() == 0:
            time.sleep(600)
        os._exit(3)
    if text == "leak":
        LEAKED.append(bytearray(300 * 2**20))
    if text.startswith("child "):
        child = os.fork()
        if child:
            open(text.split(" ", 1)[1], "w").write(str(child))
        time.sleep(600)
    if text.startswith("mark "):
        path = text.split(" ", 1)[1]
        if os.path.exists(path):
            return True
        open(path, "w").write(str(os.getpid()))
        time.sleep(600)
    if text == "pid":
        return Verdict.right(str(os.getpid()))
    return True

@verifier("broken", deadline_s=0.5)
def broken(text):
    """Hangs on everything."""
    time.sleep(600)

@verifier("broken_canary", deadline_s=0.5, canary={"response": "known", "answer": None})
def broken_canary(text):
    """Hangs, and calls a known good case wrong."""
    if text != "known":
        time.sleep(600)
    return False

@verifier("quitter", runs="inline")
def quitter(text):
    """Ends its thread."""
    sys.exit(3)

@verifier("thoughtful", deadline_s=2.0)
async def thoughtful(text, answer):
    """Awaited."""
    await asyncio.sleep(0.01)
    return text == answer

@verifier("ranked", deadline_s=2.0)
def ranked(texts, answers, indices):
    """The longest of the group is right."""
    assert indices == list(range(len(texts))) and len(answers) == len(texts)
    return [len(text) == max(map(len, texts)) for text in texts]

@verifier("long", deadline_s=2.0)
def long(response):
    """Says how much it saw."""
    return Verdict(0.5, "partial", parts={"length": float(len(response))}, reason=response[-10:])
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugin") / "hostile.py"
    path.write_text(HOSTILE)
    return path


@pytest.fixture(scope="module")
def moody(plugin):
    with VerifierPool(f"{plugin}:moody", num_workers=2, memory_mb=1024) as pool:
        yield pool


@pytest.fixture(scope="module")
def maths():
    with VerifierPool("math_answer", num_workers=2) as pool:
        yield pool


def judge(pool, *texts, answer=None):
    problem = Problem("p1", "?", answer)
    return pool.submit(problem, [Attempt(text) for text in texts]).result(60)


def test_verdicts_keep_the_order_of_the_attempts(moody):
    verdicts = judge(moody, "slow", "fine", "raise", "fine", "undecided")
    assert [verdict.reward for verdict in verdicts] == [1.0, 1.0, None, 1.0, None]
    assert verdicts[0].seconds >= 0.7


def test_submit_does_not_wait(moody):
    started = time.monotonic()
    future = moody.submit(Problem("p", "?"), [Attempt("slow")])
    assert time.monotonic() - started < 0.5
    assert not future.done()
    assert future.result(60)[0].reward == 1.0


def test_a_hang_that_ignores_signals_costs_its_own_reward_only(moody):
    before = moody.stats()["num_respawned"]
    hung, *rest = judge(moody, "hang", *["fine"] * 20)
    assert (hung.outcome, hung.reward) == ("timeout", 0.0)
    assert hung.seconds >= 1.0
    assert {verdict.outcome for verdict in rest} == {"right"}
    assert moody.stats()["num_respawned"] == before + 2  # once more before it is blamed
    assert moody.stats()["slowest"][0] >= 1.0
    assert "hang" in moody.stats()["slowest"][1]


def test_a_memory_bomb_is_the_attempts_own_fault(moody):
    bomb, fine = judge(moody, "bomb", "fine")
    assert (bomb.outcome, bomb.reward) == ("timeout", 0.0)
    assert "memory" in bomb.reason
    assert fine.outcome == "right"


def test_memory_that_others_filled_is_not_the_attempts_fault(plugin):
    with VerifierPool(f"{plugin}:moody", num_workers=1, memory_mb=1024) as pool:
        verdicts = judge(pool, *["leak"] * 8)
    assert {verdict.outcome for verdict in verdicts} == {"right"}


def test_a_forked_child_neither_answers_nor_takes_checks(plugin):
    with VerifierPool(f"{plugin}:moody", num_workers=1) as pool:
        verdicts = judge(pool, "fork", "undecided", "fork", "undecided", "fine")
    assert [verdict.reward for verdict in verdicts] == [1.0, None, 1.0, None, 1.0]


def test_a_dead_worker_whose_child_holds_the_pipe_is_not_a_late_one(plugin):
    with VerifierPool(f"{plugin}:moody", num_workers=1) as pool:
        orphan, fine = judge(pool, "orphan", "fine")
    assert (orphan.outcome, orphan.reward) == ("error", None)
    assert fine.outcome == "right"


def test_an_inline_verifier_that_exits_leaves_nobody_waiting(plugin):
    with VerifierPool(f"{plugin}:quitter") as pool:
        verdicts = judge(pool, "one", "two")
    assert {verdict.outcome for verdict in verdicts} == {"error"}
    assert "SystemExit" in verdicts[0].reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [("raise", "KeyError: 'a bug of mine'"), ("nan", "nan"), ("string", "'1.0'"), ("sysexit", "SystemExit")],
)
def test_a_verifier_that_fails_decides_nothing(moody, text, reason):
    (verdict,) = judge(moody, text)
    assert (verdict.outcome, verdict.reward) == ("error", None)
    assert reason in verdict.reason
    assert "\n" not in verdict.reason
    assert "Traceback" in moody.stats()["last_traceback"]


def test_the_answer_as_read_comes_back_from_the_worker(moody):
    read, silent, broken = judge(moody, "answers", "fine", "answers_nothing_readable")
    assert (read.extracted, silent.extracted) == ("1/2 \u00e9", "")
    assert broken.outcome == "error"
    assert "extracted = 5" in broken.reason


def test_a_worker_that_leaves_by_itself_decides_nothing(moody):
    (verdict,) = judge(moody, "exit")
    assert (verdict.outcome, verdict.reward) == ("error", None)


def test_a_verifier_that_prints_cannot_forge_a_verdict(moody):
    printed, fine = judge(moody, "print", "fine")
    assert printed.outcome == "wrong"
    assert fine.outcome == "right"


def test_a_worker_killed_from_outside_is_tried_again(moody, tmp_path):
    mark = tmp_path / "pid"
    future = moody.submit(Problem("p", "?"), [Attempt(f"mark {mark}")])
    pid = wait_for(lambda: mark.exists() and mark.read_text())
    os.kill(int(pid), signal.SIGKILL)
    assert future.result(60)[0].outcome == "right"


def test_a_workers_children_die_with_it(moody, tmp_path):
    (verdict,) = judge(moody, f"child {tmp_path / 'pid'}")
    assert verdict.outcome == "timeout"
    child = int((tmp_path / "pid").read_text())
    wait_for(lambda: not running(child))


def test_workers_import_no_torch_and_are_no_copy_of_the_parent(moody):
    (verdict,) = judge(moody, "pid")
    assert "torch" not in Path(f"/proc/{verdict.reason}/maps").read_text()


@pytest.mark.parametrize("name", ["broken", "broken_canary"])
def test_a_broken_checker_is_undecided_and_not_zero(plugin, name):
    with VerifierPool(f"{plugin}:{name}", num_workers=1) as pool:
        (verdict,) = judge(pool, "anything")
        assert (verdict.outcome, verdict.reward) == ("error", None)
        assert pool.stats()["num_error"] == 1
        assert pool.stats()["num_timeout"] == 0


CANARIES = '''
import os, pathlib, time
from verigrad.verifiers.base import verifier

HERE = pathlib.Path(__file__).parent

def noted(what):
    with open(HERE / "asked", "a") as file:
        file.write(f"{os.getpid()} {what}\\n")

@verifier("watched", deadline_s=1.0, canary={"response": "known", "answer": None})
def watched(text):
    """Notes what each worker was asked; dies or hangs when told to; the known case can be broken."""
    noted(text)
    if text == "known":
        return not (HERE / "broken").exists()
    once = HERE / f"did {text}"
    if text in ("hang once", "die once") and not once.exists():
        once.touch()
        os._exit(3) if text == "die once" else time.sleep(60)
    if text == "hang":
        time.sleep(60)
    if text == "die":
        os._exit(3)
    return True
'''


@pytest.fixture
def watched(tmp_path):
    (tmp_path / "own.py").write_text(CANARIES)

    def asked():
        lines = [line.split(" ", 1) for line in (tmp_path / "asked").read_text().splitlines()]
        by_worker = {}
        for pid, what in lines:
            by_worker.setdefault(pid, []).append(what)
        return list(by_worker.values())

    with VerifierPool(f"{tmp_path}/own.py:watched", num_workers=1) as pool:
        yield pool, asked, tmp_path / "broken"


@pytest.mark.parametrize("text", ["hang once", "die once"])
def test_the_retry_is_judged_by_a_worker_that_knew_the_known_case(watched, text):
    pool, asked, _ = watched
    assert judge(pool, text, "fine")[0].outcome == "right"
    assert asked() == [[text], ["known", text, "fine"]]


@pytest.mark.parametrize(("text", "outcome"), [("hang", "timeout"), ("die", "error")])
def test_after_every_killed_worker_a_known_case_comes_first(watched, text, outcome):
    pool, asked, _ = watched
    assert [verdict.outcome for verdict in judge(pool, text, "fine")] == [outcome, "right"]
    assert asked() == [[text], ["known", text], ["known", "fine"]]


@pytest.mark.parametrize("text", ["hang once", "die once", "hang", "die"])
def test_a_known_case_that_fails_leaves_all_undecided_until_it_passes_again(watched, text):
    pool, asked, broken = watched
    broken.touch()
    verdicts = judge(pool, text, "fine", "fine")
    assert [verdict.reward for verdict in verdicts] == [None, None, None]
    assert "a known case fails too: the verifier is broken" in verdicts[0].reason
    assert "the worker before was killed or died" in verdicts[1].reason
    assert not any("fine" in words for words in asked())  # nothing is asked of a worker that fails it
    broken.unlink()
    assert judge(pool, "fine")[0].outcome == "right"


def test_async_verifiers_are_awaited(plugin):
    with VerifierPool(f"{plugin}:thoughtful", num_workers=1) as pool:
        assert [v.reward for v in judge(pool, "a", "b", answer="a")] == [1.0, 0.0]


def test_a_group_verifier_sees_its_siblings(plugin):
    with VerifierPool(f"{plugin}:ranked", num_workers=1) as pool:
        assert [v.reward for v in judge(pool, "a", "aaa", "aa")] == [0.0, 1.0, 0.0]
        assert judge(pool) == []


def test_long_texts_lose_their_beginning(plugin):
    with VerifierPool(f"{plugin}:long", num_workers=1) as pool:
        (verdict,) = judge(pool, "x" * 1_000_000 + "the answer")
        assert verdict.parts == {"length": 50_000.0}
        assert verdict.reason == "the answer"


def test_a_thought_cut_in_its_middle_stays_a_thought(maths):
    thinking = r"<think>" + "well " * 20_000 + r"\boxed{5}"
    (verdict,) = judge(maths, thinking, answer="5")
    assert verdict.outcome == "unparseable"
    (verdict,) = judge(maths, thinking + r"</think>\boxed{5}", answer="5")
    assert verdict.outcome == "right"


def test_an_answer_that_is_no_json_is_refused_at_once(maths):
    with pytest.raises(ValueError, match=r"problem 'p7' cannot be written as JSON"):
        maths.submit(Problem("p7", "?", {1, 2}), [Attempt("5")])


def test_hostile_answers_get_verdicts_and_the_next_thousand_are_judged_right(maths, tmp_path):
    mark = tmp_path / "X"
    boxes = [
        "9**9**9",
        "9^{9^{9}}",
        "(99999999)!",
        r"\binom{10^9}{5\cdot10^8}",
        "{" * 500_000,
        "}" * 500_000,
        f"__import__('os').system('touch {mark}')",
        "(" * 2000 + "1" + ")" * 2000,
        r"\sum_{k=1}^{10^9} \frac{1}{k}",
        r"\int_0^1 x^{x^{x^{x}}} dx",
        "x" * 3000,
        r"\sqrt{" * 300 + "2" + "}" * 300,
    ]
    verdicts = judge(maths, *(rf"\boxed{{{box}}}" for box in boxes), answer="5")
    assert {verdict.reward for verdict in verdicts} <= {0.0}, verdicts
    assert max(verdict.seconds for verdict in verdicts) < 2.0 + 15
    assert not mark.exists()
    futures = [
        maths.submit(
            Problem(str(n), "?", str(n)), [Attempt(rf"\boxed{{{n}}}"), Attempt(rf"\boxed{{{n + 1}}}")]
        )
        for n in range(500)
    ]
    for future in futures:
        assert [verdict.reward for verdict in future.result(60)] == [1.0, 0.0]
    assert maths.stats()["num_error"] == 0


def test_close_kills_what_hangs_and_leaks_nothing(plugin):
    pool = VerifierPool(f"{plugin}:moody", num_workers=2, deadline_s=300)
    future = pool.submit(Problem("p", "?"), [Attempt("hang") for _ in range(5)])
    pids = wait_for(lambda: len(pool.worker_pids()) == 2 and pool.worker_pids())
    started = time.monotonic()
    pool.close()
    assert time.monotonic() - started < 20
    assert future.cancelled() or future.exception() is not None
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(Problem("p", "?"), [Attempt("fine")])
    pool.close()


def test_workers_die_with_a_parent_that_is_killed(plugin):
    code = textwrap.dedent(f"""
        import time
        from verigrad.verifiers.base import Attempt, Problem
        from verigrad.verifiers.isolation import VerifierPool
        pool = VerifierPool({f"{plugin}:moody"!r}, num_workers=2, deadline_s=300)
        pool.submit(Problem("p", "?"), [Attempt("hang")] * 2)
        while len(pool.worker_pids()) < 2:
            time.sleep(0.05)
        time.sleep(0.5)
        print(*pool.worker_pids(), flush=True)
        time.sleep(600)
    """)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(psutil.pid_exists(pid) for pid in pids)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_for(lambda: not any(running(pid) for pid in pids))


def test_a_script_that_forgets_to_close_still_ends(plugin):
    code = textwrap.dedent(f"""
        from verigrad.verifiers.base import Attempt, Problem
        from verigrad.verifiers.isolation import VerifierPool
        pool = VerifierPool({f"{plugin}:moody"!r}, num_workers=1)
        print(pool.submit(Problem("p", "?"), [Attempt("fine")]).result(60)[0].reward)
    """)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "1.0"


def test_a_worker_that_cannot_start_is_undecided(tmp_path, monkeypatch):
    monkeypatch.setenv("PARENT_OF_WORKERS", str(os.getpid()))
    path = tmp_path / "no_start.py"
    path.write_text(
        "import os\nif os.getppid() == int(os.environ['PARENT_OF_WORKERS']): raise OSError('no licence')\n"
        "def verify(text):\n    return True\n"
    )
    with VerifierPool(f"{path}:verify", num_workers=1) as pool:
        (verdict,) = judge(pool, "fine")
        assert (verdict.outcome, verdict.reward) == ("error", None)
        assert "no licence" in pool.stats()["last_traceback"]


def running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition, seconds=30):
    ends = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.05)
    return found


LOOKS = '''
from verigrad.verifiers.base import verifier

@verifier("looks", runs="sandbox")
def looks(text, sandbox):
    """Right if the program left its file."""
    sandbox.exec(["python3", "-c", text])
    return sandbox.read_file("made.txt") == b"yes"
'''


@pytest.mark.parametrize(
    ("program", "want"),
    [
        ("open('made.txt', 'w').write('yes')", ("right", 1.0)),
        ("pass", ("wrong", 0.0)),
        ("import os; os.symlink('/etc/passwd', 'made.txt')", ("wrong", 0.0)),
        ("import os; os.mkdir('made.txt')", ("wrong", 0.0)),
        ("open('made.txt', 'w').truncate(2 << 20)", ("wrong", 0.0)),
    ],
)
def test_what_a_program_left_cannot_leave_its_verdict_undecided(tmp_path, program, want):
    (tmp_path / "looks.py").write_text(LOOKS)
    own = SandboxSettings(SandboxSpec("local_process", {"trusted": True}))
    with VerifierPool(f"{tmp_path / 'looks.py'}:looks", num_workers=1, sandbox=own) as pool:
        (verdict,) = judge(pool, program)
    assert (verdict.outcome, verdict.reward) == want, verdict
