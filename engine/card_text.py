"""Rows and lines of whatever text -> Markdown tables and lists that this text cannot break."""

from collections.abc import Iterable, Iterator, Sequence


def table(headings: Sequence[str], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table; what rows hold cannot break it."""
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    lines += [f"| {' | '.join(cell_of(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def cell_of(value: object) -> str:
    """Text that stays within its cell, and is no HTML."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    is_code = len(text) > 2 and text[0] == text[-1] == "`" and "`" not in text[1:-1]
    return text if is_code else text.replace("<", "&lt;")


def bullets(lines: Iterator[str]) -> str:
    """A list, or that there is nothing to list."""
    found = [f"- {cell_of(line)}" for line in lines]
    return "\n".join(found or ["None recorded."]) + "\n"


def quoted(text: str) -> str:
    """A Markdown quotation, line by line."""
    return "\n".join(f"> {line}".rstrip().replace("<", "&lt;") for line in text.strip().splitlines()) + "\n"


def bounded(value: float | None, low: float | None, high: float | None) -> str:
    """`0.412 [0.351, 0.473]`, as far as it is known."""
    if value is None:
        return "undefined"
    return f"{value:.3f}" + ("" if low is None or high is None else f" [{low:.3f}, {high:.3f}]")
