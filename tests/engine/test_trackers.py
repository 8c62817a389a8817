"""Each tracker holds what metrics.jsonl and eval.jsonl hold, each row once, whatever happened meanwhile."""

import importlib.util
import json
import math
import multiprocessing
import os
import struct
import sys
import time

import pytest

from tests.tiny import config, write_recipe
from verigrad.engine import trackers
from verigrad.engine.config import ConfigError, load
from verigrad.engine.run import Run, read_jsonl
from verigrad.engine.schema import Evaluation
from verigrad.engine.trackers import Held, TrackerError, Trackers, numbers
from verigrad.verifiers.pool_stats import CLOCKED

ALL = ["tensorboard", "wandb", "trackio"]
NO_ACCOUNTS = {"WANDB_MODE": "offline"}
LEAVE_OUT = ("WANDB_API_KEY", "TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class Started:
    """`verigrad ARGUMENTS` forked from a process that has imported torch, without anybody's accounts."""

    def __init__(self, *arguments, folder):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["verigrad.engine.train", "matplotlib.pyplot"])
        self.printed = folder / f"printed-{time.monotonic_ns()}.txt"
        self.process = context.Process(target=_started, args=(arguments, str(folder), str(self.printed)))
        self.process.start()

    def wait(self):
        self.process.join(120)
        return self.process.exitcode, self.printed.read_text()

    def kill_when(self, ready):
        while self.process.is_alive() and not ready():
            time.sleep(0.001)
        alive = self.process.is_alive()
        self.process.kill()
        self.process.join()
        return alive


def _started(words, folder, printed):
    os.environ.update(NO_ACCOUNTS, HOME=folder + "/home")
    for name in LEAVE_OUT:
        os.environ.pop(name, None)
    os.chdir(folder)
    handle = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    from verigrad.engine import cli

    cli.main(list(words))


# -- reading back what each library wrote ----------------------------------------------------------------


def in_tensorboard(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return sorted(
        (event.step, tag, pytest.approx(event.value, rel=1e-6))  # float32
        for tag in reader.Tags()["scalars"]
        for event in reader.Scalars(tag)
    )


def in_wandb(run):
    folders = list(run.glob("wandb/offline-run-*"))
    assert len(folders) == 1  # one folder to sync, whatever was killed before
    found = []
    for record in wandb_records(next(folders[0].glob("*.wandb"))):
        if record.WhichOneof("record_type") == "history":
            row = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            step = row["eval/step"] if "eval/step" in row else row["step"]
            ours = {key: value for key, value in row.items() if not key.startswith("_")}
            found += [(step, key, value) for key, value in ours.items() if key not in ("step", "eval/step")]
    return sorted(found)


def wandb_records(path):
    """A .wandb file is a log of LevelDB: blocks of 32 KiB, of pieces with checksum, length and place."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, place = struct.unpack("<IHB", data[at : at + 7])
        if place == 0:
            return
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if place in (1, 4):  # whole, or its last piece
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def in_trackio(run, project="verigrad"):
    import sqlite3

    rows = sqlite3.connect(run / "trackio" / f"{project}.db").execute("SELECT step, metrics FROM metrics")
    return sorted((step, key, value) for step, text in rows for key, value in json.loads(text).items())


def recorded(run):
    """What all of them should hold."""
    rows = [(row["step"], numbers(row)) for row in read_jsonl(run / "metrics.jsonl")]
    for row in read_jsonl(run / "eval.jsonl"):
        rows.append((row["step"], numbers(row, prefix=f"eval/{row['data']}/")))
    return sorted((step, key, value) for step, row in rows for key, value in row.items())


def without_times(rows):
    """A step done again after a kill took another time; which of the two a tracker shows is its affair."""
    clocked = tuple(f"verify/{name}" for name in CLOCKED)
    return [
        row
        for row in rows
        if not row[1].startswith(("seconds/", "tokens_per_s")) and not row[1].endswith(clocked)
    ]


def assert_all_hold(run):
    truth = without_times(recorded(run))
    assert {step for step, *_ in truth} == set(range(6))
    for read in (in_tensorboard, in_wandb, in_trackio):
        assert without_times(read(run)) == truth, read.__name__


# -- whole runs --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    write_recipe(tmp_path)
    return tmp_path


def test_all_three_hold_every_row_and_write_nothing_elsewhere(folder):
    status, printed = Started("train", "tiny.toml", f"run.trackers={ALL}", folder=folder).wait()
    assert status == 0, printed
    assert_all_hold(folder / "run")
    truth = recorded(folder / "run")
    assert in_wandb(folder / "run") == truth
    assert "eval/held_out/pass@2" in {name for _, name, _ in truth}
    assert len(truth) > 100
    assert not [p for p in (folder / "home").rglob("*") if p.is_file()]
    assert "wandb: offline" in printed
    assert "Trackio" not in printed


def test_killed_and_resumed_each_row_is_there_once(folder):
    ask = ("train", "tiny.toml", f"run.trackers={ALL}")
    metrics = folder / "run" / "metrics.jsonl"
    for num_rows in (1, 3):
        killed = Started(*ask, folder=folder)
        assert killed.kill_when(lambda n=num_rows: len(read_jsonl(metrics)) >= n)
    status, printed = Started(*ask, folder=folder).wait()
    assert status == 0, printed
    assert_all_hold(folder / "run")


def test_trackers_named_only_on_resume_are_given_what_was_before(folder):
    metrics = folder / "run" / "metrics.jsonl"
    assert Started("train", "tiny.toml", folder=folder).kill_when(lambda: len(read_jsonl(metrics)) >= 3)
    status, printed = Started("train", "tiny.toml", f"run.trackers={ALL}", folder=folder).wait()
    assert status == 0, printed
    assert "resuming after step 2" in printed
    assert_all_hold(folder / "run")


# -- what goes wrong ---------------------------------------------------------------------------------------


class Memory:
    """A tracker that keeps its rows here."""

    def __init__(self, *, held=Held(), fails_at=None, fails_to_close=False):  # noqa: B008
        self.held, self.fails_at, self.fails_to_close = held, fails_at, fails_to_close
        self.rows, self.closed = [], None

    def start(self, cfg, folder, name, *, first_step):
        self.name, self.first_step = name, first_step
        return self.held

    def log(self, step, metrics, *, is_eval):
        if step == self.fails_at:
            raise ConnectionError("the service hung up\nand a traceback")
        self.rows.append((step, is_eval, dict(metrics)))

    def close(self, *, failed):
        if self.fails_to_close:
            raise OSError("gone")
        self.closed = failed


def settings(folder, *names):
    return config(run={"folder": str(folder), "trackers": list(names)})


@pytest.fixture
def given(monkeypatch):
    """Put these in the place of real trackers, by name."""

    def give(**places):
        for name, tracker in places.items():
            monkeypatch.setitem(trackers.TRACKERS, name, lambda tracker=tracker: tracker)

    return give


def test_one_that_fails_is_noted_and_dropped_and_the_others_go_on(tmp_path, given):
    bad, good = Memory(fails_at=2), Memory()
    given(wandb=bad, trackio=good)
    with Run(settings(tmp_path / "run", "wandb", "trackio")) as run:
        for step in (1, 2, 3):
            run.log_step(step, {"reward": 0.25 * step, "loss": math.nan})
        assert run.take_notes() == [
            "wandb failed at step 2 (ConnectionError: the service hung up) and gets nothing more; "
            "metrics.jsonl has all of it, and the next start of this run tries again"
        ]
    assert [step for step, *_ in bad.rows] == [1]
    assert [(step, row["reward"]) for step, _, row in good.rows] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert "loss" not in good.rows[0][2]
    assert (bad.closed, good.closed) == (None, False)
    assert len(read_jsonl(tmp_path / "run" / "metrics.jsonl")) == 3


def test_one_that_cannot_be_closed_does_not_hide_the_end(tmp_path, given):
    given(wandb=Memory(fails_to_close=True))
    with pytest.raises(ZeroDivisionError), Run(settings(tmp_path / "run", "wandb")) as run:
        raise ZeroDivisionError
    assert "wandb could not be closed (OSError: gone)" in run.take_notes()[-1]
    with Run(settings(tmp_path / "run", "wandb")):
        pass  # the folder was let go


def test_a_run_that_fails_is_marked_failed(tmp_path, given):
    tracker = Memory()
    given(wandb=tracker)
    with pytest.raises(ZeroDivisionError), Run(settings(tmp_path / "run", "wandb")):
        raise ZeroDivisionError
    assert tracker.closed is True


def test_rows_that_a_tracker_holds_are_not_sent_again(tmp_path, given):
    rows = [{"step": step, "reward": 0.5} for step in (1, 2, 3, 4)]
    evals = [{"step": step, "data": "d", "avg": 0.5} for step in (0, 2, 4)]
    tracker = Memory(held=Held(metrics=2, evals=0))
    given(wandb=tracker)
    hub = Trackers(
        settings(tmp_path, "wandb"), tmp_path, first_step=5, metrics=rows, evals=evals, note=pytest.fail
    )
    hub.log_step({"step": 5, "reward": 1.0})
    assert [(step, is_eval) for step, is_eval, _ in tracker.rows] == [
        (3, False), (4, False), (2, True), (4, True), (5, False),
    ]  # fmt: skip
    assert tracker.first_step == 5
    assert tracker.name == tmp_path.name


def test_one_that_does_not_start_ends_the_run_in_one_line_and_lets_the_folder_go(tmp_path, monkeypatch):
    class Refuses(Memory):
        def start(self, cfg, folder, name, *, first_step):
            raise RuntimeError("no permission for this project")

    first = Memory()
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", lambda: first)
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Refuses)
    with pytest.raises(
        TrackerError, match=r"wandb did not start \(RuntimeError: no permission .*take it out"
    ):
        Run(settings(tmp_path / "run", "tensorboard", "wandb"))
    assert first.closed is True
    with Run(settings(tmp_path / "run")):
        pass


def test_a_package_that_is_missing_is_said_before_anything_is_made(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else find_spec(name)
    )
    with pytest.raises(ConfigError, match=r"asks for wandb, .* `pip install verigrad\[trackers\]`"):
        Run(settings(tmp_path / "run", "tensorboard", "wandb"))
    assert not (tmp_path / "run").exists()


def test_without_trackers_none_of_the_libraries_is_imported(tmp_path):
    before = set(sys.modules)
    with Run(settings(tmp_path / "run")) as run:
        run.log_step(1, {"reward": 1.0})
    assert not {"wandb", "trackio", "torch.utils.tensorboard"} & (set(sys.modules) - before)


# -- rows and settings -------------------------------------------------------------------------------------


def test_only_finite_numbers_are_sent_and_tables_become_names():
    row = {
        "step": 3, "data": "gsm", "avg": 0.5, "avg_low": math.nan, "avg_high": None, "num_problems": 4,
        "pass_at": {"1": 0.25, "8": 0.75, "16": math.inf}, "maj_at": {"8": 1}, "by": {"easy": {"avg": 1.0}},
    }  # fmt: skip
    assert numbers(row, prefix="eval/gsm/") == {
        "eval/gsm/avg": 0.5, "eval/gsm/num_problems": 4.0, "eval/gsm/pass@1": 0.25, "eval/gsm/pass@8": 0.75,
        "eval/gsm/maj@8": 1.0, "eval/gsm/by/easy/avg": 1.0,
    }  # fmt: skip
    assert numbers({"step": 1, "reward": 1, "seconds/total": 2.5, "why": "text"}) == {
        "reward": 1.0,
        "seconds/total": 2.5,
    }


def test_an_evaluation_without_a_score_is_a_gap(tmp_path, given):
    tracker = Memory()
    given(wandb=tracker)
    with Run(settings(tmp_path / "run", "wandb")) as run:
        run.log_eval(Evaluation({"step": 0, "data": "d", "avg": math.nan, "num_problems": 0}, []))
    assert tracker.rows == [(0, True, {"eval/d/num_problems": 0.0})]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.trackers=wandb", r"""run\.trackers = 'wandb': expected a list, as in \["wandb"\]"""),
        ('run.trackers=["wandb","wandb"]', "names a tracker twice"),
        ('run.trackers=["mlflow"]', "input should be 'tensorboard', 'wandb' or 'trackio'"),
        ("run.project=mine", "has no effect without 'wandb' or 'trackio'"),
        ("run.project=", "at least 1 character"),
    ],
)
def test_settings_that_cannot_be_are_told(folder, monkeypatch, override, message):
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match=message):
        load("tiny.toml", [override])


def test_a_project_name_that_no_service_takes_is_told_before_it_is_asked(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for name in ("a/b", "50%", "x" * 129):
        with pytest.raises(ConfigError, match=r"run\.project"):
            load("tiny.toml", ['run.trackers=["wandb"]', f"run.project={name!r}"])
    assert load("tiny.toml", ['run.trackers=["wandb"]', "run.project='my runs'"]).run.project == "my runs"
