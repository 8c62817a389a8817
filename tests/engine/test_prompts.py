"""Prompts: one BOS, the prefill last, and a completion's text from its ids alone."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from verigrad.engine.config import ConfigError, PromptsConfig
from verigrad.engine.prompts import INSTRUCTIONS, Prompter
from verigrad.engine.recipes import ladder
from verigrad.verifiers.base import Attempt, Problem

CHAT = (
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
CHAT_WITH_BOS = "{{ bos_token }}" + CHAT
SUM = Problem("1", "57+48=?", "105")


def prompter(chat_template=None, tokenizer=None, **settings):
    tokenizer = tokenizer or ladder.new_tokenizer()
    tokenizer.chat_template = chat_template
    return Prompter(tokenizer, PromptsConfig(**settings))


def shown(prompter, problem=SUM):
    """The prompt's tokens, special ones written out."""
    return prompter.tokenizer.decode(prompter.token_ids(problem))


def test_a_text_prompt_gets_one_bos_and_the_prefill_as_one_token():
    ids = prompter(prefill="<think>").token_ids(SUM)
    assert ids == [2, *(ladder.ALPHABET.ids[c] for c in "57+48=?"), ladder.ALPHABET.ids["<think>"]]


@pytest.mark.parametrize("template", [CHAT, CHAT_WITH_BOS])
def test_bos_is_never_doubled(template):
    assert prompter(template).token_ids(SUM).count(2) == (1 if template is CHAT_WITH_BOS else 0)
    assert prompter().token_ids(Problem("1", "<bos>57+48=?", "105")).count(2) == 1
    assert prompter(CHAT_WITH_BOS.replace("{{ bos_token }}", "<bos><bos>")).token_ids(SUM).count(2) == 1


def test_the_prefill_follows_the_generation_prompt():
    assert shown(prompter(CHAT_WITH_BOS, prefill="<think>")) == "<bos>u:57+48=?;a:<think>"


def test_a_prefill_the_chat_template_already_writes_is_not_doubled():
    assert shown(prompter(CHAT + "<think>{{ '\\n' }}", prefill="<think>")) == "u:57+48=?;a:<think>\n"


def test_chat_is_used_where_there_is_a_template_unless_forbidden():
    assert shown(prompter(CHAT, chat="auto")) == "u:57+48=?;a:"
    assert shown(prompter(CHAT, chat="never")) == "<bos>57+48=?"
    assert shown(prompter(None, chat="auto")) == "<bos>57+48=?"
    with pytest.raises(ConfigError, match="has no chat template"):
        prompter(None, chat="always")


def test_a_system_message_comes_first_and_needs_a_template():
    assert shown(prompter(CHAT, system="be brief")) == "s:be brief;u:57+48=?;a:"
    with pytest.raises(ConfigError, match=r"prompts.system is set"):
        prompter(None, system="be brief")
    own = Problem("1", [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], "1")
    with pytest.raises(ConfigError, match="brings its own system message"):
        prompter(CHAT, system="be brief").token_ids(own)


def test_a_conversation_needs_a_chat_template():
    turns = [("user", "1+1=?"), ("assistant", "3"), ("user", "sure?")]
    problem = Problem("1", [{"role": role, "content": content} for role, content in turns], "2")
    assert shown(prompter(CHAT), problem) == "u:1+1=?;a:3;u:sure?;a:"
    with pytest.raises(ConfigError, match="a conversation of 3 messages, which needs a chat template"):
        prompter(None).token_ids(problem)
    one = Problem("1", [{"role": "user", "content": "57+48=?"}], "105")
    assert prompter(None).token_ids(one) == prompter(None).token_ids(SUM)


@pytest.mark.parametrize(("template", "word"), [("boxed", "\\boxed{}"), ("think_answer", "<answer>")])
def test_a_template_adds_its_instruction_below_the_problem(template, word):
    text = prompter(CHAT, template=template).text_for(SUM)
    assert text == f"u:57+48=?\n\n{INSTRUCTIONS[template]};a:"
    assert word in text


def test_text_is_prefill_and_completion_without_special_tokens():
    ids = [ladder.ALPHABET.ids[t] for t in ("1", "</think>", "\\boxed{", "2", "}", "<eos>", "<pad>")]
    assert prompter(prefill="<think>").text_of(ids) == "<think>1</think>\\boxed{2}"
    assert prompter(prefill="<think>").opening == "<think>"


def test_spaces_before_punctuation_survive():
    ids = [ladder.ALPHABET.ids[c] for c in "a , b . ? z"]
    assert prompter().text_of(ids) == "a , b . ? z"


def byte_pairs():
    """`a` and `b` are tokens, and so is `ab`: encoding what [a, b] decodes to gives another token."""
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2, "</s>": 3}, merges=[("a", "b")]))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    fast.add_special_tokens({"additional_special_tokens": [AddedToken("</think>", special=True)]})
    return fast


def test_completion_ids_that_encoding_would_not_give_are_decoded_as_they_are():
    tokenizer = byte_pairs()
    assert prompter(tokenizer=tokenizer).text_of([0, 1, 2, 3]) == "abab"
    assert tokenizer.encode("abab") == [2, 2]  # what a round trip would have made of it


def test_thinking_tags_are_read_even_where_they_are_special_tokens():
    tokenizer = byte_pairs()
    ids = [0, tokenizer.convert_tokens_to_ids("</think>"), 1, 3]
    assert prompter(tokenizer=tokenizer).text_of(ids) == "a</think>b"


def test_a_tokenizer_without_bos_gets_none():
    assert prompter(tokenizer=byte_pairs()).token_ids(Problem("1", "ab", "")) == [2]


def test_the_hash_changes_with_what_shapes_a_prompt():
    hashes = {
        prompter().template_hash,
        prompter(CHAT).template_hash,
        prompter(CHAT_WITH_BOS).template_hash,
        prompter(CHAT, template="boxed").template_hash,
        prompter(CHAT, prefill="<think>").template_hash,
    }
    assert len(hashes) == 5
    assert prompter(CHAT).template_hash == prompter(CHAT).template_hash


@pytest.mark.parametrize(
    ("template", "prefill", "opening"),
    [
        (CHAT.replace("a:", "a:<think>\n"), "", "<think>\n"),
        (CHAT.replace("a:", "a:<think>"), "Well, ", "<think>Well, "),
        (CHAT.replace("a:", "a:<think>"), "<think>", "<think>"),
        (CHAT.replace("a:", "a:<think></think>"), "", ""),
        (CHAT, "", ""),
    ],
)
def test_a_thought_that_the_template_opens_is_one_for_the_verifier(template, prefill, opening):
    built = prompter(template, prefill=prefill)
    assert built.opening == opening
    cut = built.text_of([ladder.ALPHABET.ids[piece] for piece in ("\\boxed{", "6", "}")])
    attempt = Attempt(cut)
    assert attempt.final_text == ("" if "<think>" in opening else cut)
