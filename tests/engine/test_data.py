"""Data: sources, bad rows, a split without leaks, and a stream that goes on where it stopped."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verigrad.engine.config import ConfigError, DataConfig
from verigrad.engine.data import ProblemStream, first_problem, load, load_evals, normalised
from verigrad.engine.settings import EvalSet
from verigrad.verifiers.base import Problem


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    return tmp_path


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def sums(num_rows, start=0):
    return [
        {"prompt": f"{i}+1=?", "answer": str(i + 1), "level": i % 3} for i in range(start, start + num_rows)
    ]


def read(path, **settings):
    return load(DataConfig(path=str(path), **{"num_eval": 0, **settings}), seed=0)


# Sources


def test_jsonl_rows_become_problems_with_the_rest_in_meta(here):
    write(here / "train.jsonl", [{"prompt": "1+1=?", "answer": "2", "level": 1, "id": "a"}])
    assert list(read("train.jsonl").train) == [Problem("a", "1+1=?", "2", {"level": 1, "id": "a"})]


def test_parquet_rows_become_problems(here):
    pq.write_table(pa.Table.from_pylist(sums(3)), here / "train.parquet")
    problems = read("train.parquet").train
    assert [(p.prompt, p.answer, p.meta["level"]) for p in problems] == [
        ("0+1=?", "1", 0), ("1+1=?", "2", 1), ("2+1=?", "3", 2),
    ]  # fmt: skip


def test_csv_values_stay_text(here):
    (here / "train.csv").write_text('prompt,answer\n"How many,\nin all?",007\nNext?,1e3\n')
    assert [(p.prompt, p.answer) for p in read("train.csv").train] == [
        ("How many,\nin all?", "007"), ("Next?", "1e3"),
    ]  # fmt: skip


def test_a_folder_is_read_as_a_hub_data_set(here):
    (here / "my_data").mkdir()
    write(here / "my_data/train.jsonl", sums(3))
    write(here / "my_data/test.jsonl", sums(2, start=10))
    data = read("my_data", eval_path="my_data")
    assert len(data.train) == 3
    assert [p.prompt for p in data.evals["my_data"]] == ["10+1=?", "11+1=?"]


def test_a_hub_id_that_cannot_be_loaded_is_one_line(here, monkeypatch):
    (here / "my_data").mkdir()
    write(here / "my_data/train.jsonl", sums(3))
    with pytest.raises(ConfigError, match=r"^'my_data' cannot be loaded as a data set, split 'dev': [^\n]+$"):
        read("my_data", split="dev")


def test_a_maker_makes_rows_from_seed_and_options(here):
    (here / "mine.py").write_text(
        "def rows(*, seed, n):\n    return [{'prompt': f'{seed} {i}', 'answer': i} for i in range(n)]\n"
    )
    data = load(DataConfig(path="mine.py:rows", options={"n": 3}, num_eval=1), seed=5)
    assert sorted(p.prompt for p in [*data.train, *data.evals["held_out"]]) == ["5 0", "5 1", "5 2"]


def test_line_separators_inside_json_do_not_split_a_row(here):
    (here / "train.jsonl").write_text(
        '{"prompt": "a\u2028b\x0b", "answer": "1"}\n'.replace("\x0b", "\\u000b")
    )
    assert read("train.jsonl").train[0].prompt == "a\u2028b\x0b"


# Columns and ids


def test_columns_are_renamed_and_aliases_known(here):
    write(here / "a.jsonl", [{"question": "1+1=?", "final": "2", "solution": "one and one"}])
    (problem,) = read("a.jsonl", columns={"prompt": "question", "answer": "final"}).train
    assert (problem.prompt, problem.answer, problem.meta) == ("1+1=?", "2", {"solution": "one and one"})
    write(here / "b.jsonl", [{"prompt": "p", "ground_truth": "2"}, {"prompt": "q", "solution": "3"}])
    assert [p.answer for p in read("b.jsonl").train] == ["2", "3"]


def test_a_missing_column_names_those_there_are(here):
    write(here / "a.jsonl", [{"question": "1+1=?", "answer": "2"}])
    with pytest.raises(
        ConfigError, match=r"a.jsonl line 1: has no column 'prompt'; it has question, answer; "
    ):
        read("a.jsonl")
    with pytest.raises(ConfigError, match=r"no column 'problem'; it has question, answer; data.columns says"):
        read("a.jsonl", columns={"prompt": "problem"})


def test_a_row_judged_by_tests_needs_no_answer(here):
    write(here / "a.jsonl", [{"prompt": "Print 1", "tests": [{"stdin": "", "stdout": "1"}]}])
    assert read("a.jsonl").train[0].meta["tests"][0]["stdout"] == "1"


def test_a_meta_column_is_spread(here):
    write(here / "a.jsonl", [{"prompt": "p", "answer": "1", "meta": {"tolerance": 0.1}, "level": 2}])
    assert read("a.jsonl").train[0].meta == {"tolerance": 0.1, "level": 2}


def test_ids_are_given_or_made_from_content_and_always_differ(here):
    rows = [{"prompt": "p", "answer": "1"}, {"prompt": "p", "answer": "1"}, {"prompt": "q", "answer": "1"}]
    write(here / "a.jsonl", [*rows, {"problem_id": 7, **rows[0]}, {"problem_id": 7, **rows[0]}])
    ids = [p.id for p in read("a.jsonl").train]
    assert len(set(ids)) == 5
    assert ids[3:] == ["7", "7#2"]
    called = [{"id": name, **rows[0]} for name in ("a#2", "a", "a", "a#2", "a")]
    write(here / "c.jsonl", called)  # a name that a repeat would have got
    assert [p.id for p in read("c.jsonl").train] == ["a#2", "a", "a#3", "a#2#2", "a#4"]
    write(here / "b.jsonl", rows[2:])
    assert read("b.jsonl").train[0].id == ids[2]  # wherever the row stands


def test_messages_are_prompts(here):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1=?"}]
    write(here / "a.jsonl", [{"prompt": messages, "answer": "2"}])
    assert read("a.jsonl").train[0].prompt == messages


def test_messages_of_a_table_have_no_keys_of_other_messages(here):
    prompt = [{"role": "system", "content": "x", "name": "me"}, {"role": "user", "content": "1+1=?"}]
    pq.write_table(pa.Table.from_pylist([{"prompt": prompt, "answer": "2"}]), here / "a.parquet")
    assert read("a.parquet").train[0].prompt == prompt


# Bad rows

BAD = [
    ('{"prompt": "1+1=?", "answer"', "is not JSON"),
    ("[1, 2]", "is a list, expected an object"),
    ('{"answer": "2"}', "has no column 'prompt'; it has answer"),
    ('{"prompt": "  ", "answer": "2"}', "has an empty prompt"),
    ('{"prompt": null, "answer": "2"}', "has a prompt that is None"),
    ('{"prompt": "1+1=?"}', "has no column 'answer'; it has prompt"),
    ('{"prompt": "1+1=?", "answer": null}', "has an empty answer"),
    ('{"prompt": "1+1=?", "answer": " "}', "has an empty answer"),
    ('{"prompt": "1+1 \\ud800", "answer": "2"}', "half a surrogate pair"),
    ('{"prompt": [], "answer": "2"}', "has a prompt that is []"),
    (
        '{"prompt": [{"content": "hi"}], "answer": "2"}',
        "message 1 is {'content': 'hi'}, expected {role, content}",
    ),
    ('{"prompt": [{"role": "user"}], "answer": "2"}', "message 1 (user) has no content"),
    ('{"prompt": [{"role": "assistant", "content": "hi"}], "answer": "2"}', "ends with 'assistant'"),
]


@pytest.mark.parametrize("text", ['[\n{"prompt": "1+1=?"}\n]\n', '[{"prompt": "1+1=?"}]'])
def test_a_json_array_is_told_from_json_lines(here, text):
    (here / "train.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=r"train\.jsonl line 1: looks like one JSON array"):
        read("train.jsonl")


def test_the_column_of_a_cut_line_lies_on_that_line(here):
    (here / "train.jsonl").write_text('{"prompt":\n{"prompt": "1+1=?", "answer": "2"}\n')
    with pytest.raises(
        ConfigError, match=r"train.jsonl line 1: is not JSON \(Expecting value at column 11\)"
    ):
        read("train.jsonl")


@pytest.mark.parametrize(("line", "message"), BAD)
def test_a_malformed_jsonl_row_is_named_by_file_and_line(here, line, message):
    good = '{"prompt": "0+1=?", "answer": "1"}\n'
    (here / "train.jsonl").write_text(
        f"{good}\n{good}{line}\n{good}"
    )  # the empty second line counts as a line
    with pytest.raises(ConfigError) as caught:
        read("train.jsonl")
    assert str(caught.value).startswith("train.jsonl line 4: ")
    assert message in str(caught.value)
    data = read("train.jsonl", on_bad_row="skip")
    assert (len(data.train), data.num_skipped) == (3, 1)


def test_bytes_that_are_no_text_are_a_malformed_row(here):
    (here / "train.jsonl").write_bytes(b'{"prompt": "\xff", "answer": "1"}\n')
    with pytest.raises(ConfigError, match=r"train.jsonl line 1: is not UTF-8"):
        read("train.jsonl")


def test_malformed_csv_rows_are_named_by_line(here):
    (here / "train.csv").write_text('prompt,answer\n"two\nlines",1\nq\nr,\ns,4\n')
    with pytest.raises(ConfigError, match=r"train.csv line 4: has 1 values, expected 2"):
        read("train.csv")
    data = read("train.csv", on_bad_row="skip")
    assert [p.prompt for p in data.train] == ["two\nlines", "s"]
    assert data.num_skipped == 2  # 'q' and 'r,'


def test_malformed_parquet_rows_are_named_by_row(here):
    rows = [{"prompt": "p", "answer": "1"}, {"prompt": None, "answer": "1"}]
    pq.write_table(pa.Table.from_pylist(rows), here / "train.parquet")
    with pytest.raises(ConfigError, match=r"train.parquet row 2: has a prompt that is None"):
        read("train.parquet")


def test_a_malformed_maker_row_is_named(here):
    (here / "mine.py").write_text("def rows(seed):\n    return [{'prompt': 'p', 'answer': 1}, 'q']\n")
    with pytest.raises(ConfigError, match=r"mine.py:rows row 2: is a str"):
        read("mine.py:rows")


def test_a_refused_problem_is_a_malformed_row(here):
    write(here / "a.jsonl", sums(12))

    def accept(problem):
        return "has a prompt of 6 tokens, at most 5 are allowed" if len(problem.prompt) > 5 else None

    with pytest.raises(ConfigError, match=r"a.jsonl line 11: has a prompt of 6 tokens"):
        load(DataConfig(path="a.jsonl", num_eval=0), seed=0, accept=accept)
    data = load(DataConfig(path="a.jsonl", num_eval=0, on_bad_row="skip"), seed=0, accept=accept)
    assert (len(data.train), data.num_skipped) == (10, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it has no rows"),
        ("\n\n", "it has no rows"),
        ("x\ny\n", "all 2 rows are malformed; the first: a.jsonl line 1"),
    ],
)
def test_data_without_problems_is_an_error(here, content, message):
    (here / "a.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read("a.jsonl", on_bad_row="skip")


@pytest.mark.parametrize("path", ["", "none.jsonl", "notes.txt", "broken.parquet"])
def test_a_path_that_cannot_be_read_is_one_line(here, path):
    (here / "notes.txt").write_text("hello")
    (here / "broken.parquet").write_text("hello")
    with pytest.raises(ConfigError, match=r"^[^\n]+\.$"):
        read(path)


# The split


def test_no_prompt_is_on_both_sides_whatever_its_spacing_and_case(here):
    variants = ["What is {}+1?", "what is  {} + 1?", "What is {}+1?\n", "\uff37hat is {}+1?"]
    rows = [{"prompt": v.format(i), "answer": str(i)} for v in variants for i in range(50)]
    write(here / "a.jsonl", rows)
    data = load(DataConfig(path="a.jsonl", num_eval=20), seed=0)
    held_out = {normalised(p.prompt) for p in data.evals["held_out"]}
    assert len(data.evals["held_out"]) == len(held_out) == 20
    assert held_out.isdisjoint(normalised(p.prompt) for p in data.train)
    assert len(data.train) == 30 * 4
    assert data.num_overlap == 20 * 3  # the other three spellings of each


def test_messages_and_text_of_one_wording_are_one_prompt():
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1 = ?"}]
    assert normalised(chat) == normalised("1+1=?") == "1+1=?"


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_rows(here):
    write(here / "a.jsonl", sums(100))
    write(here / "b.jsonl", reversed(sums(100)))

    def held_out(path, seed):
        return {p.prompt for p in load(DataConfig(path=path, num_eval=10), seed=seed).evals["held_out"]}

    assert held_out("a.jsonl", 0) == held_out("b.jsonl", 0)
    assert held_out("a.jsonl", 0) != held_out("a.jsonl", 1)


def test_training_rows_that_are_evaluated_on_are_removed_and_counted(here):
    write(here / "train.jsonl", sums(10))
    write(
        here / "aime.jsonl", [{"prompt": "3 + 1 = ?", "answer": "4"}, {"prompt": "99+1=?", "answer": "100"}]
    )
    data = load(DataConfig(path="train.jsonl", eval_path="aime.jsonl", num_eval=0), seed=0)
    assert "3+1=?" not in [p.prompt for p in data.train]
    assert (len(data.train), data.num_overlap, len(data.evals["aime"])) == (9, 1, 2)
    fewer = load(DataConfig(path="train.jsonl", eval_path="aime.jsonl", num_eval=1), seed=0)
    assert (len(fewer.train), len(fewer.evals["aime"])) == (9, 1)


def test_several_sets_are_held_out_and_none_is_trained_on(here):
    write(here / "train.jsonl", sums(20))
    write(here / "one.jsonl", [{"q": "3 + 1 = ?", "answer": "4"}, {"q": "99+1=?", "answer": "100"}])
    write(here / "two.jsonl", [{"prompt": f"{i}+1=?", "answer": str(i + 1)} for i in (4, 5, 6)])
    evals = {
        "first": EvalSet(path="one.jsonl", columns={"prompt": "q"}),
        "second": EvalSet(path="two.jsonl", num=1),
    }
    cfg = DataConfig(path="train.jsonl", num_eval=5, evals=evals)
    data = load(cfg, seed=0)
    assert {name: len(problems) for name, problems in data.evals.items()} == {
        "held_out": 5, "first": 2, "second": 1,
    }  # fmt: skip
    trained = {normalised(p.prompt) for p in data.train}
    measured = {normalised(p.prompt) for problems in data.evals.values() for p in problems}
    assert not trained & (measured | {"4+1=?", "5+1=?", "6+1=?"})  # also what the next run may measure
    again = load_evals(cfg, seed=0)
    assert {name: one.problems for name, one in again.items()} == data.evals
    alone = load(DataConfig(path="train.jsonl", num_eval=5), seed=0)
    assert data.evals["held_out"] == alone.evals["held_out"]
    assert data.fingerprint != alone.fingerprint


def test_held_out_sets_need_no_training_data(here):
    write(here / "one.jsonl", sums(3))
    cfg = DataConfig(num_eval=500, evals={"one": EvalSet(path="one.jsonl")})
    assert len(load_evals(cfg, seed=0)["one"].problems) == 3


def test_two_sets_of_one_name_are_refused(here):
    write(here / "train.jsonl", sums(9))
    with pytest.raises(ConfigError, match=r"data\.evals\.held_out has the name of the set of data\.num_eval"):
        load(DataConfig(path="train.jsonl", num_eval=2, evals={"held_out": EvalSet(path="x.jsonl")}), seed=0)


def test_rows_of_a_set_are_skipped_and_counted_too(here):
    write(here / "train.jsonl", sums(9))
    write(here / "one.jsonl", [{"prompt": "x", "answer": "1"}, {"prompt": "y"}])
    cfg = {"path": "train.jsonl", "num_eval": 2, "evals": {"one": EvalSet(path="one.jsonl")}}
    with pytest.raises(ConfigError, match=r"one\.jsonl line 2: has no column 'answer'"):
        load(DataConfig(**cfg), seed=0)
    data = load(DataConfig(**cfg, on_bad_row="skip"), seed=0)
    assert data.num_skipped == 1
    assert data.first_skipped.startswith("one.jsonl line 2")


def test_holding_out_everything_is_an_error(here):
    write(here / "a.jsonl", sums(10))
    with pytest.raises(
        ConfigError, match=r"a.jsonl has 10 different prompts .*num_eval = 10.* Set a smaller"
    ):
        load(DataConfig(path="a.jsonl", num_eval=10), seed=0)


def test_the_fingerprint_changes_with_the_data(here):
    write(here / "a.jsonl", sums(10))
    first = read("a.jsonl").fingerprint
    assert read("a.jsonl").fingerprint == first
    write(here / "a.jsonl", [*sums(9), {"prompt": "9+1=?", "answer": "11", "level": 0}])
    assert read("a.jsonl").fingerprint != first


# The stream


def problems(num):
    return [Problem(str(i), f"prompt {i}", i) for i in range(num)]


def ids(batch):
    return [p.id for p in batch]


def test_every_epoch_is_a_new_order_of_all_problems():
    stream = ProblemStream(problems(10), seed=0, shuffle=True)
    first, second = ids(stream.next_batch(10)), ids(stream.next_batch(10))
    assert sorted(first) == sorted(second) == sorted(map(str, range(10)))
    assert first != second
    assert first != list(map(str, range(10)))


def test_the_same_seed_gives_the_same_order_and_another_seed_another():
    def order(seed):
        return ids(ProblemStream(problems(20), seed=seed, shuffle=True).next_batch(50))

    assert order(3) == order(3)
    assert order(3) != order(4)


def test_without_shuffling_the_files_order_is_kept():
    assert ids(ProblemStream(problems(3), seed=0, shuffle=False).next_batch(7)) == list("0120120")


@pytest.mark.parametrize("taken", [0, 4, 10, 13, 27])
def test_a_stream_goes_on_where_its_state_was_taken(taken):
    stream = ProblemStream(problems(10), seed=0, shuffle=True)
    stream.next_batch(taken)
    state = json.loads(json.dumps(stream.state()))
    expected = ids(stream.next_batch(25))
    resumed = ProblemStream(problems(10), seed=0, shuffle=True)
    resumed.load_state(state)
    assert ids(resumed.next_batch(25)) == expected


def test_a_state_of_other_data_or_another_order_is_refused():
    state = ProblemStream(problems(10), seed=0, shuffle=True).state()
    for other in (
        ProblemStream(problems(11), seed=0, shuffle=True),
        ProblemStream(problems(10), seed=1, shuffle=True),
        ProblemStream(problems(10), seed=0, shuffle=False),
    ):
        with pytest.raises(ConfigError, match="place in the data does not fit"):
            other.load_state(state)


def test_a_loaded_data_set_and_its_problems_in_a_list_are_the_same_data(here):
    write(here / "a.jsonl", [*sums(5), sums(1)[0]])
    train = read("a.jsonl").train
    state = ProblemStream(train, seed=0, shuffle=True).state()
    ProblemStream(train[:], seed=0, shuffle=True).load_state(state)


def test_a_misspelt_column_is_answered_with_the_near_one(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "1+1", "anser": "2"}\n')
    with pytest.raises(ConfigError, match="it has prompt, anser; did you mean 'anser'\\? name it with"):
        load(DataConfig(path=str(tmp_path / "a.jsonl"), num_eval=0), seed=0)


def test_the_first_problem_is_looked_at_without_the_rest(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "1+1", "answer": "2"}\nnot json\n')
    assert first_problem(DataConfig(path=str(tmp_path / "a.jsonl")), seed=0).answer == "2"
    with pytest.raises(ConfigError, match="no file"):
        first_problem(DataConfig(path=str(tmp_path / "b.jsonl")), seed=0)
