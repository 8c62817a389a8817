"""Preference data: every format reads as the same pairs, recorded rollouts become some, nonsense is told."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from tests.tiny import config, rollout, tokenizer
from verigrad.engine import examples, rollout_file
from verigrad.engine.config import ConfigError, DataConfig, PromptsConfig
from verigrad.engine.preference_data import (
    WithTwins,
    pair_form,
    require_source,
    single_form,
    sources,
    twins_of,
)
from verigrad.engine.preference_rows import Labelled, Pair, encode, to_labelled, to_pair
from verigrad.engine.prompts import Prompter
from verigrad.engine.rollout_pairs import answers_of_run, is_run, pairs_of_run
from verigrad.engine.rows import BadRow
from verigrad.engine.schema import Episode, VerifiedGroup
from verigrad.engine.sft_rows import Encoder
from verigrad.verifiers.base import Problem, Verdict

TEMPLATE = (
    "{% for m in messages %}{{ '(' if m['role'] == 'user' else '{' }}{{ m['content'] }}"
    "{{ ')' if m['role'] == 'user' else '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '{' }}{% endif %}"
)


def encoder(*, chat=False, max_length=60):
    tok = tokenizer()
    if chat:
        tok.chat_template = TEMPLATE
    return Encoder(
        Prompter(tok, PromptsConfig()), eos_ids=[1], max_length=max_length, setting="prefer.max_length"
    )


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def text_of(example):
    return tokenizer().decode(example.token_ids)


def learned(example):
    ids = [i for i, on in zip(example.token_ids, example.loss_mask, strict=True) if on]
    return tokenizer().decode(ids)


# Rows ------------------------------------------------------------------------------------------------------

SAME = [
    {"prompt": "1+1=", "chosen": "2", "rejected": "3"},
    {"prompt": "1+1=", "chosen": [said("2")], "rejected": [said("3")]},
    {"question": "1+1=", "chosen": "2", "rejected": "3"},
]
IN_MESSAGES = [
    {"prompt": [user("1+1=")], "chosen": [said("2")], "rejected": [said("3")]},
    {"chosen": [user("1+1="), said("2")], "rejected": [user("1+1="), said("3")]},
    {"prompt": "1+1=", "chosen": [user("1+1="), said("2")], "rejected": [user("1+1="), said("3")]},
    {"chosen": "\n\nHuman: 1+1=\n\nAssistant: 2", "rejected": "\n\nHuman: 1+1=\n\nAssistant: 3"},
]


@pytest.mark.parametrize("row", SAME)
def test_every_format_of_text_reads_as_the_same_pair(row):
    assert to_pair(row, {"prompt": "question"} if "question" in row else {}) == Pair("1+1=", "2", "3")


@pytest.mark.parametrize("row", IN_MESSAGES)
def test_every_format_of_messages_reads_as_the_same_pair(row):
    assert to_pair(row, {}) == Pair([user("1+1=")], "2", "3")


def test_whole_conversations_are_cut_before_the_turn_they_part_in():
    shared = [user("a"), said("b"), user("c")]
    pair = to_pair({"chosen": [*shared, said("d")], "rejected": [*shared, said("e")]}, {})
    assert (pair.prompt, pair.chosen, pair.rejected) == (shared, "d", "e")
    # the same answer, then other questions: the answers begin with the turn they share
    longer = to_pair(
        {"chosen": [user("a"), said("b"), user("c"), said("d")], "rejected": [user("a"), said("b")]}, {}
    )
    assert longer.prompt == [user("a")]
    assert longer.chosen == [said("b"), user("c"), said("d")]
    assert longer.rejected == "b"


def test_what_stands_beside_a_pair_is_read():
    row = {**SAME[0], "p_chosen": "0.75", "by": 2}
    assert to_pair(row, {}, margin_column="by") == Pair("1+1=", "2", "3", p_chosen=0.75, margin=2.0)
    assert to_pair({**SAME[0], "p_chosen": None}, {}).p_chosen == 1.0


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "a", "chosen": "b"}, "has no column 'rejected'"),
        ({"prompt": "a", "completion": "b", "label": True}, "for prefer.loss = 'kto'"),
        ({"chosen": "b", "rejected": "c"}, "has no column 'prompt'"),
        ({"prompt": " ", "chosen": "b", "rejected": "c"}, "has an empty prompt"),
        ({"prompt": "a", "chosen": " \n", "rejected": "c"}, "has an empty chosen answer"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "has an empty rejected answer"),
        ({"prompt": "a", "chosen": "b", "rejected": " b "}, "that is the rejected one"),
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, "chosen answer that is 3"),
        ({"prompt": "a", "chosen": [user("b")], "rejected": "c"}, "first message is of 'user'"),
        ({"prompt": "a", "chosen": [], "rejected": "c"}, "first message is of None"),
        ({"prompt": "a", "chosen": "\ud800", "rejected": "c"}, "half a surrogate pair"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "p_chosen": 1.5}, "p_chosen = 1.5"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "p_chosen": "often"}, "expected a number"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "p_chosen": float("nan")}, "expected a number"),
        ({"chosen": [user("a"), said("b")], "rejected": [user("a"), said("b")]}, "that is the rejected one"),
        ({"chosen": [user("a"), said("b")], "rejected": [user("x"), said("b")]}, "common beginning"),
        ({"prompt": "z", **IN_MESSAGES[1]}, "a prompt that is not in what chosen and rejected begin with"),
        ({"chosen": [user("a"), said("")], "rejected": [user("a"), said("b")]}, "whose content is no text"),
        ({"chosen": [user("a"), 7], "rejected": [user("a"), said("b")]}, "a message 2 that is 7"),
        ({"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"}, "nothing is answered"),
    ],
)
def test_a_malformed_pair_is_one_sentence(row, says):
    with pytest.raises(BadRow, match=says.replace("(", r"\(")) as raised:
        to_pair(row, {})
    assert "\n" not in str(raised.value)


def test_single_answers_and_pairs_as_single_answers():
    assert to_labelled({"prompt": "a", "completion": "b", "label": True}, {}) == [Labelled("a", "b", True)]
    assert to_labelled({"prompt": "a", "completion": "b", "label": "0"}, {}) == [Labelled("a", "b", False)]
    assert to_labelled(SAME[0], {}) == [Labelled("1+1=", "2", True), Labelled("1+1=", "3", False)]
    for row, says in (
        ({"prompt": "a", "completion": "b", "label": 0.5}, "label that is 0.5"),
        ({"prompt": "a", "completion": "b"}, "no column 'label'"),
        ({**SAME[0], "p_chosen": 0.7}, "single answers are good or bad"),
    ):
        with pytest.raises(BadRow, match=says):
            to_labelled(row, {})


def test_answers_are_learned_and_prompts_are_not():
    plain = encode(encoder(), "1+1=", "2")
    assert (text_of(plain), learned(plain)) == ("1+1=2<eos>", "2<eos>")
    chat = encoder(chat=True)
    one = encode(chat, [user("a"), said("b"), user("c")], "d")
    assert (text_of(one), learned(one)) == ("(a){b<eos>(c){d<eos>", "d<eos>")
    several = encode(chat, "a", [said("b"), user("c"), said("d")])
    assert (text_of(several), learned(several)) == ("(a){b<eos>(c){d<eos>", "b<eos>d<eos>")
    given = encode(chat, [user("x"), said("y"), user("a")], [said("b"), user("c"), said("d")])
    assert learned(given) == "b<eos>d<eos>"  # y was said before the answer began


# Sets ------------------------------------------------------------------------------------------------------


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(num, *, times=1):
    return [
        {"prompt": f"{i}+{k}-{k}=", "chosen": str(i), "rejected": "no"}
        for i in range(num)
        for k in range(times)
    ]


def test_a_bad_row_stops_with_its_file_and_line_or_is_counted(tmp_path):
    rows = [*numbered(2), {"prompt": "1=", "chosen": "1", "rejected": "1" * 70}, *numbered(1)]
    path = write(tmp_path / "p.jsonl", rows)
    says = "p.jsonl line 3: has 73 tokens, more than prefer.max_length = 60"
    with pytest.raises(ConfigError, match=says):
        examples.load(DataConfig(path=path), pair_form(encoder()), seed=0)
    split = examples.load(DataConfig(path=path, on_bad_row="skip", num_eval=0), pair_form(encoder()), seed=0)
    assert (len(split.train), split.num_skipped) == (3, 1)
    assert split.first_skipped.startswith(says)


def test_answers_of_the_same_tokens_prefer_nothing(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"prompt": "1=", "chosen": "é", "rejected": "ü"}])  # both unknown
    with pytest.raises(ConfigError, match="of the same tokens"):
        examples.load(DataConfig(path=path), pair_form(encoder()), seed=0)


def test_all_answers_to_a_held_out_prompt_are_held_out(tmp_path):
    rows = [row for i in range(10) for row in ({**numbered(10)[i], "rejected": bad} for bad in ("x", "y"))]
    path = write(tmp_path / "p.jsonl", rows)
    cfg = DataConfig(path=path, num_eval=3)
    pairs = examples.load(cfg, pair_form(encoder()), seed=0)
    assert (len(pairs.held_out), len(pairs.train), pairs.num_overlap) == (6, 14, 0)
    singles = examples.load(cfg, single_form(encoder()), seed=0)
    assert (len(singles.held_out), len(singles.train)) == (12, 28)
    assert Counter(one.good for one in singles.held_out) == {True: 6, False: 6}
    assert not {text_of(one.answer)[:4] for one in singles.held_out} & {
        text_of(one.answer)[:4] for one in singles.train
    }


def test_twins_answer_another_prompt_and_none_is_favoured(tmp_path):
    prompts = np.repeat(np.arange(50, dtype=np.uint64), 4)
    twins = twins_of(prompts)
    assert (prompts[twins] != prompts).all()
    assert max(Counter(twins.tolist()).values()) <= 4
    assert len(set(twins.tolist())) > 180
    assert set(twins_of(np.array([5, 9], np.uint64)).tolist()) == {0, 1}
    with pytest.raises(ConfigError, match="all 3 answers of one side are to the same prompt"):
        twins_of(np.array([5, 5, 5], np.uint64))

    path = write(tmp_path / "p.jsonl", numbered(6))
    split = examples.load(DataConfig(path=path, num_eval=0), single_form(encoder()), seed=0)
    both = WithTwins(split.train, max_length=8)
    for one in (both[i] for i in range(len(both))):
        prompt = text_of(one.answer).split("=")[0]
        assert text_of(one.mismatched).startswith(f"{prompt}=")
        assert len(one.mismatched.token_ids) <= 8
        assert any(one.mismatched.loss_mask)
    assert both.fingerprint != WithTwins(split.train, max_length=9).fingerprint


# Recorded rollouts -----------------------------------------------------------------------------------------

EPISODE = Episode(stop_reason="done", transcript=[], snapshot=None, num_turns=1, num_calls=0, num_errors=0)


def recorded(folder, step, problems):
    """{prompt: [(text, verdict or its changes)]} as the rollouts of one step."""
    groups = []
    for prompt, answers in problems.items():
        rollouts, verdicts = [], []
        for text, verdict, *changes in answers:
            made = dataclasses.replace(rollout([3], [4]), text=text)
            rollouts.append(dataclasses.replace(made, **(changes[0] if changes else {})))
            verdicts.append(verdict)
        groups.append(VerifiedGroup(Problem(f"id {prompt}", prompt, "x"), rollouts, verdicts))
    rollout_file.write(folder / "rollouts" / f"step_{step:06d}.parquet", step, groups, {})


RIGHT, WRONG, OPEN = Verdict.right(), Verdict.wrong(), Verdict.undecided("a sandbox died")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "one"
    recorded(
        folder,
        1,
        {
            "a=": [("r1", RIGHT), ("w1", WRONG), ("open", OPEN), ("cut", WRONG, {"finish_reason": "length"})],
            "b=": [("w", WRONG), ("w", WRONG), (" ", RIGHT)],  # its one right answer is empty
        },
    )
    recorded(
        folder,
        2,
        {
            "a=": [
                ("r2", RIGHT),
                ("r1", RIGHT),
                ("both", RIGHT),
                ("both", WRONG),
                ("half", Verdict(0.5, "partial")),
            ],
            "c=": [("r", RIGHT), ("e", WRONG, {"episode": EPISODE})],
        },
    )
    (folder / "config.toml").write_text('[prompts]\ntemplate = "plain"\n')
    return folder


def test_right_against_wrong_over_all_steps_and_never_the_undecided(run):
    rows = pairs_of_run(str(run), most=10, seed=0)
    pairs = {(row["prompt"], row["chosen"], row["rejected"]) for row in rows.table}
    assert pairs == {("a=", r, w) for r in ("r1", "r2") for w in ("w1", "half")}
    assert len(rows) == 4  # none twice
    assert rows.told == (
        "4 pairs of 1 problems (left out: 1 undecided, 1 cut off at their longest, 1 empty, 1 episodes)"
    )


@pytest.mark.parametrize("most", [1, 2, 3])
def test_at_most_so_many_pairs_of_a_problem_and_the_same_each_time(run, most):
    rows = pairs_of_run(str(run), most=most, seed=0)
    assert len(rows) == most
    assert rows.table == pairs_of_run(str(run / "rollouts"), most=most, seed=0).table
    used = Counter(row["chosen"] for row in rows.table)
    assert max(used.values()) - min(used.values()) <= 1


@pytest.mark.parametrize("number", range(5))
def test_an_answer_judged_both_ways_is_neither_also_where_few_are_kept(tmp_path, number):
    text = f"both {number}"
    answers = [(f"r{k}", RIGHT) for k in range(20)] + [(text, RIGHT), (text, WRONG)]
    recorded(tmp_path, 1, {"a=": answers})
    assert all(row["completion"] != text for row in answers_of_run(str(tmp_path), most=2, seed=0).table)


def test_single_answers_need_not_come_in_both_kinds(run):
    rows = answers_of_run(str(run / "rollouts" / "*.parquet"), most=5, seed=0)
    found = {(row["prompt"], row["completion"], row["label"]) for row in rows.table}
    assert found == {
        ("a=", "r1", True), ("a=", "r2", True), ("a=", "w1", False), ("a=", "half", False),
        ("b=", "w", False), ("c=", "r", True),
    }  # fmt: skip


def test_what_the_prompt_begins_the_answer_with_is_not_in_it_twice(tmp_path):
    recorded(tmp_path, 1, {"a=": [("<think>r", RIGHT), ("<think>w", WRONG)]})
    (row,) = pairs_of_run(str(tmp_path), most=1, seed=0, opening="<think>").table
    assert (row["chosen"], row["rejected"]) == ("r", "w")


def test_a_run_is_a_source_like_any_other(run):
    cfg = config(data={"path": str(run), "num_eval": 0}, prefer={"pairs_per_problem": 4})
    told = []
    require_source(cfg)
    split = examples.load(cfg.data, pair_form(encoder(), sources(cfg, tell=told.append)), seed=0)
    assert len(split.train) == 4
    assert told[0].startswith(f"{run}: 4 pairs of 1 problems")


def test_pairs_per_problem_is_for_runs(run, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1=", "chosen": "2", "rejected": "3"}\n')
    data = {"path": str(tmp_path / "rows.jsonl"), "num_eval": 0}
    with pytest.raises(
        ConfigError, match=r"^prefer.pairs_per_problem = 2 has no effect: data.path = .*rows.jsonl"
    ):
        require_source(config(data=data, prefer={"pairs_per_problem": 2}))
    require_source(config(data=data))
    require_source(config(data={**data, "eval_path": str(run)}, prefer={"pairs_per_problem": 2}))


def test_what_cannot_be_made_of_a_run_is_said(run, tmp_path):
    empty = tmp_path / "empty"
    (empty / "rollouts").mkdir(parents=True)
    assert is_run(str(empty))
    assert not is_run(str(tmp_path / "pairs.parquet"))
    with pytest.raises(ConfigError, match="holds no rollouts"):
        pairs_of_run(str(empty), most=1, seed=0)
    recorded(empty, 1, {"b=": [("w", WRONG), ("x", OPEN)]})
    with pytest.raises(ConfigError, match=r"none has both a right answer and a wrong one \(left out: 1 und"):
        pairs_of_run(str(empty), most=1, seed=0)
    (run / "config.toml").write_text('[prompts]\ntemplate = "boxed"\n')
    with pytest.raises(ConfigError, match=r"Set prompts.template = 'boxed'"):
        require_source(config(data={"path": str(run)}))
    with pytest.raises(ConfigError, match=r"data.columns has no effect"):
        require_source(config(data={"path": str(run), "columns": {"prompt": "q"}}))
    (run / "rollouts" / "step_000002.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        pairs_of_run(str(run), most=1, seed=0)
