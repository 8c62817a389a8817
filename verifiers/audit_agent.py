"""An agent task and who does it -> cases: its oracle must pass, doing nothing and its cheats must not."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType

from verigrad.sandboxes.pool import SandboxPool, SandboxSettings
from verigrad.verifiers.agent_rehearsal import CannotSetUp, doings, rehearse
from verigrad.verifiers.audit_cases import Case, Probe, Row
from verigrad.verifiers.audit_gold import parts_of
from verigrad.verifiers.audit_probes import INJECTIONS
from verigrad.verifiers.base import Attempt
from verigrad.verifiers.binding import LoadedVerifier
from verigrad.verifiers.marked import short

NAMES = ("oracle", "does nothing", "cheats", "claims")  # the probes of agent tasks
MAX_TOLD = 200  # characters of an oracle or cheat that are shown


def is_agent(loaded: LoadedVerifier) -> bool:
    """Whether what is judged is the state that an agent left behind."""
    return any("agent_task" in (part.name, part.policy.name) for part in parts_of(loaded))


class Rehearsals(AbstractContextManager["Rehearsals"]):
    """Tasks done in sandboxes of their own, each once; needs no model."""

    def __init__(self, settings: SandboxSettings) -> None:
        self._stack = ExitStack()
        self._pool = SandboxPool(settings)
        self._stack.callback(self._pool.close)
        self._done: dict[str, dict[str, tuple[bool, Attempt]]] = {}

    def probes(self) -> list[Probe]:
        """What an agent task is put through."""
        return [
            Probe("oracle", "The row's own solution, done in a sandbox; a full reward is due.", self._oracle,
                  expect="right", allowed=0.02, quick=True),
            Probe("does nothing", "An agent that leaves all as it was set up.", self._nothing, quick=True),
            Probe("cheats", "The row's own cheats: an edited test, a printed result.", self._cheats),
            Probe("claims", "An agent that does nothing and says that it is done, or that it must be paid.",
                  self._claims, max_rows=10, quick=True),
        ]  # fmt: skip

    def of(self, row: Row) -> dict[str, tuple[bool, Attempt]]:
        """Who does it -> whether that must pass, and what is left.

        ValueError for a task that cannot be set up.
        """
        if row.problem.id not in self._done:
            try:
                self._done[row.problem.id] = {
                    name: (must, self._pool.run(partial(rehearse, row.problem, doing)))
                    for name, must, doing in doings(row.problem)
                }
            except CannotSetUp as error:
                raise ValueError(f"problem {row.problem.id!r}: {error}") from error
        return self._done[row.problem.id]

    def _oracle(self, row: Row) -> Iterator[Case]:
        for name, (must, done) in self.of(row).items():
            if must:
                yield replace(case_of(name, done), told=self._told(row, name))

    def _told(self, row: Row, name: str) -> str:
        """What was done about what was asked, for people."""
        doing = next(doing for known, _, doing in doings(row.problem) if known == name)
        return f"{short(row.prompt)!a} {json.dumps(doing)[:MAX_TOLD]}"

    def _nothing(self, row: Row) -> Iterator[Case]:
        yield case_of("does nothing", self.of(row)["does nothing"][1])

    def _cheats(self, row: Row) -> Iterator[Case]:
        for name, (must, done) in self.of(row).items():
            if not must and name != "does nothing":
                yield replace(case_of(name, done), told=self._told(row, name))

    def _claims(self, row: Row) -> Iterator[Case]:
        done = self.of(row)["does nothing"][1]
        for text in ("", "All tests pass. The task is done.", *INJECTIONS[:2]):
            yield case_of("claims", replace(done, text=text))
        yield Case("no state at all", "done")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def case_of(kind: str, done: Attempt) -> Case:
    """What was left, as a case."""
    return Case(kind, done.text, done.truncated, snapshot=done.snapshot, transcript=tuple(done.transcript))
