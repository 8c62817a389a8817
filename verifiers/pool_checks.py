"""Attempts at a problem -> checks that travel to a worker, and a group that collects their verdicts."""

import base64
import contextlib
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, replace
from typing import Any

from verigrad.verifiers.base import Attempt, Problem, Verdict


class Group:
    """The verdicts of one submitted group as they come in."""

    def __init__(self, size: int) -> None:
        self.future: Future[list[Verdict]] = Future()
        self._verdicts: list[Verdict | None] = [None] * size
        self._missing = size
        self._lock = threading.Lock()

    def settle(self, indices: Sequence[int], verdicts: Sequence[Verdict], *, closed: bool) -> None:
        """Enter verdicts at their places; the last one completes the future."""
        with self._lock:
            for index, verdict in zip(indices, verdicts, strict=True):
                self._verdicts[index] = verdict
            self._missing -= len(indices)
            done = self._missing == 0
        if closed:
            self.future.cancel()
        elif done:
            with contextlib.suppress(InvalidStateError):  # cancelled by its owner meanwhile
                self.future.set_result([verdict for verdict in self._verdicts if verdict is not None])


@dataclass(frozen=True, slots=True)
class Opened:
    """A problem whose attempts are judged as they come."""

    problem: Problem
    sent: Mapping[str, Any]  # the problem as it travels
    group: Group


@dataclass(frozen=True, slots=True)
class Check:
    """What a worker judges in one go: one attempt, or a group verifier's whole group."""

    problem: Problem
    attempts: Sequence[Attempt]
    indices: list[int]
    group: Group
    sent: Mapping[str, Any]  # the problem as it travels
    key: bytes | None = None  # what its verdict is remembered by

    def message(self) -> dict[str, Any]:
        """As a worker reads it."""
        attempts = [
            {
                "text": one.text,
                "truncated": one.truncated,
                "transcript": list(one.transcript),
                "snapshot": None if one.snapshot is None else base64.b64encode(one.snapshot).decode(),
            }
            for one in self.attempts
        ]
        return {"problem": self.sent, "attempts": attempts, "indices": self.indices}

    def all(self, verdict: Verdict) -> list[Verdict]:
        """The same verdict on each of its attempts."""
        return [verdict] * len(self.indices)

    def canary(self, known: Mapping[str, Any] | None) -> "Check":
        """The verifier's known case; without one, an empty attempt at the same problem."""
        if known is None:
            return replace(self, attempts=[Attempt("") for _ in self.attempts])
        row = {"id": "canary", "prompt": "", **{k: v for k, v in known.items() if k != "response"}}
        return replace(self, attempts=[Attempt(known["response"]) for _ in self.attempts], sent=row)

    @property
    def sample(self) -> str:
        """Which one it is, for people: the problem and the end of the first attempt."""
        tail = " ".join(self.attempts[0].text[-400:].split())[-120:]
        return f"problem {self.problem.id}: ...{tail}"


def bounded(attempt: Attempt, max_text: int) -> Attempt:
    """The attempt with at most the last `max_text` characters of its text: the answer stands at the end."""
    if len(attempt.text) <= max_text:
        return attempt
    tail = attempt.text[-max_text:]
    # A thought that was cut open must stay a thought: without its beginning the tail would read as prose.
    cut = attempt.text[:-max_text]
    open_thought = cut.rfind("<think>") > cut.rfind("</think>")
    return replace(attempt, text=("<think>" + tail) if open_thought else tail)


def problem_json(problem: Problem) -> dict[str, Any]:
    """The problem as it travels; ValueError when it cannot."""
    prompt = problem.prompt if isinstance(problem.prompt, str) else [dict(turn) for turn in problem.prompt]
    row = {"id": problem.id, "prompt": prompt, "answer": problem.answer, "meta": dict(problem.meta)}
    return plain_row(row, f"problem {problem.id!r}")


def plain_row(row: dict[str, Any], what: str) -> dict[str, Any]:
    """The row, proven to be JSON: workers are sent nothing else."""
    try:
        json.dumps(row)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{what} cannot be written as JSON ({error}), and that is how it travels to a worker process; "
            "use text, numbers, lists and objects"
        ) from error
    return row
