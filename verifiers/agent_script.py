"""A check written as a script, and the files an agent left -> a Verdict.

A Python script has a box to itself, the agent's files beside it as data; programs that the agent left run in
another box, through `run(...)`, so they never share a process, a user or a file with the script. A shell
script (Harbor's tests/test.sh) runs in the box of the agent's files and may run them: trust is low.
"""

import io
import json
import secrets
import tarfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from verigrad.sandboxes.base import ExecResult, Limits, Process, ProgramFault, Sandbox, SandboxLost
from verigrad.verifiers.agent_check import Script
from verigrad.verifiers.base import Verdict

NONCE_BYTES = 16
MAX_RUNS = 200  # commands one script may have run
MAX_LINE = 32 << 20
MAX_REASON = 200
CANNOT_CHECK = 66  # exit status of a shell script that lacks something it needs here: nobody's fault

# Runs in the script's box. Its standard output is kept for the judge: what the script prints goes to stderr.
HARNESS = '''\
import json, os, sys
judge = os.fdopen(os.dup(1), "wb", buffering=0)
asked = os.fdopen(os.dup(0), "rb")
os.dup2(2, 1)
first = json.loads(asked.readline())


class Result:
    """How a command ended: status, exit_code, stdout, stderr; ok when it ended with status 0."""

    def __init__(self, row):
        self.status, self.exit_code = row["status"], row["exit_code"]
        self.stdout, self.stderr = row["stdout"], row["stderr"]
        self.ok = self.status == "exited" and self.exit_code == 0


def tell(message):
    judge.write(first["nonce"].encode() + json.dumps(message).encode() + b"\\n")


def run(command, stdin="", files=None):
    tell({"run": list(command), "stdin": stdin, "files": dict(files or {})})
    row = json.loads(asked.readline())
    if row.get("failed"):
        raise AssertionError(row["failed"])
    return Result(row)


scope = {"__name__": "__check__", "run": run, "answer": first["answer"]}
try:
    exec(compile(first["script"], "check.py", "exec"), scope)
    verdict = {"reward": scope.get("reward", 1.0), "reason": str(scope.get("reason", ""))}
except BaseException as error:
    said = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
    verdict = {"reward": 0.0, "reason": said[:200] or "an assertion does not hold"}
tell({"verdict": verdict})
os._exit(0)
'''

RUN_LIMITS = Limits()


def judge(script: Script, box: Sandbox, snapshot: bytes | None, *, answer: str) -> Verdict:
    """The script's verdict: what it raises is wrong. SandboxError when a sandbox fails."""
    if script.language == "sh":
        return _judge_by_shell(script, box, snapshot)
    return _Talk(script, box, snapshot).verdict(answer)


class _Talk:
    """A Python script in its own box, and the commands it has run in another one."""

    def __init__(self, script: Script, box: Sandbox, snapshot: bytes | None) -> None:
        self.script, self.box, self.snapshot = script, box, snapshot
        self.other: Sandbox | None = None
        self.nonce = secrets.token_hex(NONCE_BYTES)
        self.num_runs = 0

    def verdict(self, answer: str) -> Verdict:
        """Start the script and answer what it asks until it has decided, or cannot go on."""
        for path, text in self.script.files.items():
            try:
                self.box.write_file(path, text.encode())
            except ProgramFault as fault:
                return Verdict.wrong(f"{path}: {fault}")
        # -I: what the agent left beside the script must not be imported by it
        process = self.box.start(["python3", "-I", "-c", HARNESS], limits=self.script.limits)
        try:
            first = {"nonce": self.nonce, "answer": answer, "script": self.script.source}
            process.send(json.dumps(first).encode() + b"\n")
            decided = self._answer_until_decided(process)
        finally:
            result = process.kill()
        if decided is not None:
            return decided
        if result.status in ("wall_time", "cpu_time"):
            return Verdict.wrong("the check could not finish on what was left", outcome="timeout")
        return Verdict.wrong(f"the check did not decide: {result.detail or result.status}")

    def _answer_until_decided(self, process: Process) -> Verdict | None:
        pending = b""
        while True:
            line, newline, rest = pending.partition(b"\n")
            if not newline:
                try:
                    more = process.receive(timeout_s=self.script.limits.wall_s + 5)
                except TimeoutError:
                    return None
                if not more or len(pending) > MAX_LINE:
                    return None
                pending += more
                continue
            pending = rest
            if not line.startswith(self.nonce.encode()):
                continue
            message = json.loads(line[len(self.nonce) :])
            if "verdict" in message:
                return _verdict(message["verdict"])
            process.send(json.dumps(self._run(message)).encode() + b"\n")

    def _run(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """One command in the other box, which holds the agent's files as they were left."""
        self.num_runs += 1
        if self.num_runs > MAX_RUNS:
            return {"failed": f"more than {MAX_RUNS} commands"}
        box = self._clean_other()
        try:
            for path, text in asked["files"].items():
                box.write_file(path, _encoded(text))
        except ProgramFault as fault:
            return {"failed": f"a file the check needs cannot be put there: {fault}"}
        found = box.exec(asked["run"], stdin=_encoded(asked["stdin"]), limits=RUN_LIMITS)
        return _plain(found)

    def _clean_other(self) -> Sandbox:
        if self.other is None:
            if self.box.sibling is None:
                raise SandboxLost("a script that runs commands needs a second sandbox, and there is none")
            self.other = self.box.sibling()
        else:
            self.other.reset()
        if self.snapshot is not None:
            self.other.load(self.snapshot)
        return self.other


def _encoded(text: str) -> bytes:
    """Text that a script may have read from what the agent left; half a surrogate pair becomes a `?`."""
    return text.encode("utf-8", "replace")


def _plain(found: ExecResult) -> dict[str, Any]:
    return {
        "status": found.status,
        "exit_code": found.exit_code,
        "stdout": found.stdout.decode("utf-8", "replace"),
        "stderr": found.stderr.decode("utf-8", "replace"),
    }


def _verdict(said: Mapping[str, Any]) -> Verdict:
    """What a script decided; a reward that is no number from 0 to 1 is the script's fault."""
    reward, reason = said.get("reward"), " ".join(str(said.get("reason", "")).split())[:MAX_REASON]
    if isinstance(reward, bool) or not isinstance(reward, (int, float)) or not 0 <= reward <= 1:
        return Verdict.undecided(f"the check's reward is {reward!r:.40}; expected a number from 0 to 1")
    return Verdict(float(reward), "right" if reward == 1 else "partial" if reward else "wrong", reason=reason)


def _judge_by_shell(script: Script, box: Sandbox, snapshot: bytes | None) -> Verdict:
    """Run the script among the agent's files and read the reward it leaves there."""
    if snapshot is not None:
        box.reset()
        box.load(without(snapshot, (*script.remove, *script.reward)))
    try:
        result = _run_shell(script, box)
    except ProgramFault as fault:
        return Verdict.wrong(f"trust low: what the check needs cannot be put there: {fault}")
    if result.status in ("wall_time", "cpu_time"):
        return Verdict.wrong(f"trust low: the check: {result.detail or result.status}", outcome="timeout")
    if result.exit_code == CANNOT_CHECK:
        # A program that the script runs can end it so: what the box lacks it lacks without the agent's files.
        box.reset()
        if _run_shell(script, box).exit_code == CANNOT_CHECK:
            return Verdict.undecided("trust low: the check says that it cannot run here (exit status 66)")
        return Verdict.wrong("trust low: the check ended with status 66 on what was left")
    for path in script.reward:
        try:
            left = box.read_file(path, max_bytes=1 << 16)
        except ProgramFault:
            continue
        reward = reward_of(left)
        if reward is None or not 0 <= reward <= 1:  # a program in the same box can have written it
            return Verdict.wrong("trust low: what was left as reward is no number from 0 to 1")
        return _verdict({"reward": reward, "reason": "trust low"})
    return Verdict.wrong(f"trust low: the check left no reward ({result.detail or result.status})")


def _run_shell(script: Script, box: Sandbox) -> ExecResult:
    """Put the script and its files there, and run it to its end."""
    for path, text in script.files.items():
        box.write_file(path, text.encode(), executable=text.startswith("#!"))
    folders = sorted({path.rpartition("/")[0] for path in script.reward} - {""})
    lines = [f"mkdir -p {folder}" for folder in folders]
    name = f".check_{secrets.token_hex(4)}.sh"
    box.write_file(name, "\n".join([*lines, script.source]).encode())
    return box.exec(["bash", name], limits=script.limits)


def reward_of(left: bytes) -> float | None:
    """A reward file's number: a bare one, or JSON with "reward", or of all its numbers the least."""
    try:
        value = json.loads(left)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = value.get("reward", min(value.values()) if _all_numbers(value) else None)
    with suppress(OverflowError):
        return float(value) if _is_number(value) else None
    return None


def without(snapshot: bytes, paths: Sequence[str]) -> bytes:
    """The archive without these files and folders, and all below them."""
    gone = tuple(path.strip("/").removeprefix("./") for path in paths)
    packed = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(snapshot)) as old, tarfile.open(fileobj=packed, mode="w") as new:
        for member in old:
            name = member.name.removeprefix("./")
            if not any(name == path or name.startswith(f"{path}/") for path in gone):
                new.addfile(member, old.extractfile(member) if member.isreg() else None)
    return packed.getvalue()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _all_numbers(value: Mapping[str, Any]) -> bool:
    return bool(value) and all(map(_is_number, value.values()))
