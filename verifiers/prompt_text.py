"""A problem's prompt, text or chat messages -> the text that was asked."""

from collections.abc import Mapping
from typing import Any


def asked(prompt: Any) -> str:
    """The prompt itself, or the text of the last message that the user wrote; "" when there is none."""
    if isinstance(prompt, str):
        return prompt
    messages = [one for one in prompt or () if isinstance(one, Mapping) and one.get("role") == "user"]
    content = messages[-1].get("content") if messages else ""
    if isinstance(content, str):
        return content
    parts = [part.get("text") for part in content or () if isinstance(part, Mapping)]
    return "\n".join(part for part in parts if isinstance(part, str))
