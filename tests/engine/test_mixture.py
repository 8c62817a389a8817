"""Mixtures: shares in every stretch, epochs of each set, no prompt on two sides, a place to go on from."""

import json
from collections import Counter

import pytest

from verigrad.engine.config import ConfigError, DataConfig, batch_algebra, build, differences, load, to_toml
from verigrad.engine.examples import Form, Item
from verigrad.engine.mixture import FIRST, MixtureStream, Part, Turns
from verigrad.engine.mixture import load as load_mixture
from verigrad.engine.rows import BadRow


def read_row(row, columns):
    """An example is its own text; any kind of examples will do."""
    if "text" not in row:
        raise BadRow("has no text")
    return Item(row["prompt"], row, [f"{row['prompt']}>{row['text']}"], len(row["text"]))


FORM = Form(read_row, "rows with 'prompt' and 'text'")


@pytest.fixture
def files(tmp_path):
    """Sets a (30 prompts), b (12) and c (6), no prompt in two of them."""
    for name, num in (("a", 30), ("b", 12), ("c", 6)):
        rows = [{"prompt": f"{name}{i}", "text": f"{name}" * (i + 1)} for i in range(num)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(tmp_path / f"{name}.jsonl") for name in "abc"}


def mixture(files, *, seed=0, **sets):
    """data.path is a, with nothing held out; sets: name -> MixSet values besides the path of that name."""
    main = sets.pop("a", {"num_eval": 0})
    mix = {name: {"num_eval": 0, "path": files[name[0]], **values} for name, values in sets.items()}
    return load_mixture(DataConfig(path=files["a"], mix=mix, **main), FORM, seed=seed)


def stream_of(data, *, seed=0, shuffle=True):
    return MixtureStream(data.train, data.parts, seed=seed, shuffle=shuffle)


# Turns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "weights",
    [
        {"a": 1.0, "b": 1.0},
        {"a": 0.9, "b": 0.1},
        {"a": 5.0, "b": 3.0, "c": 1.0},
        {"a": 1e-3, "b": 1.0, "c": 1.0, "d": 0.377},
        {f"s{i}": 1.0 / (i + 1) for i in range(9)},
        {"a": 0.1, "b": 0.1, "c": 0.1},  # 0.1 is no exact binary number
    ],
)
def test_after_any_number_of_turns_every_set_had_its_share_to_within_one(weights):
    turns, counts, total = Turns(weights), Counter(), sum(weights.values())
    for turn in range(1, 2000):
        counts[next(turns)] += 1
        for name, weight in weights.items():
            assert abs(counts[name] - turn * weight / total) <= 1 - 1 / (2 * len(weights) - 2) + 1e-9


def test_two_to_one_by_hand():
    turns = Turns({"a": 2.0, "b": 1.0})  # owed after one turn: 2/3 and 1/3, and b is not owed 1/2 yet
    assert [next(turns) for _ in range(6)] == ["a", "b", "a", "a", "b", "a"]


def test_one_set_has_every_turn():
    turns = Turns({"a": 0.3})
    assert [next(turns) for _ in range(3)] == ["a"] * 3


# Streams ----------------------------------------------------------------------------------------------------


def test_any_window_has_the_shares_of_the_weights(files):
    stream = stream_of(mixture(files, b={"weight": 0.25}, c={"weight": 0.25}))
    sets = [text[0] for text in stream.next_batch(600)]
    for start in range(0, 570, 7):
        window = Counter(sets[start : start + 30])
        assert abs(window["a"] - 20) <= 2
        assert abs(window["b"] - 5) <= 2
        assert abs(window["c"] - 5) <= 2


def test_every_set_has_epochs_of_its_own(files):
    stream = stream_of(mixture(files, b={"weight": 1.0}))
    drawn = stream.next_batch(60)
    a, b = ([text for text in drawn if text[0] == name] for name in "ab")
    assert len(a) == len(set(a)) == 30  # each once
    assert Counter(Counter(b).values()) == {2: 6, 3: 6}  # two epochs and a half
    assert b[:12] != b[12:24]  # each epoch in an order of its own
    assert set(b[:12]) == set(b[12:24])
    assert stream.metrics() == {"epoch": 60 / 42, "epoch/path": 1.0, "epoch/b": 2.5}


def test_sets_of_one_size_are_not_in_one_order(files):
    stream = stream_of(mixture(files, a={"num_eval": 0}, b1={"path": files["b"]}, b2={"path": files["b"]}))
    drawn = stream.next_batch(36)
    # a, b1 and b2 take turns; b1 and b2 hold the same rows
    order = [stream._streams[name]._order.tolist() for name in ("b1", "b2")]
    assert order[0] != order[1]
    assert Counter(text[0] for text in drawn) == {"a": 12, "b": 24}


@pytest.mark.parametrize("num_before", [0, 1, 17, 95])
def test_a_stream_goes_on_where_its_state_was_taken(files, num_before):
    weights = {"b": {"weight": 0.7}, "c": {"weight": 0.123}}
    whole = stream_of(mixture(files, **weights))
    expected = whole.next_batch(num_before + 40)[num_before:]
    first = stream_of(mixture(files, **weights))
    first.next_batch(num_before)
    again = stream_of(mixture(files, **weights))
    again.next_batch(3)  # anywhere else
    again.load_state(json.loads(json.dumps(first.state())))
    assert again.next_batch(40) == expected


def test_the_seed_decides_the_order_and_shuffle_false_keeps_the_files(files):
    draw = [stream_of(mixture(files, b={}), seed=seed).next_batch(20) for seed in (0, 0, 1)]
    assert draw[0] == draw[1] != draw[2]
    kept = stream_of(mixture(files, b={}), shuffle=False).next_batch(4)
    assert kept == ["a0>a", "b0>b", "a1>aa", "b1>bb"]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"b": {"weight": 2.0}}, "the weights were {'path': 1.0, 'b': 1.0}, are {'path': 1.0, 'b': 2.0}"),
        ({"c": {}}, "the sets were path, b, are path, c"),
        ({}, "the sets were path, b, are path"),
        ({"b": {"num_eval": 2}}, "fingerprint was"),
    ],
)
def test_a_place_in_other_data_is_refused(files, other, says):
    state = stream_of(mixture(files, b={})).state()
    with pytest.raises(ConfigError, match="place in the data does not fit") as caught:
        stream_of(mixture(files, **other)).load_state(state)
    assert says in str(caught.value)


def test_a_set_that_joined_a_run_is_refused(files):
    with pytest.raises(ConfigError, match="the sets were path, are path, b"):
        stream_of(mixture(files, b={})).load_state(stream_of(mixture(files)).state())


def test_one_set_alone_is_drawn_as_ever(files):
    from verigrad.engine import examples

    data = mixture(files)
    alone = examples.load(DataConfig(path=files["a"], num_eval=0), FORM, seed=0)
    assert (data.train.fingerprint, data.fingerprint) == (alone.train.fingerprint, alone.fingerprint)
    one = examples.ExampleStream(alone.train, seed=0, shuffle=True)
    stream = stream_of(data)
    assert stream.next_batch(70) == one.next_batch(70)
    assert stream.state() == one.state()
    assert stream.metrics() == {"epoch": one.epoch}


def test_what_stands_for_the_examples_may_be_drawn_in_their_place(files):
    data = mixture(files, b={})

    class Shouted:
        fingerprint, prompts = data.train.fingerprint, data.train.prompts

        def __len__(self):
            return len(data.train)

        def __getitem__(self, index):
            return data.train[index].upper()

    loud = MixtureStream(Shouted(), data.parts, seed=0, shuffle=True).next_batch(50)
    assert loud == [text.upper() for text in stream_of(data).next_batch(50)]
    with pytest.raises(ValueError, match="42 examples, and parts that divide 41"):
        MixtureStream(data.train, [Part(FIRST, 0, 41, 1.0)], seed=0, shuffle=True)


def test_the_one_set_that_is_left_may_be_another_than_the_first():
    data = Examples3("abc")
    parts = [Part("b", 0, 3, 1.0)]
    stream = MixtureStream(data, parts, seed=0, shuffle=True)
    stream.next_batch(2)
    again = MixtureStream(data, parts, seed=0, shuffle=True)
    again.load_state(stream.state())
    assert again.next_batch(5) == stream.next_batch(5)


class Examples3(str):
    fingerprint = "three"


# Sides ------------------------------------------------------------------------------------------------------


def prompts_of(examples):
    return {text.partition(">")[0] for text in examples}


def test_every_set_holds_out_its_own_and_by_its_name(files):
    data = mixture(files, a={"num_eval": 5}, b={"num_eval": 4}, c={"num_eval": 0})
    assert {name: len(held) for name, held in data.held_out.items()} == {"held_out": 5, "b": 4}
    assert [(part.name, part.stop - part.start) for part in data.parts] == [(FIRST, 25), ("b", 8), ("c", 6)]
    assert len(data.train) == len(data.train.prompts) == 39
    held = prompts_of(data.held_out["held_out"]) | prompts_of(data.held_out["b"])
    assert held.isdisjoint(prompts_of(data.train))
    assert len(prompts_of(data.train)) == 39
    assert data.longest == 30
    assert data.train[-1] == data.train[38]
    assert data.train[2:4] == [data.train[2], data.train[3]]


def test_a_prompt_held_out_of_one_set_is_learned_from_in_none(tmp_path, files):
    rows = [{"prompt": f" A{i} ", "text": "other"} for i in range(30)]  # the prompts of a, spelt otherwise
    again = tmp_path / "again.jsonl"
    again.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = mixture({**files, "d": str(again)}, a={"num_eval": 7}, d={"num_eval": 3})
    held = {prompt.strip().lower() for one in data.held_out.values() for prompt in prompts_of(one)}
    trained = {prompt.strip().lower() for prompt in prompts_of(data.train)}
    assert held.isdisjoint(trained)
    assert "d: 4 rows left out: their prompt is held out of another set" in data.notes()


def test_rows_of_an_eval_path_are_in_no_set(tmp_path, files):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"prompt": f"b{i}", "text": "x"}) + "\n" for i in range(4)))
    data = mixture(files, a={"eval_path": str(other), "num_eval": 2}, b={})
    assert {name: len(held) for name, held in data.held_out.items()} == {"other": 2}
    assert prompts_of(data.train).isdisjoint({f"b{i}" for i in range(4)})  # the two not measured now as well


def test_a_set_of_nothing_but_held_out_prompts_is_refused(files):
    with pytest.raises(ConfigError, match=r"of the set 'again' every prompt is held out of another set"):
        mixture(files, a={"eval_path": files["b"]}, again={"path": files["b"]})
    with pytest.raises(
        ConfigError, match=r"data\.mix\.b\.num_eval = 12\): nothing is left.*Set a smaller data\.mix\.b"
    ):
        mixture(files, b={"num_eval": 12})
    with pytest.raises(ConfigError, match=r"data\.mix\.b has the name of data\.eval_path's set"):
        mixture(files, a={"eval_path": files["b"]}, b={"path": files["c"], "num_eval": 2})


def test_malformed_rows_of_a_set_stop_or_are_counted(tmp_path, files):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "x", "text": "y"}\n{"prompt": "z"}\n')
    with pytest.raises(ConfigError, match=r"bad\.jsonl line 2: has no text\. Correct it"):
        mixture({**files, "d": str(bad)}, d={})
    data = mixture({**files, "d": str(bad)}, a={"num_eval": 0, "on_bad_row": "skip"}, d={})
    assert data.notes() == ["d: 1 malformed rows skipped, the first: bad.jsonl line 2: has no text"]


def test_the_fingerprint_tells_sets_and_their_order_apart(files):
    prints = [
        mixture(files, **sets).fingerprint
        for sets in ({}, {"b": {}}, {"c": {}}, {"b": {}, "c": {}}, {"c": {}, "b": {}}, {"b": {"num_eval": 2}})
    ]
    assert len(set(prints)) == len(prints)
    assert mixture(files, b={}).fingerprint == prints[1]


# The recipe -------------------------------------------------------------------------------------------------


def write_recipe(tmp_path, text=""):
    path = tmp_path / "mixed.toml"
    path.write_text(
        'policy.model = "m"\nsft = {}\neval.every = 5\n'
        f'[data]\npath = "a.jsonl"\n[data.mix.chat]\npath = "b.jsonl"\nweight = 0.5\n{text}'
    )
    return str(path)


def test_a_set_comes_from_the_recipe_and_the_command_line(tmp_path):
    cfg = load(
        write_recipe(tmp_path), ["data.mix.chat.weight=0.25", "data.mix.2.path=7.jsonl", "data.weight=3"]
    )
    assert {name: (one.path, one.weight) for name, one in cfg.data.mix.items()} == {
        "chat": ("b.jsonl", 0.25),
        "2": ("7.jsonl", 1.0),
    }
    path = tmp_path / "again.toml"
    path.write_text(to_toml(cfg))
    assert load(str(path)) == cfg
    other = load(write_recipe(tmp_path), ["data.weight=3"])
    assert [told.split(":")[0] for told in differences(cfg, other)] == ["data.mix.chat", "data.mix.2"]


def test_a_dry_run_tells_the_shares(tmp_path):
    cfg = load(write_recipe(tmp_path), ["data.weight=1.0"])
    assert ("shares", "path 66.7%, chat 33.3%") in batch_algebra(cfg)


def test_a_path_that_looks_like_a_number_is_text(tmp_path):
    assert load(write_recipe(tmp_path), ["data.mix.chat.path=2026"]).data.mix["chat"].path == "2026"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.mix.chat.wieght=2", "data.mix.chat.wieght is not a setting; did you mean weight?"),
        ("data.mix.chat.verifier=x", "data.mix.chat.verifier is not a setting; a set holds path, split"),
        ("data.mix.chat.weight=0", "data.mix.chat.weight = 0: input should be greater than 0"),
        ("data.mix.chat.weight=nan", "data.mix.chat.weight"),
        ("data.mix.new.weight=1", "data.mix.new.path is missing; set it"),
        (
            "data.mix.chat.options={a=1}",
            "data.mix.chat.options are for makers, and its path 'b.jsonl' is none",
        ),
        ("data.mix.chat.split=dev", "data.mix.chat.split has no effect: its path 'b.jsonl' is no hub data"),
        ("data.mix.path.path=c.jsonl", "data.mix.path has the name of data.path; call it something else"),
        ("data.mix.held_out.path=c.jsonl", "data.mix.held_out has the name of what is held out of data.path"),
        ("data.mix.a/b.path=c.jsonl", "the name 'a/b' may hold only letters, digits, _ and -"),
    ],
)
def test_what_cannot_be_of_a_set_is_told(tmp_path, override, says):
    with pytest.raises(ConfigError) as caught:
        load(write_recipe(tmp_path), [override])
    assert says in str(caught.value)


def test_a_weight_without_other_sets_has_no_effect(tmp_path):
    tree = {"policy": {"model": "m"}, "data": {"path": "a.jsonl", "weight": 2.0}, "sft": {}}
    with pytest.raises(ConfigError, match=r"data\.weight has no effect without data\.mix"):
        build(tree, name="x")


def test_a_mixture_is_not_for_rl(tmp_path):
    tree = {
        "policy": {"model": "m"},
        "data": {"path": "a.jsonl", "mix": {"b": {"path": "b.jsonl"}}},
        "verifier": {"name": "math_answer"},
    }
    with pytest.raises(ConfigError, match=r"data\.mix has no effect on `verigrad train`"):
        build(tree, name="x")


def test_only_the_sets_of_the_mixture_may_hold_out(tmp_path):
    assert load(write_recipe(tmp_path), ["data.num_eval=0"]).data.mix["chat"].num_eval == 500
    with pytest.raises(ConfigError, match="holds nothing out"):
        load(write_recipe(tmp_path), ["data.num_eval=0", "data.mix.chat.num_eval=0"])
