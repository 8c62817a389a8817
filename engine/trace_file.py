"""What a run does and when -> trace.json: Chrome trace events, as https://ui.perfetto.dev draws them.

One trace is of one process from its start to its end. Where none is recorded, `span` costs a look at a name.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOOP, ENGINE, GAPS = "training loop", "sampling engine", "idle"  # tracks; verifier workers have their own
STEP = "total"  # the phase that is a whole step
GAP_S = 1e-3  # a shorter one between two phases is not drawn
NAME = "trace.json"


@dataclass(frozen=True, slots=True)
class Span:
    """One thing that was done, on the clock of time.perf_counter."""

    name: str
    track: str
    start: float  # seconds
    end: float
    facts: Mapping[str, Any] = field(default_factory=dict)


class Tracer:
    """Collects spans of any thread; `write` puts them into a file."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.spans: list[Span] = []
        self._lock = threading.Lock()

    def add(self, name: str, track: str, start: float, end: float, **facts: Any) -> None:
        """Record what is over."""
        with self._lock:
            self.spans.append(Span(name, track, start, end, facts))

    def write(self, path: Path) -> None:
        """All spans, and the gaps between a step's phases, as one JSON object; replaces the file whole."""
        with self._lock:
            spans = list(self.spans)
        spans += gaps(spans)
        tracks = {LOOP: 1, ENGINE: 2, GAPS: 3}
        for one in spans:
            tracks.setdefault(one.track, len(tracks) + 1)
        events = [_named("process_name", 0, "verigrad"), *_order(tracks)]
        events += [self._event(one, tracks[one.track]) for one in sorted(spans, key=lambda s: s.start)]
        half = path.with_name(f"{path.name}.half")
        half.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, default=str))
        half.replace(path)

    def _event(self, one: Span, track: int) -> dict[str, Any]:
        begins = round(1e6 * (one.start - self.started), 3)  # microseconds
        ends = round(1e6 * (one.end - self.started), 3)
        event = {
            "name": one.name,
            "cat": one.track,
            "ph": "X",
            "pid": os.getpid(),
            "tid": track,
            "ts": begins,
        }
        return event | {"dur": round(ends - begins, 3), "args": dict(one.facts)}


_tracer: Tracer | None = None


@contextmanager
def recording() -> Iterator[Tracer]:
    """Record what happens within; one trace at a time."""
    global _tracer
    assert _tracer is None, "a trace is being recorded already"
    _tracer = Tracer()
    try:
        yield _tracer
    finally:
        _tracer = None


def active() -> Tracer | None:
    """The trace that is being recorded, if any."""
    return _tracer


@contextmanager
def span(name: str, track: str = LOOP, **facts: Any) -> Iterator[None]:
    """Record the block, where a trace is being recorded."""
    if _tracer is None:
        yield
        return
    tracer, start = _tracer, time.perf_counter()
    try:
        yield
    finally:
        tracer.add(name, track, start, time.perf_counter(), **facts)


def record(name: str, track: str, start: float, **facts: Any) -> None:
    """Record what began at `start` (time.perf_counter) and ends now, where a trace is being recorded."""
    if _tracer is not None:
        _tracer.add(name, track, start, time.perf_counter(), **facts)


def watch_engine(engine: Any) -> None:
    """Record each step of a vLLM engine in this process, where a trace is being recorded."""
    tracer, inner = _tracer, getattr(getattr(engine, "llm", None), "llm_engine", None)
    if tracer is None or inner is None:
        return
    step: Callable[[], Any] = inner.step

    def traced() -> Any:
        with span("engine step", ENGINE):
            return step()

    inner.step = traced


def watcher(verifier: str) -> Callable[[int, float, float, str], None] | None:
    """What a pool of this verifier is to call after each check: (slot, start, end, sample)."""
    tracer = _tracer
    if tracer is None:
        return None

    def watch(slot: int, start: float, end: float, sample: str) -> None:
        tracer.add("check", f"{verifier}, worker {slot}", start, end, sample=sample)

    return watch


def gaps(spans: list[Span]) -> list[Span]:
    """What of each step no phase covers, named by the phase before it."""
    found = []
    loop = sorted((one for one in spans if one.track == LOOP), key=lambda one: (one.start, -one.end))
    for step in [one for one in loop if one.name == STEP]:
        reached, after = step.start, "the step's start"
        inner = [one for one in loop if one is not step and step.start <= one.start and one.end <= step.end]
        for one in inner:
            if one.start - reached > GAP_S:
                found.append(Span(f"after {after}", GAPS, reached, one.start))
            if one.end > reached:
                reached, after = one.end, one.name
        if step.end - reached > GAP_S:
            found.append(Span(f"after {after}", GAPS, reached, step.end))
    return found


def told(tracer: Tracer, path: Path) -> str:
    """The trace in one line."""
    steps = [one for one in tracer.spans if one.name == STEP and one.track == LOOP]
    total = sum(one.end - one.start for one in steps)
    idle = sum(one.end - one.start for one in gaps(tracer.spans))
    words = [f"trace of {len(steps)} steps in {path}, to be opened at https://ui.perfetto.dev"]
    if total:
        words.append(f"{idle / total:.1%} of the steps' time between phases")
    hidden = mean_hidden(path.with_name("metrics.jsonl"), num_steps=len(steps))
    if hidden is not None:
        words.append(f"{hidden:.0%} of verification hidden behind sampling")
    return "; ".join(words)


def _named(kind: str, track: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": os.getpid(), "tid": track, "args": {"name": name}}


def _order(tracks: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    for name, number in tracks.items():
        yield _named("thread_name", number, name)
        yield _named("thread_sort_index", number, name) | {"args": {"sort_index": number}}


def mean_hidden(metrics: Path, *, num_steps: int) -> float | None:
    """Mean of verify/hidden_frac over the last steps of a metrics.jsonl; None where there are none."""
    seen = []
    for line in metrics.read_text().splitlines() if metrics.exists() else []:
        with contextlib.suppress(
            ValueError, KeyError, TypeError
        ):  # a line cut off by a kill; another verb's row
            seen.append(float(json.loads(line)["verify/hidden_frac"]))
    last = seen[-num_steps:] if num_steps else []
    return sum(last) / len(last) if last else None


@contextmanager
def into(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Record a run, and write its trace into its folder when it ends, however it ends."""
    with recording() as tracer:
        try:
            yield
        finally:
            if (folder / "config.toml").exists():  # else the run was refused, and the folder is not ours
                path = folder / NAME
                with contextlib.suppress(OSError):  # a full disk has been told of already
                    tracer.write(path)
                    say(told(tracer, path))
