"""One small task for an agent -> a row of data: what is asked, its files, its check, its oracle."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Doing = Mapping[str, Any]
"""What somebody does about a task: {"files": {path: text}, "commands": [...], "answer": last reply}."""

MARKS = ("east", "west", "north", "south", "may", "june", "july", "one", "two", "six", "red", "blue")

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
    renamed: Sequence[str] = ()  # files and folders that are called otherwise in each row

    def row(self, name: str, topic: str, rng: random.Random) -> dict[str, Any]:
        """As a row of data; `rng` draws the names of what is `renamed`, everywhere in the row."""
        prompt = f"{self.prompt}\n{DONE if self.answer is None else REPLY}"
        meta = {
            "task": name,
            "topic": topic,
            "setup": {"files": dict(self.files)},
            "check": self.check,
            "oracle": dict(self.oracle),
            "cheats": [dict(cheat) for cheat in self.cheats],
        }
        row: dict[str, Any] = {"prompt": prompt, "meta": meta}
        if self.answer is not None:
            row["answer"] = self.answer
        for path in self.renamed:
            stem, dot, ending = path.partition(".")
            other = f"{stem}_{rng.choice(MARKS)}{rng.randint(10, 99)}{dot}{ending}"
            row = replaced(row, re.compile(rf"(?<![\w.]){re.escape(path)}(?!\w)"), other)
        return row


def replaced(value: Any, old: re.Pattern[str], new: str) -> Any:
    """Plain data with every match in its texts and keys replaced."""
    if isinstance(value, str):
        return old.sub(new, value)
    if isinstance(value, Mapping):
        return {old.sub(new, key): replaced(one, old, new) for key, one in value.items()}
    if isinstance(value, list):
        return [replaced(one, old, new) for one in value]
    return value


def runs(command: Sequence[str], cases: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Steps that run a command on each input (standard input, expected output)."""
    limits = {"wall_s": 10.0, "cpu_s": 2.0}
    return [{"run": list(command), "stdin": a, "equals": b, "limits": limits} for a, b in cases]


def asks(
    prompt: str, answer: str, *, files: Mapping[str, str], guesses: Sequence[str], renamed: Sequence[str] = ()
) -> Chore:
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
        renamed=renamed,
    )


def hard_coded(language: str, cases: Sequence[tuple[str, str]]) -> str:
    """A program that knows only these cases."""
    if language == "sh":
        return f"printf '%s' '{cases[0][1]}'\n"
    return f"import sys\n\nprint({dict(cases)!r}.get(sys.stdin.read(), ''), end='')\n"
