"""Examples: what is held out, what is left out, and an order that can be taken up anywhere."""

import json

import numpy as np
import pytest

from tests.tiny import tokenizer
from verigrad.engine.config import ConfigError, DataConfig, PromptsConfig
from verigrad.engine.data import choose
from verigrad.engine.examples import ExampleStream, load
from verigrad.engine.prompts import Prompter
from verigrad.engine.sft_data import form_of, require_source
from verigrad.engine.sft_rows import Encoder


def encoder(max_length=40):
    return Encoder(Prompter(tokenizer(), PromptsConfig()), eos_ids=[1], max_length=max_length)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sums(num, *, times=1):
    return [
        {"prompt": f"{i}+{i}=", "completion": str(2 * i) + "," * k} for i in range(num) for k in range(times)
    ]


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "sums.jsonl", sums(30))


def read(path, *, seed=0, max_length=40, **cfg):
    return load(DataConfig(path=path, **cfg), form_of(encoder(max_length)), seed=seed)


def texts(examples):
    return [tokenizer().decode(example.token_ids) for example in examples]


def test_no_prompt_is_on_both_sides_though_it_comes_twice(tmp_path):
    data = read(write(tmp_path / "twice.jsonl", sums(12, times=3)), num_eval=4)
    held, trained = texts(data.held_out), texts(data.train)
    assert len(held) == 4  # one row of each held-out prompt: examples are the units of the interval
    assert len(trained) == 8 * 3
    assert data.num_overlap == 4 * 2
    prompts = [{text.split("=")[0] for text in side} for side in (held, trained)]
    assert not prompts[0] & prompts[1]


def test_what_is_held_out_does_not_depend_on_the_order_of_the_rows(tmp_path, file):
    again = write(tmp_path / "again.jsonl", sums(30)[::-1])
    assert sorted(texts(read(file, num_eval=5).held_out)) == sorted(texts(read(again, num_eval=5).held_out))
    assert sorted(texts(read(file, num_eval=5).held_out)) != sorted(
        texts(read(file, num_eval=5, seed=1).held_out)
    )


def test_an_evaluation_file_of_its_own(tmp_path, file):
    other = write(tmp_path / "other.jsonl", sums(4))
    data = read(file, eval_path=other, num_eval=0)
    assert (len(data.held_out), len(data.train), data.held_out_name) == (4, 26, "other")
    some = read(file, eval_path=other, num_eval=2)
    assert (len(some.held_out), len(some.train)) == (2, 26)  # all four may be measured by the next run


def test_with_nothing_held_out_all_is_learned(file):
    data = read(file, num_eval=0)
    assert data.held_out is None
    assert len(data.train) == 30
    assert data.longest == len("29+29=58") + 1


def test_everything_held_out_is_refused(file):
    with pytest.raises(ConfigError, match="30 different prompts and all of them are held out"):
        read(file, num_eval=500)


def test_a_long_or_malformed_row_stops_with_its_line_or_is_counted(tmp_path):
    path = write(
        tmp_path / "bad.jsonl", [*sums(3), {"prompt": "1+1="}, {"prompt": "1=", "completion": "1" * 50}]
    )
    with pytest.raises(ConfigError, match=r"bad.jsonl line 4: has no column 'completion'"):
        read(path, num_eval=1)
    data = read(path, num_eval=1, on_bad_row="skip")
    assert data.num_skipped == 2
    assert data.first_skipped.startswith("bad.jsonl line 4: ")
    assert len(data.train) == 2


@pytest.mark.parametrize(
    ("rows", "says"), [([], "it has no rows"), ([{"prompt": "1"}], "1 rows are malformed")]
)
def test_no_examples_at_all_is_said(tmp_path, rows, says):
    path = write(tmp_path / "none.jsonl", rows)
    with pytest.raises(ConfigError, match=says):
        read(path, on_bad_row="skip")
    with pytest.raises(ConfigError, match="gives no examples"):
        require_source(DataConfig(path=path, on_bad_row="skip"), seed=0)


def test_the_fingerprint_tells_data_apart(tmp_path, file):
    changed = sums(30)
    changed[7]["completion"] = "15"
    other = write(tmp_path / "changed.jsonl", changed)
    assert read(file, num_eval=5).fingerprint == read(file, num_eval=5).fingerprint
    assert read(file, num_eval=5).fingerprint != read(other, num_eval=5).fingerprint


def test_the_smallest_hashes_are_chosen_one_row_per_prompt():
    prompts = np.array([5, 5, 9, 9, 3], np.uint64)
    assert list(choose(prompts, 3, seed=0)) == [0, 2, 4]
    assert len(choose(prompts, 2, seed=0)) == 2
    assert list(choose(prompts, 0, seed=0)) == []


# The stream -------------------------------------------------------------------------------------------------


def stream(file, *, seed=0, shuffle=True):
    return ExampleStream(read(file, num_eval=0).train, seed=seed, shuffle=shuffle)


def test_every_epoch_shows_each_example_once_in_an_order_of_its_own(file):
    ours = stream(file)
    first, second = texts(ours.next_batch(30)), texts(ours.next_batch(30))
    assert sorted(first) == sorted(second) == sorted(texts(read(file, num_eval=0).train))
    assert first != second
    assert first == texts(stream(file).next_batch(30))
    assert first != texts(stream(file, seed=1).next_batch(30))
    assert texts(stream(file, shuffle=False).next_batch(2)) == ["0+0=0<eos>", "1+1=2<eos>"]


def test_the_epoch_is_counted_in_shares(file):
    ours = stream(file)
    ours.next_batch(45)
    assert ours.epoch == pytest.approx(1.5)
    ours.next_batch(15)
    assert ours.epoch == pytest.approx(2.0)


@pytest.mark.parametrize("taken", [0, 7, 30, 44])
def test_it_goes_on_where_its_state_was_taken(file, taken):
    ours, other = stream(file), stream(file)
    ours.next_batch(taken)
    other.load_state(json.loads(json.dumps(ours.state())))
    assert texts(other.next_batch(40)) == texts(ours.next_batch(40))


def test_the_state_of_other_data_is_refused(file):
    state = stream(file).state()
    with pytest.raises(ConfigError, match="seed was 0, is 1"):
        stream(file, seed=1).load_state(state)
    with pytest.raises(ConfigError, match="fingerprint was"):
        stream(file).load_state({**state, "fingerprint": "x"})
