"""A completion as other libraries hold it, text or chat -> its text; columns of values -> one row each."""

from collections.abc import Mapping, Sequence
from typing import Any


def text_of(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """What the last assistant message says; text is itself."""
    if isinstance(completion, str):
        return completion
    for message in reversed(completion):
        if message.get("role") == "assistant":
            return content_text(message.get("content"))
    return ""


def content_text(content: Any) -> str:
    """A message's content as text: its text parts joined, where it is a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else ()
    return "".join(part.get("text", "") for part in parts if isinstance(part, Mapping))


def rows_of(columns: Mapping[str, Any], num_rows: int, *, what: str) -> list[dict[str, Any]]:
    """Columns of `num_rows` values -> rows; ValueError for a column of another length."""
    for name, values in columns.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != num_rows:
            found = f"{len(values)} values" if hasattr(values, "__len__") else type(values).__name__
            raise ValueError(
                f"{what} was given {name!r} as {found}; expected a list of {num_rows}, one per completion"
            )
    return [{name: values[at] for name, values in columns.items()} for at in range(num_rows)]
