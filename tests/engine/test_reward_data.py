"""Rows for reward models: pairs, rankings, steps, annotators' votes; malformed rows, one line each."""

import json
import math

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.tiny import config, model_folder
from tests.tiny_rewards import write_lines
from verigrad.engine.config import ConfigError
from verigrad.engine.reward_card import Card
from verigrad.engine.reward_data import comparisons, to_plain, to_steps
from verigrad.engine.reward_sets import fold_of, read_sets
from verigrad.engine.reward_setup import folds_of
from verigrad.engine.reward_text import TextEncoder
from verigrad.engine.reward_votes import Vote, VotedRows, agreement, krippendorff_alpha, votes_of
from verigrad.engine.rows import BadRow, JsonLines, TableRows


def row(**values):
    return {"prompt": "1+1=", "chosen": "2", "rejected": "3", **values}


def test_the_more_probable_answer_of_a_pair_comes_first():
    plain = to_plain(row(p_chosen=0.25, by=1.5), {}, margin_column="by")
    assert (plain.answers, plain.p_chosen, plain.margin) == (["3", "2"], 0.75, -1.5)
    assert to_plain(row(p_chosen=0.5), {}).ranks == [0, 0]
    assert to_plain(row(), {}).ranks == [0, 1]


def test_rankings_are_sorted_and_their_ties_kept():
    plain = to_plain({"prompt": "x", "responses": ["a", "b", "c"], "ranks": [3, 1, 3]}, {})
    assert (plain.answers, plain.ranks) == (["b", "a", "c"], [0, 1, 1])
    assert to_plain({"prompt": "x", "responses": ["a", "b", "c"]}, {}).ranks == [0, 1, 2]


def test_lists_of_answers_are_best_of_several():
    plain = to_plain({"prompt": "x", "chosen": ["a"], "rejected": ["b", "c", "d"]}, {})
    assert (plain.answers, plain.ranks, plain.best_of) == (["a", "b", "c", "d"], [0, 1, 1, 1], True)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"prompt": "x", "responses": ["a"]}, "expected a list of at least two answers"),
        ({"prompt": "x", "responses": ["a", "b"], "ranks": [1, 1]}, "equal ranks for all"),
        ({"prompt": "x", "responses": ["a", "b"], "ranks": [1]}, "expected a number for each of 2 responses"),
        ({"prompt": "x", "responses": ["a", "b"], "ranks": [1, math.nan]}, "expected a number for each"),
        ({"prompt": "x", "responses": ["a", "a"]}, "one response at two ranks"),
        ({"prompt": "x", "responses": ["a", " "]}, "empty ranked answer"),
        ({"responses": ["a", "b"]}, "has no column 'prompt'"),
        ({"prompt": "x", "chosen": ["a"], "rejected": ["b", "a"]}, "prefers nothing"),
        ({"prompt": "x", "chosen": ["a"]}, "has no column 'rejected'"),
        (row(rejected="2"), "prefers nothing"),
        (row(p_chosen=1.5), "expected a probability"),
        (row(chosen="\ud800"), "surrogate"),
        (row(chosen=7), "expected text"),
    ],
)
def test_malformed_rows_say_what_is_wrong(values, says):
    with pytest.raises(BadRow, match=says):
        to_plain(values, {})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"steps": "a", "labels": [1]}, "expected a list of texts"),
        ({"steps": [], "labels": []}, "expected a list of texts"),
        ({"steps": ["a", "b"], "labels": [1]}, "expected one for each of 2 steps"),
        ({"steps": ["a"], "labels": [1.5]}, "expected true, false or a probability"),
        ({"steps": ["a"], "labels": ["yes"]}, "expected true, false or a probability"),
        ({"steps": ["a", "\n"], "labels": [1, 0]}, "has an empty step 2"),
        ({"steps": ["a\nb"], "labels": [1]}, "within step 1, where an answer would be cut"),
        ({"labels": [1]}, "has no column 'steps'"),
    ],
)
def test_malformed_steps_say_what_is_wrong(values, says):
    with pytest.raises(BadRow, match=says):
        to_steps({"prompt": "x", **values}, {}, separator="\n")


def test_labels_may_be_probabilities():
    assert to_steps({"prompt": "x", "steps": ["a\n", "b"], "labels": [True, 0.25]}, {}, separator="\n") == (
        "x", ["a\n", "b"], [1.0, 0.25],
    )  # fmt: skip


# Sets -------------------------------------------------------------------------------------------------------


def encoder():
    return TextEncoder(AutoTokenizer.from_pretrained(model_folder()), Card(max_length=64, eos_id=1), pad_id=0)


def read(tmp_path, rows, **sections):
    write_lines(tmp_path / "rows.jsonl", rows)
    data = {"path": str(tmp_path / "rows.jsonl"), "num_eval": 2, **sections.pop("data", {})}
    cfg = config(data=data, **sections)
    return read_sets(cfg, comparisons(cfg, encoder()))


def test_pairs_of_all_answers_that_are_not_tied(tmp_path):
    rows = [{"prompt": f"{k}=", "responses": ["a", "b", "c"], "ranks": [1, 1, 2]} for k in range(4)]
    [first, second] = read(tmp_path, rows).train[:]
    assert first.pairs == second.pairs == [(0, 2), (1, 2)]
    assert first.texts[0].num_answer == 1
    assert first.texts[0].reads == [len(first.texts[0].token_ids) - 1]


def test_prompts_of_other_held_out_sets_are_not_learned_from(tmp_path):
    rows = [row(prompt=f"{k}=") for k in range(10)]
    write_lines(tmp_path / "bench.jsonl", [row(prompt=" 3="), row(prompt="33=", subset="hard")])
    bench = {"path": str(tmp_path / "bench.jsonl")}
    data = read(tmp_path, rows, data={"evals": {"bench": bench}}, eval={"by": "subset"})
    assert list(data.evals) == ["held_out", "bench"]
    assert [one.category for one in data.evals["bench"]] == ["", "hard"]
    asked = {data.train[int(k)].prompts[0] for k in data.kept}
    held = {one.prompts[0] for one in data.evals["held_out"]}
    assert asked == {f"{k}=" for k in range(10) if k != 3} - held
    with pytest.raises(ConfigError, match=r"eval.by = 'topic': no held-out row has this column"):
        read(tmp_path, rows, eval={"by": "topic"})
    with pytest.raises(ConfigError, match="has the name of another held-out set"):
        read(tmp_path, rows, data={"evals": {"held_out": bench}})


def test_folds_go_by_the_prompt_alone():
    prompts = np.array([5, 7, 5, 9, 7], np.uint64)
    assert fold_of(prompts, 3).tolist() == [2, 1, 2, 0, 1]


def test_a_row_that_no_batch_can_hold_is_told_with_its_place(tmp_path):
    rows = [row(prompt=f"{k}=") for k in range(4)] + [row(chosen="2" * 30, rejected="3" * 30)]
    with pytest.raises(ConfigError, match=r"rows.jsonl line 5: has \d+ tokens in all its answers, more than"):
        read(tmp_path, rows, policy={"tokens_per_batch": 64})


# Annotators -------------------------------------------------------------------------------------------------


def test_votes_about_the_same_two_answers_become_one_row(tmp_path):
    rows = [
        row(annotator="ann", gap=1.0),
        row(chosen="3", rejected="2", annotator="bob", gap=3.0),
        row(annotator="eve", gap=2.0),
        row(prompt="2+2=", annotator="ann"),
        {"prompt": "x", "responses": ["a", "b"]},
    ]
    write_lines(tmp_path / "rows.jsonl", rows)
    voted = VotedRows(JsonLines(tmp_path / "rows.jsonl"), {}, how="share", margin_column="gap")
    assert len(voted) == 3
    assert voted.row(0)["p_chosen"] == pytest.approx(2 / 3)
    assert voted.row(0)["gap"] == pytest.approx((1 - 3 + 2) / 3)
    assert voted.row(1)["p_chosen"] == 1.0
    assert "p_chosen" not in voted.row(2)
    assert voted.place(1) == "rows.jsonl line 4"
    most = VotedRows(JsonLines(tmp_path / "rows.jsonl"), {}, how="majority", margin_column="")
    assert [most.row(k)["p_chosen"] for k in (0, 1)] == [1.0, 1.0]


def test_a_drawn_vote_is_a_tie(tmp_path):
    write_lines(tmp_path / "rows.jsonl", [row(), row(chosen="3", rejected="2")])
    most = VotedRows(JsonLines(tmp_path / "rows.jsonl"), {}, how="majority", margin_column="")
    assert most.row(0)["p_chosen"] == 0.5


def test_votes_of_a_held_out_set_become_one_row_too(tmp_path):
    said = [
        {"prompt": "9=", "better": chosen, "worse": rejected}
        for chosen, rejected in (("2", "3"), ("3", "2"), ("3", "2"))
    ]
    write_lines(tmp_path / "bench.jsonl", said)
    bench = {"path": str(tmp_path / "bench.jsonl"), "columns": {"chosen": "better", "rejected": "worse"}}
    rows = [row(prompt=f"{k}=") for k in range(6)]
    for votes, num in (("each", 3), ("majority", 1)):
        data = read(tmp_path, rows, data={"evals": {"bench": bench}}, reward={"votes": votes})
        assert len(data.evals["bench"]) == num
    assert list(data.evals["bench"][0].answers) == ["3", "2"]
    assert len(data.kept) == 4


def test_votes_of_one_file_are_read_with_each_sets_own_columns(tmp_path):
    both = [
        {
            "prompt": f"{k}=", "other": f"{k}?", "chosen": chosen, "rejected": rejected,
            "p_chosen": 1.0, "share": share,
        }
        for k in range(4)
        for chosen, rejected, share in (("2", "3", 0.5), ("3", "2", 1.0), ("3", "2", 1.0))
    ]  # fmt: skip
    again = {"path": str(tmp_path / "rows.jsonl"), "columns": {"prompt": "other", "p_chosen": "share"}}
    data = read(tmp_path, both, data={"num_eval": 0, "evals": {"again": again}}, reward={"votes": "share"})
    assert len(data.kept) == len(data.evals["again"]) == 4
    assert data.train[0].p_chosen == pytest.approx(2 / 3)
    assert data.evals["again"][0].p_chosen == pytest.approx((0.5 + 1 + 1) / 3)
    assert data.evals["again"][0].prompts[0] == "0?"


def test_alpha_by_hand():
    # Four units, two votes each, one disagreement: votes 5 first, 3 second. Observed 2, expected 30/7.
    counts = np.array([[2, 0], [2, 0], [0, 2], [1, 1]], float)
    assert krippendorff_alpha(counts) == pytest.approx(1 - 2 / (30 / 7))
    assert krippendorff_alpha(np.array([[2, 0], [0, 2], [1, 0]], float)) == 1.0
    assert math.isnan(krippendorff_alpha(np.array([[2, 0], [2, 0]], float)))


def test_agreement_names_the_annotator_who_differs():
    votes = [
        Vote(pair, name, "first" if (pair + (name == "eve")) % 2 else "second")
        for pair in range(20)
        for name in ("ann", "bob", "cat", "eve")
    ]
    found = agreement(votes)
    assert found["num_pairs"] == 20
    assert found["by_annotator"]["eve"] == {"agrees": 0.0, "num_votes": 20}
    assert found["by_annotator"]["ann"]["agrees"] == 1.0
    assert found["alpha_low"] <= found["alpha"] <= found["alpha_high"] < 0.5
    assert agreement([vote for vote in votes if vote.annotator == "ann"]) is None


def test_votes_are_read_whichever_way_a_pair_is_written(tmp_path):
    rows = [
        row(who="ann"),
        row(chosen="3", rejected="2", who="bob"),
        row(p_chosen=0.5, who="cat"),
        row(p_chosen=0.0, who="dan"),
        {"prompt": "1+1=", "chosen": "2"},
    ]
    write_lines(tmp_path / "rows.jsonl", [json.loads(json.dumps(each)) for each in rows])
    votes = votes_of(JsonLines(tmp_path / "rows.jsonl"), {"annotator": "who"})
    assert len({vote.pair for vote in votes}) == 1
    choices = [vote.choice for vote in votes]
    assert choices[1] == choices[3] != choices[0]
    assert choices[2] == "tie"


@pytest.mark.parametrize("share", [math.nan, 7, -0.1])
@pytest.mark.parametrize("how", ["majority", "share"])
def test_a_vote_that_is_no_probability_is_left_for_the_reader_to_refuse(share, how):
    rows = TableRows("rows", [row(p_chosen=share), row(p_chosen=1.0)])
    voted = VotedRows(rows, {}, how=how, margin_column="")
    assert len(voted) == 2
    with pytest.raises(BadRow, match="has p_chosen = "):
        to_plain(voted.row(0), {})
    assert len(votes_of(TableRows("rows", [row(p_chosen=share, annotator="ann")]), {})) == 0


def test_a_fold_that_holds_everything_is_told(tmp_path):
    rows = [row(prompt=f"{k}=") for k in range(3)]
    data = read(tmp_path, rows)  # two are held out, so one prompt is left
    cfg = config(reward={"members": 2, "split": "folds"})
    with pytest.raises(ConfigError, match="own fold, so that nothing is left for it"):
        folds_of(cfg, data)
