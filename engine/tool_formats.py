"""What the model wrote in one turn -> the tool calls in it, for each format that models are trained on.

A call that cannot be read is a Call with an `error`, which the model is told. All of it takes linear time.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from verigrad.engine.tools import Call, Tool

Parse = Callable[[str, Mapping[str, Tool]], list[Call]]

OPEN, CLOSE = "<tool>", "</tool>"  # of the plain-text protocol
HERMES_OPEN, HERMES_CLOSE = "<tool_call>", "</tool_call>"
LLAMA_START = re.compile(r'\s*\{\s*"(?:name|type)"\s*:')


def text_calls(text: str, tools: Mapping[str, Tool]) -> list[Call]:
    """The plain-text protocol: `<tool>NAME BODY</tool>`, one call, which ends the turn.

    BODY is the tool's first argument as it stands, or a JSON object of arguments.
    """
    before, closed, _ = text.partition(CLOSE)
    if not closed:
        return []
    _, opened, inside = before.rpartition(OPEN)
    words = inside.split(None, 1)
    if not opened or not words:
        return [Call("", {}, f"expected {OPEN}NAME ...{CLOSE}, found no {'name' if opened else OPEN}")]
    name = words[0]
    rest = inside.lstrip()[len(name) :]
    first_line, _, others = rest.partition("\n")
    body = (
        rest.strip() if first_line.strip() else others.rstrip()
    )  # a body of its own lines keeps its indents
    names = tools[name].parameters if name in tools else []
    if body.startswith("{"):
        given = _json(body)
        if isinstance(given, dict) and set(given) & set(names):
            return [Call(name, given)]
    return [Call(name, {(names or ["input"])[0]: body} if body else {})]


def hermes_calls(text: str, tools: Mapping[str, Tool]) -> list[Call]:
    """Hermes, Qwen 2.5 and 3: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number."""
    return [
        _json_call(inside, "arguments") if closed else Call("", {}, f"{HERMES_OPEN} without {HERMES_CLOSE}")
        for inside, closed in _hermes_pieces(text)
    ]


def qwen_xml_calls(text: str, tools: Mapping[str, Tool]) -> list[Call]:
    """Qwen 3 Coder: `<tool_call><function=NAME><parameter=P>VALUE</parameter></function></tool_call>`."""
    calls = []
    for inside, closed in _hermes_pieces(text):
        head, opened, rest = inside.partition("<function=")
        name, named, body = rest.partition(">")
        if not closed or not opened or not named or head.strip():
            calls.append(Call("", {}, f"expected {HERMES_OPEN}<function=NAME>...</function>{HERMES_CLOSE}"))
            continue
        arguments = {}
        for piece in body.split("<parameter=")[1:]:
            key, _, value = piece.partition(">")
            arguments[key.strip()] = value.partition("</parameter>")[0].removeprefix("\n").removesuffix("\n")
        calls.append(Call(name.strip(), arguments))
    return calls


def llama_json_calls(text: str, tools: Mapping[str, Tool]) -> list[Call]:
    """Llama 3: the turn is `{"name": ..., "parameters": {...}}` and nothing else."""
    return [_json_call(text, "parameters")] if LLAMA_START.match(text) else []


CHAT_FORMATS: Mapping[str, Parse] = {
    "hermes": hermes_calls,
    "qwen_xml": qwen_xml_calls,
    "llama_json": llama_json_calls,
}
"""Formats of chat templates, by name."""


def _hermes_pieces(text: str) -> list[tuple[str, bool]]:
    """What stands in each pair of tags, and whether the pair was closed."""
    pieces = (piece.partition(HERMES_CLOSE) for piece in text.split(HERMES_OPEN)[1:])
    return [(inside, bool(closed)) for inside, closed, _ in pieces]


def _json_call(text: str, key: str) -> Call:
    found = _json(text)
    expected = f'expected a JSON object {{"name": ..., "{key}": {{...}}}}'
    if not isinstance(found, dict):
        return Call("", {}, f"the call is not JSON; {expected}")
    if isinstance(found.get("function"), dict):  # {"type": "function", "function": {...}}, as APIs have it
        found = found["function"]
    other = "parameters" if key == "arguments" else "arguments"
    name, arguments = found.get("name"), found.get(key, found.get(other, {}))
    if isinstance(name, dict) or not name or not isinstance(name, str):
        return Call("", {}, f"the call has no name; {expected}")
    if isinstance(arguments, str):  # encoded twice, as APIs have it
        arguments = _json(arguments)
    if not isinstance(arguments, dict):
        return Call(name, {}, f"the call's {key} are no object; {expected}")
    return Call(name, arguments)


def _json(text: str) -> Any:
    """The value, or None where it is no JSON; line breaks inside strings, which models write, may pass."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
