"""One small task for an agent -> a row of data: what is asked, its files, its check, its oracle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Doing = Mapping[str, Any]
"""What somebody does about a task: {"files": {path: text}, "commands": [...], "answer": last reply}."""

REPLY = "When you know it, reply with <answer>...</answer> and nothing else."
DONE = "When you are done, reply with one word: done."


@dataclass(frozen=True, slots=True)
class Chore:
    """A task with the doing that solves it and doings that must not pass for solving it."""

    prompt: str
    check: list[dict[str, Any]]
    oracle: Doing
    files: Mapping[str, str] = field(default_factory=dict)
    answer: str | None = None  # what the last reply must say, where that is asked for
    cheats: Sequence[Doing] = ()

    def row(self, name: str, topic: str) -> dict[str, Any]:
        """As a row of data."""
        prompt = f"{self.prompt}\n{DONE if self.answer is None else REPLY}"
        meta = {
            "task": name,
            "topic": topic,
            "setup": {"files": dict(self.files)},
            "check": self.check,
            "oracle": dict(self.oracle),
            "cheats": [dict(cheat) for cheat in self.cheats],
        }
        return {"prompt": prompt, "answer": self.answer, "meta": meta}


def runs(command: Sequence[str], cases: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Steps that run a command on each input (standard input, expected output)."""
    limits = {"wall_s": 10.0, "cpu_s": 2.0}
    return [{"run": list(command), "stdin": a, "equals": b, "limits": limits} for a, b in cases]


def asks(prompt: str, answer: str, *, files: Mapping[str, str], guesses: Sequence[str]) -> Chore:
    """A task whose last reply is judged; `guesses` are wrong replies that look right."""
    return Chore(
        prompt,
        check=[{"answer": True}],
        oracle={"answer": f"<answer>{answer}</answer>"},
        files=files,
        answer=answer,
        cheats=[
            *({"answer": f"<answer>{guess}</answer>"} for guess in guesses),
            {"answer": f"<answer>{' '.join([answer, *guesses])}</answer>"},  # all of them at once
            {"answer": f"{answer}<answer></answer>"},
        ],
    )


def hard_coded(language: str, cases: Sequence[tuple[str, str]]) -> str:
    """A program that knows only these cases."""
    if language == "sh":
        return f"printf '%s' '{cases[0][1]}'\n"
    return f"import sys\n\nprint({dict(cases)!r}.get(sys.stdin.read(), ''), end='')\n"
