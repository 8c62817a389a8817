"""A completion -> the program in it: its last fenced code block.

What counts as a fence is written down in docs/verifiers/program_output.md.
"""

import re
from dataclasses import dataclass

from verigrad.verifiers.base import Problem
from verigrad.verifiers.marked import Unreadable

OPENS = re.compile(r"([ \t]*)(`{3,}|~{3,})([^`\r\n]*)\r?")
MAX_PROGRAM = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Program:
    """Source text nobody trusts."""

    source: bytes
    tag: str  # what stands behind the opening fence: "python", "cpp", "" ...


def last_program(text: str) -> Program:
    """The last fenced block of a completion, without its fences and its indentation.

    Raises Unreadable when there is no block, the last one never closes or is blank, or its text is none.
    """
    block: tuple[str, list[str]] | None = None
    closed: tuple[str, list[str]] | None = None
    indent = fence = ""
    for line in text.split("\n"):
        if block is None:
            if opened := OPENS.fullmatch(line):
                indent, fence, tag = opened[1], opened[2], opened[3].strip()
                block = (tag, [])
        elif _closes(line, fence):
            block, closed = None, block
        else:
            block[1].append(line[len(indent) :] if line.startswith(indent) else line.lstrip(" \t"))
    if block is not None:
        raise Unreadable("its last code block never closes")
    if closed is None:
        raise Unreadable("no fenced code block")
    tag, lines = closed
    try:
        source = "\n".join(lines).encode() + b"\n"
    except UnicodeEncodeError:
        raise Unreadable("its last code block is not valid text") from None
    if not source.strip():
        raise Unreadable("its last code block is empty")
    if len(source) > MAX_PROGRAM:
        raise Unreadable(f"a program of {len(source)} bytes; at most {MAX_PROGRAM} are run")
    return Program(source, tag)


def _closes(line: str, fence: str) -> bool:
    """A closing fence: the opening one's character, at least as often, and nothing else."""
    bare = line.strip(" \t\r")
    return len(bare) >= len(fence) and not bare.strip(fence[0])


def gold_block(problem: Problem) -> str | None:
    """The response with the row's answer for its program, which an audit takes to be right; None without."""
    answer = problem.answer
    if not isinstance(answer, str) or not answer.strip():
        return None
    return answer if "```" in answer else f"```\n{answer}\n```"
