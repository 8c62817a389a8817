"""`verigrad label`: what the judge says becomes rows; failures and kills change nothing."""

import json
import os
import re
import signal
import time

import pytest

from tests.engine.test_resume import kill_when, rows
from tests.judge_server import Scripted, parts
from tests.tiny import Forked, model_folder
from verigrad.engine import label_rows
from verigrad.engine.config import Config, ConfigError, load
from verigrad.engine.label_run import JUDGEMENTS
from verigrad.engine.run import read_jsonl

RECIPE = """\
[train]
seed = 3
[run]
folder = "run"
[data]
path = "rows.jsonl"
[rollout]
groups_per_step = 4
max_prompt_tokens = 40
max_tokens = 8
backend = "transformers"
[judge]
model = "m"
retries = 0
timeout_s = 20
[label]
"""
ROWS = [
    {"prompt": f"question {n}", "chosen": "good " * (1 + n % 3), "rejected": "bad", "id": f"r{n}"}
    for n in range(10)
]


def write(folder, label, *, data=ROWS, **files):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    (folder / "recipe.toml").write_text(RECIPE + label)
    for name, text in files.items():
        (folder / name).write_text(text)


def label(folder, server, *overrides):
    return Forked("label", "recipe.toml", f"judge.url={server.url}", *overrides, folder=folder).wait(120)


def prefers_good(asked, number):
    """A judge that knows: the answer with more `good` in it."""
    said = parts(asked)
    if "answer 2" not in said:
        return "7"
    first = said["answer 1"].count("good") >= said["answer 2"].count("good")
    p = 0.9 if first else 0.2
    return {"text": "1" if first else "2", "probs": {"1": p, "2": 1 - p}}


def labels(folder):
    return rows(folder / "run/labels.jsonl")


def test_both_orders_make_a_soft_label_with_all_it_stands_on(tmp_path):
    write(tmp_path, 'task = "prefer"\n')
    with Scripted(prefers_good) as server:
        status, printed = label(tmp_path, server)
    assert status == 0, printed
    made = labels(tmp_path)
    assert len(made) == 10
    assert len(server.requests) == 20
    for row in made:
        source = next(one for one in ROWS if one["id"] == row["problem_id"])
        assert (row["prompt"], row["chosen"], row["rejected"]) == tuple(
            source[name] for name in ("prompt", "chosen", "rejected")
        )
        assert row["p_chosen"] == pytest.approx((0.9 + 0.8) / 2)
        assert (row["tie"], row["agreed"], [one["raw"] for one in row["judgements"]]) in (
            (False, True, ["1", "2"]), (False, True, ["2", "1"]))  # fmt: skip
        assert set(row["prompt_hash"]) == {"pair"}
        assert row["principle"]
    (first, *_), metrics = rows(tmp_path / f"run/{JUDGEMENTS}"), rows(tmp_path / "run/metrics.jsonl")
    assert first["asked"].count(first["asked"][-10:])
    assert [row["num_rows"] for row in metrics] == [4, 4, 2]
    assert all((row["agreement"], row["undecided_frac"], row["first_frac"]) == (1, 0, 0.5) for row in metrics)
    assert "as the rows' own labels" in printed
    assert "sk-" not in (tmp_path / f"run/{JUDGEMENTS}").read_text()


def test_which_answer_a_row_calls_better_is_not_told_by_the_order(tmp_path):
    cfg = Config.model_validate({"label": {"task": "prefer"}})
    one = label_rows.to_item({"prompt": "q", "chosen": "b", "rejected": "a"}, cfg, 0)
    other = label_rows.to_item({"prompt": "q", "chosen": "a", "rejected": "b"}, cfg, 0)
    assert one.answers == other.answers
    assert (one.chosen, other.chosen) == ("b", "a")


def test_a_judge_that_goes_by_the_order_makes_ties_and_then_stops(tmp_path):
    write(tmp_path, "keep_ties = true\n")
    first = {"text": "1", "probs": {"1": 0.7, "2": 0.3}}
    with Scripted(lambda *_: first) as server:
        status, printed = label(tmp_path, server)
        made = labels(tmp_path)
        assert [(row["p_chosen"], row["tie"], row["agreed"]) for row in made] == [(0.5, True, False)] * 10
        many = [row | {"id": f"{row['id']}-{n}", "prompt": f"{n}"} for row in ROWS for n in range(4)]
        write(tmp_path, "keep_ties = true\n", data=many)
        status, printed = label(tmp_path, server, "run.folder=two", "rollout.groups_per_step=20")
    assert status == 1
    assert "same answer in both orders for 0% of 20 pairs" in printed
    assert not (tmp_path / "two/labels.jsonl").exists()


def test_ties_are_dropped_unless_asked_for(tmp_path):
    write(tmp_path, 'task = "prefer"\n')
    with Scripted(lambda *_: "1") as server:
        status, printed = label(tmp_path, server)
    assert status == 1
    assert "no label came of it" in printed


def test_scores_are_weighted_by_their_likelihood(tmp_path):
    write(tmp_path, 'task = "score"\n', data=[{"prompt": "q", "responses": ["a", "b"]}])
    with Scripted(lambda *_: {"text": "8", "probs": {"8": 0.5, "10": 0.25, "4": 0.25}}) as server:
        status, printed = label(tmp_path, server)
    assert status == 0, printed
    assert [(r["completion"], r["score"], r["label"]) for r in labels(tmp_path)] == [
        ("a", 7.5, True), ("b", 7.5, True)]  # fmt: skip
    assert labels(tmp_path)[0]["reward"] == pytest.approx(2 / 4.5)


def test_each_criterion_is_judged_by_itself_and_one_undecided_leaves_no_label(tmp_path):
    rubric = [{"criterion": "is good", "weight": 3}, {"criterion": "is short", "weight": 1},
              {"criterion": "is rude", "weight": -2}]  # fmt: skip
    data = [{"prompt": f"q{n}", "completion": text, "rubric": rubric} for n, text in enumerate("abc")]
    write(tmp_path, 'task = "rubric"\n', data=data)

    def judge(asked, number):
        answer, criterion = parts(asked)["answer"], re.search("Criterion: (.*)", asked)[1]
        if answer == "c" and criterion == "is short":
            return "perhaps"
        return "yes" if criterion == {"a": "is good", "b": "is rude", "c": "is good"}[answer] else "no"

    with Scripted(judge) as server:
        status, printed = label(tmp_path, server)
    assert status == 0, printed
    made = {row["completion"]: row for row in labels(tmp_path)}
    assert set(made) == {"a", "b"}
    assert (made["a"]["reward"], made["b"]["reward"]) == (0.75, 0.0)
    assert made["a"]["met"] == {"is good": True, "is short": False, "is rude": False}
    assert len(server.requests) == 9


def test_revisions_keep_the_whole_chain_and_go_by_drawn_principles(tmp_path):
    write(
        tmp_path,
        'task = "revise"\nrevisions = 2\nconstitution = "laws.txt"\n',
        data=[{"prompt": f"q{n}", "completion": "rude answer"} for n in range(12)],
        **{"laws.txt": "# a remark\nBe kind\nto all.\n\n\nBe brief.\n"},
    )

    def judge(asked, number):
        said = parts(asked)
        return (
            f"revised {said['answer']}" if "critique" in said else f"<think>hm</think>it is {said['answer']}"
        )

    with Scripted(judge) as server:
        status, printed = label(tmp_path, server)
    assert status == 0, printed
    made = labels(tmp_path)
    assert {link["principle"] for row in made for link in row["chain"]} == {"Be kind to all.", "Be brief."}
    for row in made:
        assert row["completion"] == "revised revised rude answer"
        assert row["first"] == "rude answer"
        assert [link["critique"] for link in row["chain"]] == [
            "it is rude answer",
            "it is revised rude answer",
        ]
    assert set(made[0]["prompt_hash"]) == {"critique", "revision"}
    (kept,) = tmp_path.rglob("constitution.txt")  # what it went by, whatever becomes of the file
    assert kept.read_text() == "# a remark\nBe kind\nto all.\n\n\nBe brief.\n"
    assert (kept.parent / "labels.jsonl").is_file()


def test_answers_are_sampled_where_a_row_has_none(tmp_path):
    write(tmp_path, "num_samples = 6\nkeep_ties = true\n", data=[{"prompt": "1+1="}, {"prompt": "2+2="}])
    with Scripted(lambda *_: "1") as server:
        status, printed = label(tmp_path, server, f"policy.model={model_folder()}", "rollout.temperature=1.5")
        assert status in (0, 1), printed
        sampled = rows(tmp_path / "run/answers/step_000001.jsonl")
        assert sorted(row["row"] for row in sampled) == [0, 1]
        assert all(len(row["answers"]) + row["left_out"] <= 6 for row in sampled)
        status, printed = label(tmp_path, server, "run.folder=other")
    assert status == 2
    assert "policy.model is empty, so none can be sampled" in printed


@pytest.mark.parametrize(
    ("task", "answers", "asked", "made"),
    [
        ("score", ["good", "bad", "good", "good"], 2, ["good", "good", "good", "bad"]),
        ("rubric", ["good", "bad", "good"], 2, ["good", "good", "bad"]),
        # The same two in either order, and two equal ones, which nobody is asked about.
        ("prefer", ["good", "bad", "bad", "good", "bad", "bad"], 2, ["good", "good"]),
    ],
)
def test_equal_answers_of_a_row_are_asked_about_once_and_cost_once(tmp_path, task, answers, asked, made):
    row = {"prompt": "q", "responses": answers}
    files = {"principles.md": "Be kind.\n\nBe brief.\n\nBe true.\n"} if task != "rubric" else {}
    files |= {"r.toml": '[[criteria]]\ncriterion = "is good"\n'} if task == "rubric" else {}
    more = 'rubric = "r.toml"\n' if task == "rubric" else 'constitution = "principles.md"\n'
    write(tmp_path, f'task = "{task}"\n{more}', data=[row], **files)

    def judge(asked, number):
        return prefers_good(asked, number) if task != "rubric" else "yes"

    with Scripted(judge) as server:
        status, printed = label(tmp_path, server, "judge.price_in=10")
    assert status == 0, printed
    assert len(server.requests) == asked
    assert [one.get("completion", one.get("chosen")) for one in labels(tmp_path)] == made
    (metrics,) = rows(tmp_path / "run/metrics.jsonl")
    spent = sum(one["cost"] for one in rows(tmp_path / f"run/{JUDGEMENTS}"))
    assert spent > 0
    assert metrics["num_judgements"] == asked
    assert metrics["num_equal"] == (task == "prefer")
    assert metrics["cost"] == pytest.approx(spent)
    assert sum(one["cost"] for one in labels(tmp_path)) == pytest.approx(spent)


def test_a_second_interrupt_ends_at_once_and_what_was_answered_is_kept(tmp_path):
    write(tmp_path, 'task = "prefer"\n')
    record = tmp_path / f"run/{JUDGEMENTS}"

    def hangs(asked, number):
        return prefers_good(asked, number) | {"sleep": 0 if number < 3 else 60}

    with Scripted(hangs) as server:
        words = (f"judge.url={server.url}", "judge.timeout_s=100", "judge.concurrency=3")
        run = Forked("label", "recipe.toml", *words, folder=tmp_path)
        while not (record.exists() and record.read_text().count("\n") == 3):
            assert run.running(), run.text()
            time.sleep(0.01)
        os.kill(run.pid, signal.SIGINT)
        time.sleep(0.5)
        os.kill(run.pid, signal.SIGINT)
        started = time.monotonic()
        status, printed = run.wait(30)
    assert time.monotonic() - started < 10
    assert status == 130, printed
    assert len(rows(record)) == 3
    with Scripted(prefers_good) as server:
        status, printed = label(tmp_path, server, "judge.timeout_s=100")
        assert status == 0, printed
        assert len(server.requests) == 17


def test_line_ends_within_an_answer_end_no_row(tmp_path):
    made = [{"row": 0, "answers": ["a\u2028b\x85c\u2029"]}, {"row": 1, "answers": ["d"]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made) + '{"row": 2, "ans')
    assert read_jsonl(path) == made


def test_killed_at_any_moment_it_asks_nothing_twice(tmp_path):
    write(tmp_path, 'task = "prefer"\n')
    with Scripted(prefers_good) as server:
        status, _ = label(tmp_path, server, "run.folder=whole")
        assert status == 0
        asked = {one["messages"][0]["content"] for one in server.requests}
    slow = lambda asked, n: prefers_good(asked, n) | {"sleep": 0.05}  # noqa: E731
    with Scripted(slow) as server:
        for wanted in (3, 9, 14):
            run = Forked(
                "label", "recipe.toml", f"judge.url={server.url}", "judge.concurrency=1", folder=tmp_path
            )
            record = tmp_path / f"run/{JUDGEMENTS}"
            kill_when(run, lambda at=record, num=wanted: at.exists() and at.read_text().count("\n") >= num)
            with record.open("a") as file:
                file.write('{"row": 1, "cut')
        status, printed = label(tmp_path, server)
        assert status == 0, printed
        counted = [one["messages"][0]["content"] for one in server.requests]
    assert set(counted) == asked
    assert len(counted) <= len(asked) + 3  # what was in flight at each kill
    assert labels(tmp_path) == rows(tmp_path / "whole/labels.jsonl")
    status, printed = label(tmp_path, server)
    assert status == 0
    assert "nothing left to do" in printed


def test_failures_are_undecided_and_too_many_stop_the_run_which_goes_on_later(tmp_path):
    write(tmp_path, 'task = "prefer"\n')
    with Scripted(lambda *_: {"status": 500, "body": b"down"}) as server:
        status, printed = label(tmp_path, server, "rollout.groups_per_step=10")
    assert status == 1
    assert "100% of 20 judgements are undecided (20 failed, 0 could not be read)" in printed
    assert not (tmp_path / "run/metrics.jsonl").exists()
    with Scripted(prefers_good) as server:
        status, printed = label(tmp_path, server, "rollout.groups_per_step=10")
        assert status == 0, printed
        assert len(server.requests) == 20  # a failure is no answer: all are asked again
    assert len(labels(tmp_path)) == 10


def test_one_failure_costs_one_label(tmp_path):
    write(tmp_path, 'task = "prefer"\n')

    def once(asked, number):
        return {"status": 500, "body": b""} if number == 3 else prefers_good(asked, number)

    with Scripted(once) as server:
        status, printed = label(tmp_path, server)
    assert status == 0, printed
    assert len(labels(tmp_path)) == 9
    assert "5.0% (1 failed, 0 could not be read)" in printed


def test_a_wrong_key_stops_at_once_and_costs_stop_resumably(tmp_path):
    write(tmp_path, 'task = "prefer"\n')
    with Scripted(lambda *_: {"status": 401, "body": b'{"error": {"message": "no such key"}}'}) as server:
        status, printed = label(tmp_path, server, "judge.concurrency=1")
        assert status == 1
        assert "no such key" in printed
        assert printed.count("\n") < 5
        assert len(server.requests) == 1
    prices = ("judge.price_in=10", "judge.concurrency=1")
    with Scripted(prefers_good) as server:
        status, printed = label(tmp_path, server, *prices, "judge.max_cost=0.0055")
        assert status == 1
        assert "the costs reached judge.max_cost = 0.0055 (0.0060 spent)" in printed
        assert len(server.requests) == 6
        status, printed = label(tmp_path, server, *prices, "judge.max_cost=1")
        assert status == 0, printed
        assert len(server.requests) == 20
    assert sum(row["cost"] for row in rows(tmp_path / "run/metrics.jsonl")) == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("judge.concurrency=2", "judge.concurrency has no effect without judge.url"),
        ("judge.url=http://x/v1 judge.max_prompt_tokens=9", "max_prompt_tokens has no effect with judge.url"),
        ("judge.url=http://x/v1 judge.max_cost=1", "no effect without judge.price_in"),
        ("label.task=revise", "needs principles; set label.constitution"),
        ("label.task=score judge.swap=false", "judge.swap has no effect with label.task = 'score'"),
        ("label.num_samples=1", "gives no pair"),
        ("label.rubric=x.toml", "label.rubric has no effect with label.task = 'prefer'"),
        ("label.constitution=nowhere.txt", "no such file"),
        ("judge.model=", "judge.model is empty"),
        ("verifier.name=exact_match", "[verifier] has no effect on `verigrad label`"),
    ],
)  # fmt: skip
def test_what_has_no_effect_or_cannot_be_is_refused(tmp_path, monkeypatch, overrides, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text('[data]\npath = "rows.jsonl"\n[judge]\nmodel = "m"\n[label]\n')
    with pytest.raises(ConfigError) as caught:
        load("r.toml", overrides.split(), verb="label")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": ""}, "has an empty prompt"),
        ({"answer": "x"}, "has no column 'prompt'"),
        ({"prompt": "q", "chosen": "a"}, "has a rejected that is None"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "fewer than two different answers"),
        ({"prompt": "q", "responses": "text"}, "expected a list of texts"),
        ({"prompt": "q", "responses": [" ", "b"]}, "expected text that is not empty"),
        ({"prompt": "q\ud800", "completion": "a"}, "half a surrogate pair"),
    ],
)
def test_a_malformed_row_is_told_with_its_line(tmp_path, monkeypatch, row, says):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, 'task = "prefer"\n', data=[row])
    with pytest.raises(ConfigError, match=r"rows.jsonl line 1: ") as caught:
        label_rows.read(load("recipe.toml", ["judge.url=http://x/v1"]))
    assert says in str(caught.value)


def test_conversations_are_judged_as_text():
    messages = [{"role": "user", "content": "hi"}]
    row = {"prompt": messages, "chosen": [*messages, {"role": "assistant", "content": "yes"}],
           "rejected": [*messages, {"role": "assistant", "content": "no"}]}  # fmt: skip
    item = label_rows.to_item(row, Config.model_validate({"label": {}}), 0)
    assert (item.request, set(item.answers), item.chosen) == ("hi", {"yes", "no"}, "yes")


def test_the_shipped_constitution_has_three_principles():
    assert len(label_rows.read_constitution("small_talk_constitution.txt")) == 3
