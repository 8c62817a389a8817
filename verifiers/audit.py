"""A verifier and problems with known answers -> a Report: which attacks it withstands, before it is trusted.

Gold and its rewritings must earn the full reward, nothing else may, and nothing may depend on chance.
docs/audit.md lists every probe and its limit.
"""

import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from verigrad.sandboxes.pool import SandboxSettings
from verigrad.verifiers import audit_stability as stability
from verigrad.verifiers.audit_agent import Rehearsals, is_agent
from verigrad.verifiers.audit_cases import Case, Family, Gold, Probe, Row, differ
from verigrad.verifiers.audit_gold import (
    RENDERINGS,
    answer_text,
    asks_answer,
    asks_programs,
    family_of,
    fenced,
    has_own_gold,
    is_control,
    judging_parts,
    language_of,
    pays_for_form,
    renderer,
    sees_row,
    whole_gold,
)
from verigrad.verifiers.audit_learned import is_gate, is_learned, learned_results
from verigrad.verifiers.audit_probes import PROBES
from verigrad.verifiers.audit_report import (
    MAX_UNDECIDED,
    Judged,
    Report,
    Result,
    Status,
    example,
    left_out,
    result_of,
    wilson,
)
from verigrad.verifiers.base import Problem, Verdict
from verigrad.verifiers.binding import LoadedVerifier
from verigrad.verifiers.isolation import VerifierPool
from verigrad.verifiers.prompt_text import asked

NUM_RENDERED = 8  # rows on which the ways of writing an answer are tried
NUM_OTHERS = 3  # golds of other rows that a row is given
STEADY = ("undecided", "repeats", "order", "concurrent", "threads", "latency")
RUNS_TEXT = "What an attempt says is not evaluated where it can touch this machine's files."
UNDECIDED = "All cases above but those with a broken row: each gets a verdict."


Tell = Callable[[str], None]
"""Hears what is being done, often."""


def silent(text: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class Audited:
    """Which verifier is audited, and how it is run."""

    verifier: str
    options: Mapping[str, Any] = field(default_factory=dict)
    num_workers: int = 2
    deadline_s: float | None = None
    memory_mb: int = 2048
    seed: int = 0
    sandbox: SandboxSettings | None = None

    def open(self, num_workers: int | None = None) -> VerifierPool:
        """Fresh workers; ValueError for a wrong name or option, SandboxUnavailable."""
        return VerifierPool(
            self.verifier,
            options=self.options,
            num_workers=num_workers or self.num_workers,
            deadline_s=self.deadline_s,
            memory_mb=self.memory_mb,
            seed=self.seed,
            sandbox=self.sandbox,
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What a verifier may do and still pass."""

    allowed: Mapping[str, float] = field(default_factory=dict)  # probe -> share, instead of the probe's own
    max_p50_s: float = 1.0
    max_p99_s: float | None = None  # None: half of the deadline
    max_undecided: float = MAX_UNDECIDED
    max_cases: int | None = None  # of one probe, spread over its rows and kinds
    time_s: float | None = None  # of the whole audit; what is not judged by then is left out


def audit(
    audited: Audited,
    problems: Sequence[Problem],
    *,
    probes: Sequence[Probe] = PROBES,
    only: Collection[str] = (),
    limits: Limits | None = None,
    quick: bool = False,
    second: Audited | None = None,
    family: Family | None = None,
    tell: Tell = silent,
) -> Report:
    """Put a verifier through the probes on these problems; `quick` takes those before training alone.

    `only`: names of probes and of STEADY; empty is all. `tell` hears what is done, after every case.

    Raises ValueError for a verifier that cannot be loaded or rows it does not take, SandboxUnavailable.
    """
    limits = limits or Limits()
    started = time.perf_counter()
    ends = time.monotonic() + limits.time_s if limits.time_s is not None else None
    with audited.open() as pool, ExitStack() as stack:
        for problem in problems:
            pool.verifier.check_row(problem)
        bench = Bench(pool, ends, tell)
        rows, rendering, kind = rows_of(bench, problems, family)
        if is_agent(pool.verifier):  # text is no solution of theirs: each row is done in a sandbox
            probes = stack.enter_context(Rehearsals(pool.sandbox)).probes()
        results, judged = [], []
        for probe in probes:
            if (quick and not probe.is_quick(kind)) or (only and probe.name not in only):
                continue
            bench.doing = probe.name
            result, some = run_probe(probe, bench, rows, limits)
            results.append(result)
            judged += [] if probe.undecided_is_fine else some
        bench.doing = "what is done with texts and rewards"
        if not quick and (not only or "runs text" in only):
            results.append(runs_text(bench, rows))
        results += [one for one in learned_results(bench, rows) if not only or one.name in only]
        results += steady(audited, bench, judged, limits, quick=quick, only=only)
        if second is not None:
            tell("second verifier")
            allowed = limits.allowed.get("second verifier", 1.0)
            with second.open() as other:
                is_full = partial(full, parts=judging_parts(other.verifier))
                results.append(stability.disagreement(other, judged, is_full, allowed=allowed))
        loaded, policy = pool.verifier, pool.verifier.policy
        return Report(
            verifier=audited.verifier,
            source=loaded.source,
            version=policy.version,
            num_rows=len(rows),
            family=kind,
            rendering=rendering,
            control=is_control(loaded),
            results=results,
            seconds=time.perf_counter() - started,
            sandbox=pool.sandbox.spec.backend if policy.runs == "sandbox" else "",
        )


class Bench:
    """Where cases are judged: a pool of workers, until the time is up."""

    def __init__(self, pool: VerifierPool, ends: float | None = None, tell: Tell = silent) -> None:
        self.pool, self.ends, self.tell = pool, ends, tell
        self.doing = "how answers are written"
        self.loaded: LoadedVerifier = pool.verifier
        self._parts = judging_parts(pool.verifier)

    def judge(self, cases: Sequence[tuple[Row, Case]]) -> list[Judged]:
        """The cases that were judged in time, in order."""
        waiting = [(row, case, self._submit(row, case)) for row, case in cases]
        judged = []
        for number, (row, case, verdict) in enumerate(waiting):
            self.tell(f"{self.doing}: {number} of {len(waiting)} cases judged")
            if isinstance(verdict, Future):
                left = None if self.ends is None else max(0.0, self.ends - time.monotonic())
                try:
                    said = verdict.result(left)[0]
                except TimeoutError:
                    verdict.cancel()
                    continue
            else:
                said = verdict
            judged.append(Judged(row.problem, case, said, full(said, self._parts)))
        return judged

    def _submit(self, row: Row, case: Case) -> "Future[list[Verdict]] | Verdict":
        try:
            return self.pool.submit(case.problem or row.problem, [case.attempt])
        except ValueError as error:  # a row that was broken on purpose
            return Verdict.undecided(f"refused: {error}")


def full(verdict: Verdict, parts: Sequence[str] = ()) -> bool:
    """Whether an attempt earned all there is for its answer; of a `combine` all parts that judge answers."""
    if parts:
        return all(verdict.parts.get(part, 0.0) >= 1 for part in parts)
    return verdict.outcome == "right" or (verdict.reward is not None and verdict.reward >= 1)


# Rows: what is right on each -------------------------------------------------------------------------------


def rows_of(
    bench: Bench, problems: Sequence[Problem], family: Family | None
) -> tuple[list[Row], str, Family]:
    """The problems as probes see them, how answers are written for this verifier, and their family."""
    loaded = bench.loaded
    blank = [Row(p, asked(p.prompt), None, (), "text", renderer("plain"), loaded.options) for p in problems]
    code = asks_programs(loaded, problems) if family is None else family == "code"
    rendering = "programs" if code else "the verifier says" if loaded.policy.gold else "plain"
    golds = [whole_gold(problem, loaded, code=code) for problem in problems]
    whole = code or has_own_gold(loaded) or is_agent(loaded) or pays_for_form(loaded)
    if not whole and asks_answer(loaded):
        answers = [answer_text(problem, loaded) for problem in problems]
        rendering = best_rendering(bench, blank, answers)
        write = renderer(rendering)
        golds = [None if answer is None else Gold(write(answer), answer) for answer in answers]
    known = [gold.answer for gold in golds if gold is not None and gold.answer]
    kind = family or ("code" if code else family_of(loaded, known, rendering))
    rows = []
    for at, (row, gold) in enumerate(zip(blank, golds, strict=True)):
        later = [other for other in [*golds[at + 1 :], *golds[:at]] if other is not None]
        others = [one for one in later if gold is None or differ(one.answer, gold.answer)][:NUM_OTHERS]
        write = renderer(rendering if rendering in RENDERINGS else "plain")
        write = partial(fenced, language=language_of(row.problem)) if code else write
        rows.append(replace(row, gold=gold, others=tuple(others), family=kind, render=write))
    return rows, rendering, kind


def best_rendering(bench: Bench, rows: Sequence[Row], answers: Sequence[str | None]) -> str:
    """The way of writing an answer that is paid on most rows; the first one if none ever is."""
    some = [(row, answer) for row, answer in zip(rows, answers, strict=True) if answer is not None]
    some = some[:NUM_RENDERED]
    cases = [(row, Case(name, renderer(name)(answer))) for name in RENDERINGS for row, answer in some]
    paid = dict.fromkeys(RENDERINGS, 0)
    for one in bench.judge(cases):
        paid[one.case.kind] += one.full
    return max(paid, key=lambda name: paid[name])


# Probes ----------------------------------------------------------------------------------------------------


def run_probe(probe: Probe, bench: Bench, rows: Sequence[Row], limits: Limits) -> tuple[Result, list[Judged]]:
    """What came of one probe, and its verdicts."""
    loaded = bench.loaded
    form = pays_for_form(loaded)
    if probe.needs in ("gold", "answer"):
        if form:
            return left_out(probe.name, probe.says, "it pays for form, whatever is answered"), []
        rows = [row for row in rows if row.gold and (row.gold.answer or probe.needs == "gold")]
        if not rows:
            why = "no oracle: " + ("the rows list no answer" if asks_answer(loaded) else "it asks for none")
            return left_out(probe.name, probe.says, why), []
    cases = [(row, case) for row in rows[: probe.max_rows] for case in probe.cases(row)]
    if limits.max_cases is not None and len(cases) > limits.max_cases:  # some of each kind, from all rows
        step = len(cases) / limits.max_cases
        cases = [cases[int(at * step)] for at in range(limits.max_cases)]
    if not cases:
        return left_out(probe.name, probe.says, "no row gives it a case"), []
    judged = bench.judge(cases)
    if not judged:
        return left_out(probe.name, probe.says, "the time for the audit was up"), []
    shown = "a control: nothing is expected of it" if is_control(loaded) else ""
    shown = shown or ("it pays for form, whatever is answered" if form else "")
    learned = is_learned(loaded)
    if learned and not is_gate(loaded):
        shown = shown or "a learned reward: nothing is its full reward"
    columns = sorted({name for row in rows for name in row.problem.meta})
    if probe.needs == "row" and not sees_row(loaded, columns):
        shown = shown or "it sees nothing of a row"
    allowed = limits.allowed.get(probe.name, probe.allowed)
    result = result_of(probe, judged, allowed=allowed, max_undecided=limits.max_undecided, only_shown=shown)
    if learned and result.status == "FAILS":  # what ends a run is how it compares with an honest answer
        result = replace(result, status="warns", note=result.note or "a learned reward with a threshold")
    if len(judged) < len(cases):
        result = replace(result, note=f"{len(cases) - len(judged)} more left out: the time was up")
    return result, judged


def runs_text(bench: Bench, rows: Sequence[Row]) -> Result:
    """Attempts that would leave a file behind if a verifier evaluated them."""
    with tempfile.TemporaryDirectory(prefix="verigrad-audit-") as folder:
        cases = [
            (row, case)
            for at, row in enumerate(rows[:3])
            for case in _payloads(row, Path(folder), at)
        ]  # fmt: skip
        judged = bench.judge(cases)
        bad = [one for one in judged if (Path(folder) / one.case.kind).exists()]
    low, high = wilson(len(bad), len(judged))
    kinds: dict[str, list[int]] = {}
    for one in judged:
        counts = kinds.setdefault(one.case.kind.partition("-")[2], [0, 0])
        counts[0] += one in bad
        counts[1] += 1
    status: Status = "FAILS" if bad else "ok"
    worst = example(bad[0]) if bad else None
    return Result(
        "runs text", RUNS_TEXT, status, "not evaluated", 0.0, len(judged), len(bad),
        sum(not one.verdict.decided for one in judged), low, high, kinds=kinds, worst=worst,
    )  # fmt: skip


def _payloads(row: Row, folder: Path, at: int) -> Iterator[Case]:
    """Each would make a file that is named as its kind."""
    forms: Mapping[str, Callable[[str], str]] = {
        "plain": lambda code: code,
        "rendered": row.render,
        "tag": renderer("answer tag"),
        "box": renderer("boxed"),
        "fence": fenced,
        "call": lambda code: f"print({code})",
        "f-string": lambda code: f"{{{code}}}",
    }
    for form, write in forms.items():
        kind = f"{at}-{form}"
        yield Case(kind, write(f"__import__('pathlib').Path({str(folder / kind)!r}).touch()"))


# Chance and time -------------------------------------------------------------------------------------------


def steady(
    audited: Audited,
    bench: Bench,
    judged: Sequence[Judged],
    limits: Limits,
    *,
    quick: bool,
    only: Collection[str],
) -> Iterator[Result]:
    """Whether the same case has the same verdict however it is asked for, and how long checks take."""
    if not judged:
        return
    wanted = set(only or STEADY)
    if "undecided" in wanted:
        yield undecided(judged, limits)
    cases = stability.spread(judged)
    if not cases or (bench.ends is not None and time.monotonic() > bench.ends):
        yield left_out("repeats", stability.SAYS["repeats"], "no case was judged in time")
        return
    if quick:
        yield _repeats_in_time(bench, cases)
        return
    if "repeats" in wanted:
        bench.tell("repeats")
        yield stability.repeats(bench.pool, cases)
    if "order" in wanted:
        bench.tell("order")
        yield stability.order(audited.open, cases)
    if "concurrent" in wanted:
        bench.tell("concurrent")
        yield stability.concurrent(audited.open, cases, num_workers=max(2, audited.num_workers))
    if "threads" in wanted:
        bench.tell("threads")
        made = stability.Order(audited.verifier, dict(audited.options), audited.seed)
        yield stability.threads(bench.loaded, made, cases, deadline_s=bench.pool.deadline_s)
    if "latency" in wanted:
        ordinary = [one for one in judged if one.full] or list(judged)
        p99 = bench.pool.deadline_s / 2 if limits.max_p99_s is None else limits.max_p99_s
        yield stability.latency(ordinary, max_p50_s=limits.max_p50_s, max_p99_s=p99)


def undecided(judged: Sequence[Judged], limits: Limits) -> Result:
    """How many cases got no verdict."""
    num_undecided = sum(not one.verdict.decided for one in judged)
    low, high = wilson(num_undecided, len(judged))
    many = num_undecided > limits.max_undecided * len(judged)
    first = next((one for one in judged if not one.verdict.decided), None)
    return Result(
        "undecided", UNDECIDED, "FAILS" if many else "ok", "a verdict", limits.max_undecided, len(judged),
        num_undecided, num_undecided, low, high, worst=example(first) if first else None,
    )  # fmt: skip


def _repeats_in_time(bench: Bench, cases: Sequence[Judged]) -> Result:
    """Some of the cases once more, as far as the time reaches."""
    rows = [Row(one.problem, "", None, (), "text", renderer("plain")) for one in cases]
    again = bench.judge([(row, one.case) for row, one in zip(rows, cases, strict=True)])
    done = {(one.problem.id, id(one.case)): one.verdict for one in again}
    both = [one for one in cases if (one.problem.id, id(one.case)) in done]
    if not both:
        return left_out("repeats", stability.SAYS["repeats"], "the time for the audit was up")
    return stability.compared("repeats", both, [[done[one.problem.id, id(one.case)]] for one in both])
