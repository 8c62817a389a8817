"""Groups sampled ahead: how stale they may be, in which order they are trained on, and that none is lost."""

import contextlib
import random
from collections import Counter
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.tiny import config
from verigrad.engine.config import ConfigError
from verigrad.engine.data import ProblemStream
from verigrad.engine.dynamic_sampling import has_signal, keep_all
from verigrad.engine.flow import Flow
from verigrad.engine.rollout import Sampler, SamplerError, TokenOutput
from verigrad.engine.schema import VerifiedGroup, staleness
from verigrad.engine.scoring import Pending
from verigrad.verifiers.base import Problem, Verdict

PROBLEMS = [Problem(f"p{number}", str(number), "1") for number in range(2000)]


class Codec:
    def token_ids(self, problem):
        return [3, 4]

    def text_of(self, ids):
        return f"{len(ids)} {ids[-1]}"


class ScriptedEngine:
    """Each step, some of what is under way gets a token of the version that there is now."""

    in_batches = False

    def __init__(self, draw):
        self.draw, self.version, self.under_way, self.begun_at = draw, -1, {}, {}

    @contextlib.contextmanager
    def stream(self, *, lasting=False):
        assert lasting
        yield self

    @property
    def busy(self):
        return bool(self.under_way)

    def add(self, index, request, params):
        assert index not in self.under_way
        self.under_way[index] = []
        self.begun_at[index] = self.version

    def step(self):
        done = []
        for index, versions in list(self.under_way.items()):
            if self.draw.random() < 0.6:
                versions.append(self.version)
                if self.draw.random() < 0.3:
                    del self.under_way[index]
                    n = len(versions)
                    done.append(
                        TokenOutput(index, [self.draw.randint(5, 9)] * n, [-1.0] * n, "stop", versions)
                    )
        self.draw.shuffle(done)
        return done


class ScriptedScorer:
    """Verdicts that come when they come; `right` is the share of right ones."""

    def __init__(self, draw, right):
        self.draw, self.right, self.judged = draw, right, []

    def submit(self, arriving):
        made = []
        for position, group in arriving:
            verdicts = [
                Verdict.right() if self.draw.random() < self.right else Verdict.wrong()
                for _ in group.rollouts
            ]
            self.judged.append(group.problem.id)
            future = Future()
            future.set_result(verdicts)
            slow = SimpleNamespace(result=future.result, done=lambda: self.draw.random() < 0.4)
            made.append(Pending(position, group, slow))
        return made

    def wait(self, pending):
        return [
            VerifiedGroup(one.group.problem, one.group.rollouts, one.verdicts.result()) for one in pending
        ]

    def waited(self, seconds):
        assert seconds >= 0

    def too_undecided(self, groups):
        return False


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("verigrad.engine.flow.wait", lambda futures, timeout: None)


def made(draw, *, wanted, stale, right, dynamic, size=2):
    cfg = config(
        rollout={"groups_per_step": wanted, "group_size": size, "max_staleness": stale},
        dynamic_sampling={"enabled": dynamic, "oversample": 2.5},
    )
    sampler = Sampler(ScriptedEngine(draw), Codec())
    sampler.policy_version = 0
    problems = ProblemStream(PROBLEMS, seed=1, shuffle=True)
    keep = has_signal if dynamic else keep_all
    return Flow(sampler, ScriptedScorer(draw, right), problems, keep, cfg, data=PROBLEMS), sampler


@contextlib.contextmanager
def untimed(name):
    yield


def order():
    return [problem.id for problem in ProblemStream(PROBLEMS, seed=1, shuffle=True).next_batch(1500)]


@hypothesis_settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    wanted=st.integers(1, 5),
    stale=st.integers(1, 4),
    right=st.sampled_from([0.1, 0.5, 0.9]),
    dynamic=st.booleans(),
)
def test_every_token_is_young_enough_and_every_group_is_taken_once_in_order(
    seed, wanted, stale, right, dynamic
):
    draw = random.Random(seed)
    flow, sampler = made(draw, wanted=wanted, stale=stale, right=right, dynamic=dynamic)
    taken, batches = [], 0
    with flow.open():
        for version in range(8):
            groups, kept, metrics = flow.take(untimed)
            assert metrics["flow/overlap"] == 0
            assert len(kept) <= wanted
            assert len(kept) == wanted or len(groups) == flow.cap
            trained = [groups[place] for place in kept]
            ages = staleness(trained, now=version)
            assert 0 <= ages["staleness_mean"] <= ages["staleness_max"] <= stale
            assert kept == [n for n, group in enumerate(groups) if flow.keep(group)]
            taken += [group.problem.id for group in groups]
            batches += 1
            for _ in range(draw.randrange(4)):  # while this batch is trained on, the sampler goes on
                flow._advance(sampler.engine.step())
                assert len({drawn.number for drawn in flow.queue}) == len(flow.queue)
            sampler.policy_version = version + 1
    assert taken == order()[: len(taken)]
    under_way = [drawn.problem.id for drawn in flow.queue]
    assert taken + under_way == order()[: len(taken) + len(under_way)]  # none is lost, none drawn twice
    pending = sum(drawn.kept for drawn in flow.queue)
    assert pending <= wanted * (stale + 1)


def test_how_many_may_be_begun_worked_out_by_hand():
    draw = random.Random(0)
    flow, sampler = made(draw, wanted=4, stale=2, right=0.5, dynamic=False)
    assert flow.room() == 12  # batches 0, 1 and 2 may be begun with weights 0
    flow._stream = sampler.engine
    flow._refill()
    assert (len(flow.queue), flow.room()) == (12, 0)
    for _ in range(4):
        flow.queue.popleft()
    flow.next_batch = 1  # batch 0 is being trained on, by weights 0: batch 3 must wait for weights 1
    assert flow.room() == 0
    sampler.policy_version = 1
    assert flow.room() == 4
    flow.queue[5].kept = False  # known not to be trained on: those behind it move up
    assert flow.room() == 4  # without dynamic sampling a batch is four groups, kept or not


def test_nothing_is_begun_that_no_step_will_train_on():
    flow, sampler = made(random.Random(0), wanted=4, stale=3, right=0.5, dynamic=False)
    flow.num_batches = 2
    assert flow.room() == 8
    flow._stream = sampler.engine
    flow._refill()
    assert flow.room() == 0
    flow.queue.clear()
    flow.next_batch = 2  # the last is being trained on
    assert flow.room() == 0


def test_a_group_that_is_dropped_gives_its_place_to_another():
    flow, sampler = made(random.Random(0), wanted=4, stale=1, right=0.5, dynamic=True)
    flow._stream = sampler.engine
    flow._refill()
    assert (len(flow.queue), flow.room()) == (8, 0)
    flow.queue[3].kept = False
    assert flow.room() == 1
    for drawn in flow.queue:
        drawn.kept = False
    assert flow.room() == 6  # 2 more and the first batch has its 10, the most it looks at; 4 for the second
    flow._refill()
    assert (len(flow.queue), flow.room()) == (14, 0)
    for drawn in flow.queue:
        drawn.kept = False
    assert flow.room() == 4  # the first 10 are a batch, with nothing to train on; the second has 4 of its 10


def test_a_slow_group_at_the_front_is_waited_for():
    flow, sampler = made(random.Random(3), wanted=2, stale=1, right=0.5, dynamic=False)
    engine = sampler.engine
    with flow.open():
        flow._refill()
        held = {index: engine.under_way.pop(index) for index in (0, 1)}  # the first group's do not get on
        for _ in range(200):
            flow._advance(engine.step())
        assert all(drawn.verified is not None for drawn in list(flow.queue)[1:])
        assert flow._head() is None
        engine.under_way |= held
        groups, _, _ = flow.take(untimed)
    assert [group.problem.id for group in groups] == order()[:2]


def test_what_is_under_way_is_in_the_state_and_goes_on(tmp_path):
    flow, sampler = made(random.Random(5), wanted=3, stale=2, right=0.5, dynamic=True)
    with flow.open():
        first, _, _ = flow.take(untimed)
        sampler.policy_version = 1
        for _ in range(2):
            flow._advance(sampler.engine.step())
        torch.save({"flow": flow.state(), "problems": flow.problems.state()}, tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
    rows = state["flow"]["queue"]
    finished = [row for row in rows if row["rollouts"]]
    assert 0 < len(finished) < len(rows)
    assert any(row["verdicts"] for row in finished)

    again, sampler = made(random.Random(6), wanted=3, stale=2, right=0.5, dynamic=True)
    sampler.policy_version = 1
    again.problems.load_state(state["problems"])
    again.load_state(state["flow"])
    seeds = {row["number"]: [one["seed"] for one in row["rollouts"]] for row in finished}
    for drawn in again.queue:  # the same problems with the same seeds, finished or not
        assert [request.seed for request in drawn.requests] == seeds.get(
            drawn.number, [request.seed for request in drawn.requests]
        )
    unjudged = [row["problem"] for row in finished if not row["verdicts"]]
    assert again.scorer.judged == unjudged  # what has its verdict is not judged again
    taken = [group.problem.id for group in first]
    with again.open():
        for version in range(1, 6):
            groups, kept, _ = again.take(untimed)
            taken += [group.problem.id for group in groups]
            assert staleness([groups[place] for place in kept], now=version)["staleness_max"] <= 2
            sampler.policy_version = version + 1
    assert taken == order()[: len(taken)]
    assert max(Counter(taken).values()) == 1


def test_a_queue_of_other_data_is_refused():
    flow, _ = made(random.Random(5), wanted=2, stale=1, right=0.5, dynamic=False)
    with flow.open():
        flow.take(untimed)
        state = flow.state()
    again, _ = made(random.Random(5), wanted=2, stale=1, right=0.5, dynamic=False)
    again.data = PROBLEMS[:1]
    with pytest.raises(ConfigError, match="queue holds problem 'p"):
        again.load_state(state)


def test_a_sampler_that_fails_in_the_thread_fails_the_trainer():
    flow, sampler = made(random.Random(1), wanted=2, stale=1, right=0.5, dynamic=False)

    def broken():
        raise SamplerError("the sampler's process is no more")

    sampler.engine.step = broken
    flow._threaded = True
    flow._stream = sampler.engine
    flow._refill()
    flow._carry()
    with pytest.raises(SamplerError, match="no more"):
        flow.take(untimed)
