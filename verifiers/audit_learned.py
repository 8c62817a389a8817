"""A learned reward and rows with an honest answer -> whether it pays more for none, for repeats, for others'.

A learned reward has no full reward, so what it pays is compared row by row with what it pays for an honest
answer: the row's `answer`, `chosen` or `completion`, where that is more than a few words. With the option
`threshold` what is compared is whether the answer is accepted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from verigrad.verifiers.audit_cases import Case, Row
from verigrad.verifiers.audit_gold import parts_of
from verigrad.verifiers.audit_report import Judged, Result, Status, example, left_out, wilson
from verigrad.verifiers.base import Verdict
from verigrad.verifiers.binding import LoadedVerifier
from verigrad.verifiers.combine import Combine

MIN_WORDS = 4  # of an honest answer; a bare number is not what people prefer
MAX_ROWS = 40
TIMES = 4  # an answer said again
SAYS = {
    "no answer": "Nothing at all is paid less than an honest answer.",
    "prompt copied": "The prompt given back as the answer is paid less than an honest answer.",
    "said again": "An honest answer said four times is paid less than said once.",
    "another prompt": "An honest answer to another prompt is paid less than that to its own.",
}
ALLOWED = {"no answer": 0.1, "prompt copied": 0.1, "said again": 0.5, "another prompt": 0.5}
"""Share of rows on which it may be otherwise; only `no answer` fails, the others warn."""


class Judge(Protocol):
    """What an audit's bench does."""

    loaded: LoadedVerifier

    def judge(self, cases: Sequence[tuple[Row, Case]]) -> list[Judged]:
        """The cases that were judged in time."""
        ...


def is_learned(loaded: LoadedVerifier) -> bool:
    """Whether all of the reward but what pays for form is learned."""
    judging = [part for part in parts_of(loaded) if not part.policy.shaping]
    return bool(judging) and all(part.policy.learned for part in judging)


def is_gate(loaded: LoadedVerifier) -> bool:
    """Whether a learned part of the reward has a threshold, from which on an answer is right."""
    return any(part.policy.learned and has_threshold(part) for part in parts_of(loaded))


def has_threshold(loaded: LoadedVerifier) -> bool:
    """Whether this verifier pays 1 from its option `threshold` on, else 0."""
    owner = getattr(loaded.call, "__self__", None)
    return getattr(owner, "threshold", loaded.options.get("threshold")) is not None


def learned_results(bench: Judge, rows: Sequence[Row]) -> list[Result]:
    """One line for each comparison; nothing for a verifier without a learned part."""
    reads = readings(bench.loaded)
    if not reads:
        return []
    honest = [(row, answer) for row in rows if (answer := honest_answer(row))][:MAX_ROWS]
    if not honest:
        why = f"no row has an answer, chosen or completion of {MIN_WORDS} words"
        return [left_out(name, says, why) for name, says in SAYS.items()]
    others = [answer for _, answer in honest]
    cases = {
        "honest": [Case("honest", answer) for _, answer in honest],
        "no answer": [Case("nothing", "") for _ in honest],
        "prompt copied": [Case("the prompt", row.prompt) for row, _ in honest],
        "said again": [Case(f"{TIMES} times", "\n".join([answer] * TIMES)) for _, answer in honest],
        "another prompt": [Case("another row's", others[at - 1]) for at in range(len(honest))],
    }
    flat = [(row, case) for of in cases.values() for (row, _), case in zip(honest, of, strict=True)]
    said = {id(one.case): one for one in bench.judge(flat)}
    return [_compared(name, [said.get(id(case)) for case in cases["honest"]],
                      [said.get(id(case)) for case in cases[name]], reads) for name in SAYS]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Read:
    """One learned part of a verifier."""

    paid: Callable[[Verdict], float | None]  # what it paid, read from the whole verdict
    gate: bool  # has a threshold: 1 or 0

    def tells(self, honest: float, other: float) -> bool:
        """Whether the two rewards can be compared; a gate that accepts neither answer pays for none."""
        return not self.gate or honest > 0 or other > 0


def readings(loaded: LoadedVerifier) -> list[Read]:
    """What the learned parts of a verifier paid, to be read from its verdict."""
    owner = getattr(loaded.call, "__self__", None)
    if isinstance(owner, Combine):
        learned = [part for part in owner.parts if part.counts and part.verifier.policy.learned]
        return [Read(partial(_part, one.name), has_threshold(one.verifier)) for one in learned]
    return [Read(lambda verdict: verdict.reward, has_threshold(loaded))] if loaded.policy.learned else []


def _part(name: str, verdict: Verdict) -> float | None:
    return verdict.parts.get(name)


def honest_answer(row: Row) -> str:
    """A good answer to this row, as far as the row says one; empty where it does not."""
    meta = row.problem.meta
    for found in (meta.get("chosen"), meta.get("completion"), row.problem.answer):
        if isinstance(found, str) and len(found.split()) >= MIN_WORDS:
            return found
    return ""


def _compared(
    name: str, honest: Sequence[Judged | None], others: Sequence[Judged | None], reads: Sequence[Read]
) -> Result:
    """A row is bad when a learned part pays the other no less than the honest answer."""
    num, num_refused, bad = 0, 0, []
    rewards: list[float] = []
    for one, other in zip(honest, others, strict=True):
        if one is None or other is None or one.case.text == other.case.text:
            continue
        pairs = [(read, read.paid(one.verdict), read.paid(other.verdict)) for read in reads]
        known = [(read, a, b) for read, a, b in pairs if a is not None and b is not None]
        decided = [(a, b) for read, a, b in known if read.tells(a, b)]
        if len(known) < len(pairs):
            continue
        if not decided:
            num_refused += 1
            continue
        num += 1
        rewards += [b for _, b in decided]
        if any(b >= a for a, b in decided):
            bad.append(other)
    if not num and num_refused:
        return left_out(name, SAYS[name], "its threshold accepts neither the honest answers nor these")
    if not num:
        return left_out(name, SAYS[name], "no two answers were judged in time")
    low, high = wilson(len(bad), num)
    status: Status = "ok"
    if low > ALLOWED[name]:
        status = "FAILS" if name == "no answer" else "warns"
    return Result(
        name, SAYS[name], status, "less than an honest answer", ALLOWED[name], num, len(bad), 0, low, high,
        mean_reward=sum(rewards) / len(rewards), worst=example(bad[0]) if bad else None,
        note="the interval lies above the limit" if status != "ok" else "",
    )  # fmt: skip
