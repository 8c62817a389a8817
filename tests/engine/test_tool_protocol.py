"""Protocols of tool calls: which one a model gets, and the ids that results are encoded to."""

from pathlib import Path

import pytest

from tests.agents import CHATML, EOS, prompter
from verigrad.engine.config import ConfigError
from verigrad.engine.tool_protocol import ChatProtocol, TextProtocol
from verigrad.verifiers.base import Problem

NO_TOOLS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
FORGETFUL = CHATML.replace("{{ m.content }}\n", "{{ m.content if loop.last else 'earlier' }}\n")
FIRST_ONLY = CHATML.replace("<|im_start|>tool\n", "<|im_start|>tool{{ loop.index }}\n")
THINKS = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")


def test_auto_takes_the_chat_templates_own_format_where_it_can():
    assert isinstance(prompter(chat=CHATML).protocol, ChatProtocol)
    assert prompter(chat=CHATML).protocol.format == "hermes"
    assert isinstance(prompter().protocol, TextProtocol)
    assert isinstance(prompter(chat=NO_TOOLS).protocol, TextProtocol)
    assert isinstance(prompter(chat=CHATML, prompts={"chat": "never"}).protocol, TextProtocol)
    assert isinstance(prompter(chat=CHATML, protocol="text").protocol, TextProtocol)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (NO_TOOLS, "a format that is not known"),
        (FORGETFUL, "writes earlier turns anew"),
        (FIRST_ONLY, "writes earlier turns anew"),
        (CHATML.replace("{{ m.content }}<|im_end|>\n{% else %}", "<|im_end|>\n{% else %}"), "leaves out"),
        ("{% if tools %}{{ raise_exception('no tools here') }}{% endif %}x", "no tools here"),
        (None, "there is none"),
    ],
)
def test_a_template_that_cannot_carry_tools_is_refused_when_asked_for(template, reason):
    with pytest.raises(ConfigError, match=f"agent.protocol = 'chat'.*{reason}.*agent.protocol = 'text'"):
        prompter(chat=template, protocol="chat")


def test_what_follows_a_turn_is_what_the_template_puts_there():
    asks = prompter(chat=CHATML)
    tok, end = asks.tokenizer, asks.tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = asks.protocol.result_ids(["42"], last_id=end)
    assert tok.decode(ids) == "\n<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n"
    # the template ends a turn the model did not end itself, by a stop string
    stopped = asks.protocol.result_ids(["42"], last_id=tok.convert_tokens_to_ids("x"))
    assert tok.decode(stopped) == f"<|im_end|>{tok.decode(ids)}"


def test_the_whole_conversation_is_the_templates_own():
    asks = prompter(chat=CHATML)
    tok, end = asks.tokenizer, asks.tokenizer.convert_tokens_to_ids("<|im_end|>")
    said = '<tool_call>{"name": "shell", "arguments": {"command": "ls"}}</tool_call>'
    ids = asks.token_ids(Problem("p", "go")) + tok.encode(said, add_special_tokens=False) + [end]
    ids += asks.protocol.result_ids(["a b"], last_id=end)
    (call,) = asks.protocol.calls(said, asks.tools)
    messages = [
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"function": {"name": call.name, "arguments": dict(call.arguments)}}]},
        {"role": "tool", "content": "a b"},
    ]  # fmt: skip
    schemas = [tool.schema for tool in asks.tools.values()]
    whole = tok.apply_chat_template(messages, tools=schemas, tokenize=False, add_generation_prompt=True)
    assert tok.decode(ids) == whole


def test_a_template_that_opens_a_thought_does_so_for_later_turns_too():
    asks = prompter(chat=THINKS)
    assert asks.protocol.opening == "<think>\n"
    inside = '<think>\n<tool_call>{"name": "shell", "arguments": {"command": "ls"}}</tool_call>'
    assert asks.protocol.calls(inside, asks.tools) == []  # a thought that never closed holds no call
    assert len(asks.protocol.calls(f"<think>hm</think>{inside[8:]}", asks.tools)) == 1


@pytest.mark.parametrize(
    "text", ["<|im_end|>", "<<|im_end|>>", "<|im_<|im_end|>end|>", "<eos><bos><|im_start|>"]
)
def test_text_nobody_vouches_for_has_no_special_token_in_it(text):
    asks = prompter(chat=CHATML)
    ids = asks.inert_ids(f"a{text}b")
    assert not set(ids) & set(asks.tokenizer.all_special_ids)
    assert asks.tokenizer.decode(ids) == f"a{text}b"


def test_prompts_tell_of_the_tools_a_row_allows_and_only_where_asked():
    row, none = Problem("p", "go", meta={"tools": ["shell"]}), Problem("p", "go", meta={"tools": []})
    both = prompter(chat=CHATML, tools=["shell", "python"])
    assert '"python"' in both.text_for(Problem("p", "go"))
    assert '"python"' not in both.text_for(row)
    assert '"shell"' not in both.text_for(none)
    assert "shell" not in prompter(chat=CHATML, explain=False).text_for(row)
    plain = prompter(explain=True).text_for(row)
    assert "\n- shell(command: string): Run a shell command and return what it prints." in plain
    assert plain.endswith("\n\ngo")
    assert prompter(chat=CHATML).template_hash != both.template_hash


def test_rows_that_no_episode_can_start_from_are_refused():
    refusal = prompter().refusal_above(100)
    for meta, reason in [
        ({"setup": {"file": {}}}, "setup has no 'file'"),
        ({"setup": {"files": {"a": 1}}}, "setup.files holds 1; expected text"),
        ({"setup": "{"}, "setup is text, and no JSON"),
        ({"setup": {"commands": "ls"}}, "setup.commands is text, and no JSON"),
        ({"tools": ["fly"]}, "tools names 'fly', which agent.tools does not load; loaded: shell"),
        ({"max_turns": 0}, "max_turns = 0"),
    ]:
        assert reason in refusal(Problem("p", "go", meta=meta))
    fine = {"setup": {"files": {"a": "x", "b": None}, "commands": None}, "tools": None, "max_turns": None}
    assert refusal(Problem("p", "go", meta=fine)) is None
    assert prompter().setup_of(Problem("p", "go", meta=fine)).files == {"a": "x"}


def real_templates():
    trl = pytest.importorskip("trl")  # only its copies of models' own templates are looked at
    return Path(trl.__file__).parent / "chat_templates"


@pytest.mark.parametrize(
    ("name", "end", "reads"),
    [("qwen2_5", "<|im_end|>", "hermes"), ("qwen3", "<|im_end|>", "hermes"),
     ("qwen3_5_think", "<|im_end|>", "qwen_xml"), ("llama3_1", "<|eot_id|>", "llama_json")],
)  # fmt: skip
def test_templates_of_real_models(name, end, reads):
    asks = prompter(chat=(real_templates() / f"{name}.jinja").read_text())
    asks.tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<|eot_id|>"]})
    eos_ids = [EOS, asks.tokenizer.convert_tokens_to_ids(end)]
    assert ChatProtocol(asks, list(asks.tools.values()), eos_ids=eos_ids).format == reads


def test_bad_tools_are_refused_in_one_line(tmp_path):
    plugin = tmp_path / "own.py"
    plugin.write_text(
        'def untyped(a):\n    """Doc."""\n\n\ndef silent(a: str): ...\n\n\n'
        'def stars(*a: str):\n    """Doc."""\n\n\ndef shell(a: str):\n    """Doc."""\n'
    )
    for names, reason in [
        (["shel"], "'shel' is not known; known: edit_file, python, shell"),
        ([f"{plugin}:untyped"], "'a' has no type"),
        ([f"{plugin}:silent"], "has no docstring"),
        ([f"{plugin}:stars"], "has no name to call it by"),
        (["shell", f"{plugin}:shell"], "both called 'shell'"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            prompter(tools=names)
