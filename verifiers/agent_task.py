"""The files an agent left and its last reply -> whether the task is done, looked at in a fresh sandbox.

Steps say what must hold; expected values never enter the sandbox. What the agent left is data, or is run as a
program of its own whose output is compared outside. See docs/environments.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from verigrad.sandboxes.base import ExecResult, ProgramFault, Sandbox
from verigrad.verifiers import agent_script
from verigrad.verifiers.agent_check import Script, Step, read_check
from verigrad.verifiers.agent_match import mismatch
from verigrad.verifiers.base import Attempt, Outcome, Problem, Verdict, verifier
from verigrad.verifiers.marked import boxes, tags

MAX_FILE = 4 << 20  # bytes of a file that is looked at
MAX_EXTRACTED = 400  # characters
OVERTIME = ("wall_time", "cpu_time")

CANARY = {
    "response": "<answer>42</answer>",
    "answer": "42",
    "meta": {"check": [{"answer": True}, {"run": ["python3", "-c", "print(6 * 7)"], "equals": "42"}]},
}


class Failed(Exception):
    """A step does not hold, for this reason."""

    def __init__(self, reason: str, outcome: Outcome = "wrong") -> None:
        super().__init__(reason)
        self.outcome: Outcome = outcome


@verifier("agent_task", version="1", runs="sandbox", deadline_s=120.0, canary=CANARY, cache=False)
class AgentTask:
    """Right if the final state passes the row's check (`meta.check`): all steps, or a script.

    `partial` pays the share of the steps that hold instead of all or nothing.
    """

    def __init__(self, partial: bool = False) -> None:
        if not isinstance(partial, bool):
            raise ValueError(f"agent_task: partial = {partial!r:.40}; expected true or false")
        self.partial = partial

    def check_row(self, problem: Problem) -> None:
        """Raise ValueError when the row's check, setup or answer cannot be used."""
        if "check" not in problem.meta or problem.meta["check"] is None:
            raise ValueError(
                f"verifier 'agent_task': problem {problem.id!r} has no check, which says when it is solved. "
                "Add that column to the data: see docs/environments.md."
            )
        try:
            check = read_check(problem.meta["check"])
        except ValueError as error:
            raise ValueError(f"problem {problem.id!r}: {error}") from None
        if isinstance(check, Script):
            return
        if any(step.answer and not step.expects for step in check) and problem.answer is None:
            raise ValueError(f"problem {problem.id!r}: its check compares the answer, and the row has none")

    def verify(self, problem: Problem, attempt: Attempt, sandbox: Sandbox) -> Verdict:
        """Judge one attempt; SandboxError when the sandbox fails."""
        check = read_check(problem.meta["check"])
        said = stated(attempt)
        looks_at_files = isinstance(check, Script) or any(step.run or step.file for step in check)
        # The canary, and a check of a reply alone, need no files.
        if looks_at_files and attempt.snapshot is None and attempt.transcript:
            return Verdict.undecided("the files the agent left were not recorded")
        if isinstance(check, Script):
            return agent_script.judge(check, sandbox, attempt.snapshot, answer=said)
        verdict = self._steps(check, problem, said, sandbox, attempt.snapshot)
        asked = any(step.answer for step in check)  # else a reply is no answer, and no vote is counted by it
        return replace(verdict, extracted=said[:MAX_EXTRACTED]) if asked else verdict

    def _steps(
        self, steps: Sequence[Step], problem: Problem, said: str, sandbox: Sandbox, snapshot: bytes | None
    ) -> Verdict:
        first: tuple[str, Outcome] | None = None
        num_held, used = 0, False
        for number, step in enumerate(steps, 1):
            if used:  # what one command did to the files is not there for the next
                sandbox.reset()
                if snapshot is not None:
                    sandbox.load(snapshot)
            used = bool(step.run)
            try:
                look(step, problem.answer, said, sandbox)
            except Failed as failed:
                first = first or (f"step {number} of {len(steps)}: {failed}", failed.outcome)
                if not self.partial:
                    break
            else:
                num_held += 1
        parts = {"steps_held": num_held / len(steps)} if self.partial else {}
        if first is None:
            return Verdict(1.0, "right", parts)
        reason, outcome = first
        if not self.partial or not num_held:
            return Verdict(0.0, outcome, parts, reason)
        return Verdict(num_held / len(steps), "partial", parts, reason)


def stated(attempt: Attempt) -> str:
    """The answer of the agent's last reply: its last `<answer>` tag, else its last box, else all of it.

    An agent whose last turn is a tool call, or was cut off before a reply, has stated nothing.
    """
    text = attempt.final_text
    if attempt.transcript:
        last = attempt.transcript[-1]
        if last.get("role") != "assistant" or last.get("tool_calls"):
            return ""
        content = last.get("content")
        text = Attempt(content if isinstance(content, str) else "").final_text
    if found := tags(text, "answer") or boxes(text):
        return found[-1][0].strip()
    return "" if attempt.truncated else text.strip()


def look(step: Step, answer: Any, said: str, sandbox: Sandbox) -> None:
    """Raise Failed unless this step holds of the state in the sandbox."""
    if step.answer:
        expects = step.expects or {"equals": "" if answer is None else str(answer)}
        if not said:
            raise Failed("no answer is stated", "unparseable")
        if wrong := mismatch(said.encode("utf-8", "replace"), expects):
            raise Failed(f"the answer {wrong}")
        return
    if step.run:
        found = run(step, sandbox)
        if not step.file and (wrong := mismatch(found.stdout, step.expects)):
            raise Failed(f"what {shown(step.run)} writes {wrong}")
    if step.file:
        look_at_file(step, sandbox)


def run(step: Step, sandbox: Sandbox) -> ExecResult:
    """The step's command, run to its end."""
    put(sandbox, step.files)
    found = sandbox.exec(step.run, stdin=step.stdin, limits=step.limits)
    if found.status != "exited":
        outcome: Outcome = "timeout" if found.status in OVERTIME else "wrong"
        raise Failed(f"{shown(step.run)}: {found.detail or found.status}", outcome)
    if step.exit_code is not None and found.exit_code != step.exit_code:
        raise Failed(f"{shown(step.run)} ended with status {found.exit_code}")
    return found


def look_at_file(step: Step, sandbox: Sandbox) -> None:
    """Raise Failed unless the file is as expected; a link or a folder is no file."""
    try:
        content = sandbox.read_file(step.file, max_bytes=MAX_FILE)
    except ProgramFault as fault:
        if step.exists:
            raise Failed(f"{step.file}: {fault}") from None
        return
    if not step.exists:
        raise Failed(f"{step.file} is there")
    if wrong := mismatch(content, step.expects):
        raise Failed(f"{step.file} {wrong}")


def put(sandbox: Sandbox, files: Mapping[str, str]) -> None:
    """Write a step's own files; what the agent left in their way is its fault."""
    for path, text in files.items():
        try:
            sandbox.write_file(path, text.encode())
        except ProgramFault as fault:
            raise Failed(f"{path}: {fault}") from None


def shown(command: Sequence[str]) -> str:
    """A command in a few words."""
    text = " ".join(command)
    return text if len(text) <= 40 else f"{text[:37]}..."
