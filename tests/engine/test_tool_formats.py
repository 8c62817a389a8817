"""Tool calls as models write them, read from one turn's text; malformed ones become errors to tell."""

import time

import pytest

from verigrad.engine import tools
from verigrad.engine.tool_formats import hermes_calls, llama_json_calls, qwen_xml_calls, text_calls
from verigrad.engine.tools import Call

TOOLS = tools.load(["shell", "edit_file"])


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("<tool>shell ls -l</tool>", [Call("shell", {"command": "ls -l"})]),
        ("let me see <tool>shell\n  ls\n  pwd\n</tool>\n", [Call("shell", {"command": "  ls\n  pwd"})]),
        ("<tool>shell <tool>shell ls</tool>", [Call("shell", {"command": "ls"})]),
        ('<tool>edit_file {"path": "a", "new": "b"}</tool>', [Call("edit_file", {"path": "a", "new": "b"})]),
        ("<tool>shell {a,b}</tool>", [Call("shell", {"command": "{a,b}"})]),  # no JSON: as it stands
        ("<tool>fly high</tool>", [Call("fly", {"input": "high"})]),
        ("the answer is 4", []),
        ("<tool>shell ls", []),
    ],
)
def test_plain_text_calls(text, calls):
    assert text_calls(text, TOOLS) == calls


@pytest.mark.parametrize(
    ("parse", "text", "calls"),
    [
        (hermes_calls, 'ok <tool_call>\n{"name": "shell", "arguments": {"command": "ls"}}\n</tool_call>',
         [Call("shell", {"command": "ls"})]),
        (hermes_calls, '<tool_call>{"name": "shell", "arguments": "{\\"command\\": \\"ls\\"}"}</tool_call>',
         [Call("shell", {"command": "ls"})]),
        (hermes_calls, "no call", []),
        (qwen_xml_calls, "<tool_call>\n<function=shell>\n<parameter=command>\nls\n-l\n</parameter>\n"
         "</function>\n</tool_call>", [Call("shell", {"command": "ls\n-l"})]),
        (llama_json_calls, '{"name": "shell", "parameters": {"command": "ls"}}',
         [Call("shell", {"command": "ls"})]),
        (llama_json_calls, '{"answer": 4}', []),
    ],
)  # fmt: skip
def test_calls_of_chat_templates(parse, text, calls):
    assert parse(text, TOOLS) == calls


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (hermes_calls, "<tool_call>{'name': 1}</tool_call>"),
        (hermes_calls, '<tool_call>{"name": "shell", "arguments": [1]}</tool_call>'),
        (hermes_calls, '<tool_call>{"name": {"a": 1}}</tool_call>'),
        (hermes_calls, '<tool_call>{"name": "shell"'),
        (hermes_calls, "<tool_call>" + "[" * 100_000 + "</tool_call>"),
        (hermes_calls, '<tool_call>{"name": "shell", "arguments": {"command": ' + "1" * 10_000 + "}}"),
        (qwen_xml_calls, "<tool_call>shell</tool_call>"),
        (llama_json_calls, '{"name": "shell", "parameters": '),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_an_error_to_tell(parse, text):
    (call,) = parse(text, TOOLS)
    assert call.error


@pytest.mark.parametrize("parse", [text_calls, hermes_calls, qwen_xml_calls, llama_json_calls])
@pytest.mark.parametrize("tag", ["<tool>", "<tool_call>", "<tool_call><function=", '{"name":'])
def test_a_flood_of_tags_is_read_in_linear_time(parse, tag):
    started = time.monotonic()
    parse(tag * 20_000, TOOLS)
    assert time.monotonic() - started < 2
