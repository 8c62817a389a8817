"""Rows to examples: which tokens are learned, and what is refused because it cannot be learned as written."""

import json

import pytest

from tests.tiny import tokenizer
from verigrad.engine.config import ConfigError, PromptsConfig
from verigrad.engine.prompts import Prompter
from verigrad.engine.rows import BadRow
from verigrad.engine.sft_rows import Encoder, Source, to_source

EOS = 1
PLAIN = (
    "{% for m in messages %}{{ m.role[0] }}={{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}a={% endif %}"
)
CUTS_THOUGHTS = (  # as several templates do: the thought stays in the last turn alone
    "{% for m in messages %}{{ m.role[0] }}="
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('/t')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}<eos>{% endfor %}{% if add_generation_prompt %}a={% endif %}"
)
ALWAYS_CUTS = PLAIN.replace("{{ m.content }}", "{{ m.content.split('/t')[-1] }}")
NO_END = PLAIN.replace("<eos>", ";")
MORE_AFTER_THE_END = PLAIN.replace("<eos>", "<eos>,")
OPENS = PLAIN.replace("a={% endif %}", "a=(t){% endif %}")
PICKY = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + PLAIN


def encoder(*, template=None, max_length=200, **prompts):
    tok = tokenizer()
    tok.chat_template = template
    return Encoder(Prompter(tok, PromptsConfig(**prompts)), eos_ids=[EOS], max_length=max_length)


def learned(enc, example):
    """The learned tokens' text, one string per unbroken run."""
    runs, before = [], False
    for token, own in zip(example.token_ids, example.loss_mask, strict=True):
        if own:
            runs = [*runs, ""] if not before else runs
            runs[-1] += enc.tokenizer.decode([token])
        before = own
    return runs


def talk(*contents, first="user"):
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def conversation(*contents):
    return to_source({"messages": talk(*contents)}, {})


# Prompt and completion --------------------------------------------------------------------------------------


def test_a_completion_is_learned_with_its_end_and_the_prompt_is_not():
    enc = encoder()
    example = enc(Source("1+1=", "2"))
    ids = enc.tokenizer.convert_tokens_to_ids(list("1+1=2"))
    assert list(example.token_ids) == [*ids, EOS]
    assert list(example.loss_mask) == [False] * 4 + [True] * 2


def test_an_end_that_the_completion_brings_is_not_doubled():
    enc = encoder()
    assert list(enc(Source("1+1=", "2<eos>")).token_ids) == list(enc(Source("1+1=", "2")).token_ids)


def test_the_prompt_is_the_one_the_sampler_would_be_given():
    enc = encoder(template=PLAIN, prefill="(")
    example = enc(Source("1+1=", "2)"))
    assert enc.tokenizer.decode(example.token_ids) == "u=1+1=<eos>a=(2)<eos>"
    assert learned(enc, example) == ["2)<eos>"]


def test_a_prompt_of_messages_with_a_completion_is_templated():
    enc = encoder(template=PLAIN)
    example = enc(to_source({"prompt": talk("1", "2", "3"), "completion": "4"}, {}))
    assert enc.tokenizer.decode(example.token_ids) == "u=1<eos>a=2<eos>u=3<eos>a=4<eos>"
    assert learned(enc, example) == ["4<eos>"]


def test_without_an_end_of_sequence_token_of_its_own_the_models_is_taken():
    tok = tokenizer()
    tok.eos_token = None
    enc = Encoder(Prompter(tok, PromptsConfig()), eos_ids=[2], max_length=9)
    assert enc.completion_ids("7")[-1] == 2


def test_a_row_that_is_too_long_is_malformed_and_never_cut():
    assert len(encoder(max_length=6)(Source("1+1=", "2")).token_ids) == 6
    with pytest.raises(BadRow, match=r"has 6 tokens, more than sft.max_length = 5"):
        encoder(max_length=5)(Source("1+1=", "2"))


# Conversations ----------------------------------------------------------------------------------------------


def test_every_assistant_turn_is_learned_and_nothing_else():
    enc = encoder(template=PLAIN)
    example = enc(conversation("1", "2", "3", "44"))
    assert enc.tokenizer.decode(example.token_ids) == "u=1<eos>a=2<eos>u=3<eos>a=44<eos>"
    assert learned(enc, example) == ["2<eos>", "44<eos>"]


def test_what_a_template_writes_after_the_end_is_not_learned():
    enc = encoder(template=MORE_AFTER_THE_END)
    example = enc(conversation("1", "2", "3", "4"))
    assert learned(enc, example) == ["2<eos>", "4<eos>"]
    assert enc.tokenizer.decode(example.token_ids).endswith("a=4<eos>")


def test_a_system_message_in_front_is_read():
    enc = encoder(template=PLAIN)
    messages = [{"role": "system", "content": "be"}, *talk("1", "2")]
    assert learned(enc, enc(to_source({"messages": messages}, {}))) == ["2<eos>"]


@pytest.mark.parametrize(
    ("template", "contents", "says"),
    [
        (
            CUTS_THOUGHTS,
            ("1", "x/t2", "3", "4"),
            "message 4 before which the chat template writes other text",
        ),
        (OPENS, ("1", "2"), "message 2 before which the chat template writes other text"),
        (ALWAYS_CUTS, ("1", "x/t2"), "message 2 of which the chat template leaves out a part"),
    ],
)
def test_a_template_that_rewrites_is_refused_with_the_way_out(template, contents, says):
    with pytest.raises(BadRow, match=says) as caught:
        encoder(template=template)(conversation(*contents))
    assert "'prompt' and 'completion'" in str(caught.value)


def test_a_template_that_cuts_thoughts_is_fine_where_there_is_none_to_cut():
    enc = encoder(template=CUTS_THOUGHTS)
    assert learned(enc, enc(conversation("1", "2", "3", "x/t4"))) == ["2<eos>", "x/t4<eos>"]


def test_a_template_whose_turns_never_end_is_refused():
    with pytest.raises(ConfigError, match="it would never learn to stop"):
        encoder(template=NO_END)(conversation("1", "2"))


def test_what_a_template_refuses_is_a_malformed_row():
    messages = [{"role": "system", "content": "be"}, *talk("1", "2")]
    with pytest.raises(BadRow, match="the chat template refuses: no system here"):
        encoder(template=PICKY)(to_source({"messages": messages}, {}))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "needs a chat template"),
        ({"template": PLAIN, "chat": "never"}, "needs a chat template"),
        ({"template": PLAIN, "system": "be"}, "prompts.system is set"),
        ({"template": PLAIN, "prefill": "("}, "prompts.prefill is set"),
    ],
)
def test_settings_that_a_conversation_cannot_follow_are_refused(given, says):
    with pytest.raises(ConfigError, match=says):
        encoder(**given)(conversation("1", "2"))


# Rows -------------------------------------------------------------------------------------------------------


def test_columns_are_renamed():
    row = {"question": "1+1=", "solution": "2", "other": 3}
    source = to_source(row, {"prompt": "question", "completion": "solution"})
    assert (source.prompt, source.completion) == ("1+1=", "2")


def test_messages_win_where_a_row_has_both():
    row = {"messages": talk("1", "2"), "prompt": "3", "completion": "4"}
    assert to_source(row, {}).completion is None
    assert to_source({**row, "messages": None}, {}).completion == "4"


def test_what_is_asked_ends_before_the_first_answer():
    assert conversation("1", "2", "3", "4").asked == talk("1")
    assert Source("1", "2").asked == "1"


def test_nulls_that_arrow_adds_are_dropped():
    messages = [{**message, "tool_calls": None} for message in talk("1", "2")]
    assert to_source({"messages": messages}, {}).prompt == talk("1", "2")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({}, "has no column 'prompt'"),
        ({"prompt": "1"}, "has no column 'completion'"),
        ({"promt": "1", "completion": "2"}, "did you mean 'promt'"),
        ({"prompt": "", "completion": "2"}, "empty prompt"),
        ({"prompt": "1", "completion": " \n"}, "empty completion"),
        ({"prompt": "1", "completion": None}, "has a completion that is None"),
        ({"prompt": "1", "completion": 7}, "has a completion that is 7"),
        ({"prompt": "1", "completion": talk("2")}, "has a completion that is"),
        ({"prompt": "1", "completion": json.loads('"\\ud800"')}, "half a surrogate pair"),
        ({"prompt": talk("1", "2"), "completion": "3"}, "ends with 'assistant'"),
        ({"messages": []}, "expected a list"),
        ({"messages": "hello"}, "expected a list"),
        ({"messages": ["hello"]}, "message 1 that is 'hello'"),
        ({"messages": [{"content": "x"}]}, "expected {role, content}"),
        (
            {"messages": [{"role": "user", "content": None}, *talk("2", first="a")]},
            "whose content is no text",
        ),
        ({"messages": talk("1", " ")}, "message 2 (assistant) whose content is no text"),
        ({"messages": talk("1")}, "end with another"),
        ({"messages": talk("1", "2", first="assistant")}, "begin with the assistant"),
        ({"messages": talk("1", json.loads('"\\udfff"'))}, "half a surrogate pair"),
    ],
)
def test_malformed_rows_say_what_is_wrong(row, says):
    with pytest.raises(BadRow) as caught:
        to_source(row, {})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(BadRow, match=r"data\.columns says it is the completion"):
        to_source({"prompt": "1", "answer": "2"}, {"completion": "anser"})
