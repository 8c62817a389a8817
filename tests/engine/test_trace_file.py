"""engine/trace_file.py: what a trace holds, that it can be read, and that its phases nest."""

import json

import pytest

from tests.tiny import Forked, run_cli, write_recipe
from verigrad.engine import trace_file
from verigrad.engine.trace_file import GAPS, LOOP, Span, Tracer, gaps, recording, span


def written(tracer, folder):
    tracer.write(folder / "trace.json")
    return json.loads((folder / "trace.json").read_text())["traceEvents"]


def test_gaps_are_what_no_phase_of_a_step_covers():
    spans = [
        Span("total", LOOP, 0.0, 10.0),
        Span("rollout", LOOP, 1.0, 4.0),
        Span("load weights", LOOP, 2.0, 3.0),  # within a phase
        Span("train", LOOP, 4.0005, 8.0),
        Span("engine step", "sampling engine", 8.5, 9.0),  # another track covers nothing
        Span("save", LOOP, 11.0, 12.0),
    ]
    found = [(one.name, one.start, one.end) for one in gaps(spans)]
    assert found == [("after the step's start", 0.0, 1.0), ("after train", 8.0, 10.0)]


def test_without_a_trace_a_span_does_nothing():
    with span("x"):
        assert trace_file.active() is None
    assert trace_file.watcher("v") is None


def test_spans_are_kept_also_where_the_block_fails(tmp_path):
    with recording() as tracer:
        with pytest.raises(ZeroDivisionError), span("fails", LOOP, step=3):
            _ = 1 / 0
        trace_file.watcher("math")(1, tracer.started, tracer.started + 0.25, "sample 7")
    events = [event for event in written(tracer, tmp_path) if event["ph"] == "X"]
    assert {event["name"]: event["args"] for event in events} == {
        "fails": {"step": 3},
        "check": {"sample": "sample 7"},
    }
    assert next(event["dur"] for event in events if event["name"] == "check") == 250_000  # microseconds
    assert trace_file.active() is None


def test_every_track_has_a_name(tmp_path):
    tracer = Tracer()
    tracer.add("a", "math, worker 0", 1.0, 2.0)
    tracer.add("b", LOOP, 1.0, 2.0)
    events = written(tracer, tmp_path)
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert [names[e["tid"]] for e in events if e["ph"] == "X"] == ["math, worker 0", LOOP]


def test_a_run_is_traced_and_its_phases_nest(tmp_path):
    write_recipe(tmp_path, verifier="in_worker")
    status, text = Forked("train", "tiny.toml", "--trace", folder=tmp_path).wait()
    assert status == 0, text
    assert "trace of 5 steps in run/trace.json" in text
    assert "of verification hidden behind sampling" in text
    events = json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"]
    tracks = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name"}
    spans = [e for e in events if e["ph"] == "X"]
    assert all(e["ts"] >= 0 and e["dur"] >= 0 and isinstance(e["args"], dict) for e in spans)
    loop = [e for e in spans if e["tid"] == tracks[LOOP]]
    count = {
        name: sum(e["name"] == name for e in loop) for name in ("total", "rollout", "train", "sync", "canary")
    }
    assert count["total"] == count["train"] == count["sync"] == 5
    assert count["canary"] == 6  # and the one before the first step
    assert any(name.endswith(", worker 0") for name in tracks)
    assert GAPS in tracks
    for number in tracks.values():
        assert_nested([e for e in spans if e["tid"] == number])
    steps = [e for e in loop if e["name"] == "total"]
    for phase in (e for e in loop if e["name"] in ("rollout", "train", "sync")):
        assert sum(inside(phase, step) for step in steps) == 1


def inside(one, other):
    return other["ts"] <= one["ts"] and one["ts"] + one["dur"] <= other["ts"] + other["dur"] + 1e-2


def assert_nested(events):
    open_ = []
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        while open_ and open_[-1]["ts"] + open_[-1]["dur"] <= event["ts"] + 1e-2:
            open_.pop()
        assert not open_ or inside(event, open_[-1]), (event, open_[-1])
        open_.append(event)


def test_a_recipe_of_stages_is_refused_in_one_line(tmp_path):
    status, out, err = run_cli("train", "r1_pipeline", "--trace", folder=tmp_path)
    assert status == 2
    assert "--trace is of one run, and this recipe has stages" in err
    assert len(err.strip().splitlines()) == 1
    assert not out


def test_a_folder_that_is_no_run_gets_no_trace(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with trace_file.into(tmp_path, print):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_hidden_share_is_that_of_the_traced_steps(tmp_path):
    rows = [{"verify/hidden_frac": share} for share in (0.1, 0.9, 0.7)] + [{"step": 4}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"verify/hid')
    assert trace_file.mean_hidden(path, num_steps=2) == pytest.approx(0.8)
    assert trace_file.mean_hidden(path, num_steps=0) is None
    assert trace_file.mean_hidden(tmp_path / "none.jsonl", num_steps=2) is None
