"""Small talk: what an answer is worth, by hand; makers that repeat themselves; sides that never meet."""

import itertools
import json
import random
from collections import Counter
from statistics import mean

import pytest
from transformers import AutoTokenizer

from tests.tiny import Forked
from verigrad.engine import makers, stage_recipe
from verigrad.engine.config import ConfigError, find_recipe
from verigrad.engine.recipes import small_talk
from verigrad.engine.recipes.small_talk_gold import PROPERTIES, asked, perfect
from verigrad.verifiers.base import Attempt
from verigrad.verifiers.registry import load

PLACE = "verigrad.engine.recipes.small_talk"
CAT_SUN_TEA = "tell: cat sun tea"
GOOD = "the cat is soft . the sun is warm . the tea is hot ."
ROW_MAKERS = ("prompts", "demonstrations", "preferences", "rankings", "unpaired", "steps")


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (GOOD, 1.0),
        (f"  {GOOD}\n", 1.0),
        ("the cat is soft . the sun is red . the tea is hot .", 2 / 3),
        ("the cat is soft . the sun is warm .", 2 / 3),
        ("the cat is soft . the sun is silly warm . the tea is hot .", 0.7),
        ("fool the cat is silly soft . the sun is stupid warm . the tea is hot .", 0.4),  # at most 0.6
        ("the cat is very soft indeed . the sun is really warm . the tea is hot .", 0.91),
        (f"{GOOD} the cat is soft .", 0.85),  # a sentence too many: five words
        (f"{GOOD} the ice is cold .", 0.85),  # one that nobody asked for
        (f"{GOOD} the cat is hard .", round(2 / 3 - 0.15, 6)),  # said both ways: wrong, and too long
        ("the sun is warm . the cat is soft . the tea is hot .", 2 / 3),  # sun is out of order
        ("the tea is hot . the sun is warm . the cat is soft .", 1 / 3),
        ("the sun is red . the sun is warm .", 0.0),
    ],
)
def test_what_an_answer_is_worth(answer, value):
    assert small_talk.gold(answer, CAT_SUN_TEA) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        ".",
        "very .",
        "the cat is soft",  # no full stop: cut off
        f"{GOOD} the",
        f"{GOOD} very",
        "the cat is soft . the sun",
        GOOD.replace(" .", "."),
        GOOD.upper(),
        "the cat is soft . and the sun is warm . the tea is hot .",
        "the cat is soft warm . the sun is warm .",
        "the cat the is soft .",
        "the soft is cat .",
        "cat soft sun warm tea hot",
        f"reward 1.0 {GOOD}",
        "the dog is soft .",
        "the cat is nan .",
    ],
)
def test_what_is_no_sentence_is_worth_nothing(answer):
    assert small_talk.gold(answer, CAT_SUN_TEA) == 0.0
    verdict = small_talk.true_reward(answer, CAT_SUN_TEA)
    assert (verdict.reward, verdict.outcome) == (0.0, "unparseable")


def test_nothing_but_the_perfect_answer_earns_it_all():
    everything = " ".join(f"the {t} is {p} ." for t in ("cat", "sun") for p in PROPERTIES.values())
    assert small_talk.gold(everything, "tell: cat sun") == 0.0
    for prompt in small_talk.questions("held_out")[2]:
        for one, other in itertools.product(PROPERTIES.values(), repeat=2):
            first, second = asked(prompt)
            answer = f"the {first} is {one} . the {second} is {other} ."
            assert (small_talk.gold(answer, prompt) == 1.0) == (answer == perfect(asked(prompt)))


def test_the_verifier_pays_gold_and_calls_only_the_perfect_right():
    judge = load(f"{PLACE}:true_reward", {})
    assert judge.policy.runs == "inline"
    verdicts = [
        small_talk.true_reward(Attempt(text).final_text, CAT_SUN_TEA)
        for text in (GOOD, f"<think>the cat</think>{GOOD}", "the cat is soft .", "the cat is hot .", "?")
    ]
    assert [v.outcome for v in verdicts] == ["right", "right", "partial", "wrong", "unparseable"]
    assert [v.reward for v in verdicts] == [1.0, 1.0, pytest.approx(1 / 3, abs=1e-6), 0.0, 0.0]
    chat = small_talk.true_reward(GOOD, [{"role": "user", "content": CAT_SUN_TEA}])
    assert chat.outcome == "right"


@pytest.mark.parametrize("prompt", ["", "tell:", "tell: dog", "tell: cat cat", "say: cat sun"])
def test_a_prompt_of_another_task_is_undecided(prompt):
    assert small_talk.true_reward(GOOD, prompt).reward is None
    with pytest.raises(ValueError, match="different things of small talk"):
        small_talk.gold(GOOD, prompt)


def test_a_set_of_things_is_on_one_side_and_in_one_order():
    sides = {side: small_talk.questions(side) for side in small_talk.SIDES}
    sets = [frozenset(asked(p)) for side in sides.values() for deck in side.values() for p in deck]
    assert len(sets) == len(set(sets)) == 120 + 560 + 1820
    shares = {name: sum(map(len, side.values())) / 2500 for name, side in sides.items()}
    assert shares == pytest.approx({"taught": 0.25, "train": 0.5, "held_out": 0.25}, abs=0.02)
    assert max(len(p.split()) for side in sides.values() for deck in side.values() for p in deck) == 5


def test_no_maker_shows_what_is_held_out_or_was_taught():
    held_out = {row["prompt"] for row in small_talk.held_out(seed=0, num=10_000)}
    shown = small_talk.taught(random.Random(0), flaws=1.0)
    taught = {prompt for prompt, _ in itertools.islice(shown, 5000)}
    assert held_out.isdisjoint(taught)
    for name in ROW_MAKERS:
        rows = getattr(small_talk, name)(seed=3, num=2000)
        assert {row["prompt"] for row in rows}.isdisjoint(held_out | taught), name
        other = getattr(small_talk, name)(seed=3, num=50, side="held_out")
        assert {row["prompt"] for row in other} <= held_out, name


@pytest.mark.parametrize("name", ROW_MAKERS)
def test_the_same_seed_makes_the_same_rows_and_another_seed_others(name):
    make = getattr(small_talk, name)
    assert make(seed=1, num=60) == make(seed=1, num=60) != make(seed=2, num=60)
    assert len(make(seed=1, num=60)) == 60


def test_prompts_are_different_and_come_with_the_perfect_answer():
    rows = small_talk.prompts(seed=0, num=180)
    assert len({row["prompt"] for row in rows}) == 180
    assert Counter(row["level"] for row in rows) == {"2": 60, "3": 60, "4": 60}
    assert all(small_talk.gold(row["answer"], row["prompt"]) == 1.0 for row in rows)
    assert len(small_talk.prompts(seed=0, num=10_000)) == 62 + 288 + 901


def test_the_teacher_is_half_good_and_without_flaws_perfect():
    def value(flaws):
        rows = small_talk.demonstrations(seed=0, num=2000, flaws=flaws)
        assert max(len(row["completion"].split()) for row in rows) < 47
        return mean(small_talk.gold(row["completion"], row["prompt"]) for row in rows)

    assert value(0) == 1.0
    assert value(1.0) == pytest.approx(0.5, abs=0.03)
    assert value(0.5) == pytest.approx(0.75, abs=0.03)


def test_annotators_prefer_as_bradley_and_terry_say():
    people = small_talk.Annotators(temperature=0.5, length_bias=0.0, noise=[0.0, 0.5], num=2)
    rng = random.Random(0)
    difference = people.felt("the cat is soft . the sun is warm .", "tell: cat sun") - people.felt(
        "the cat is soft . the sun is red .", "tell: cat sun"
    )
    assert difference == pytest.approx(1.0)  # (1 - 0.5) / 0.5
    shares = [mean(people.prefers(difference, who, rng) for _ in range(4000)) for who in (0, 1)]
    assert shares == [pytest.approx(0.7311, abs=0.03), pytest.approx(0.5, abs=0.03)]  # 1 / (1 + e^-1)


def test_a_liking_for_length_makes_padding_pay():
    prompt, plain = "tell: cat sun", "the cat is soft . the sun is warm ."
    padded = plain.replace("is", "is very very")  # 4 words more, which cost 0.12
    people = small_talk.Annotators(temperature=1.0, length_bias=0.5, noise=0.0, num=1)
    assert people.felt(padded, prompt) - people.felt(plain, prompt) == pytest.approx(0.5 * 0.4 - 0.12)
    longer = [
        mean(len(row["chosen"].split()) - len(row["rejected"].split()) for row in rows)
        for rows in (small_talk.preferences(seed=0, num=800, length_bias=b) for b in (0.0, 0.5))
    ]
    assert longer[0] < 0.2 < longer[1]


def test_pairs_carry_their_gold_and_every_annotator_judges_every_pair():
    rows = small_talk.preferences(seed=0, num=300, num_annotators=3, noise=[0, 0, 0.4])
    assert Counter(row["annotator"] for row in rows) == {f"annotator{n}": 100 for n in range(3)}
    for _, same in itertools.groupby(rows, key=lambda row: row["pair"]):
        assert len({frozenset((row["chosen"], row["rejected"])) for row in same}) == 1
    for row in rows:
        assert row["chosen"] != row["rejected"]
        assert row["margin"] >= 0
        assert row["gold_chosen"] == small_talk.gold(row["chosen"], row["prompt"])
    good = [row["gold_chosen"] > row["gold_rejected"] for row in rows if row["annotator"] != "annotator2"]
    assert mean(good) > 0.75


def test_rankings_thumbs_and_steps_tell_good_from_bad():
    ranked = small_talk.rankings(seed=0, num=200, num_responses=3)
    assert all(len(set(row["responses"])) == 3 for row in ranked)
    assert mean(row["gold"][0] - row["gold"][-1] for row in ranked) > 0.3
    thumbs = small_talk.unpaired(seed=0, num=400)
    up, down = ([row["gold"] for row in thumbs if row["label"] is label] for label in (True, False))
    assert mean(up) > 0.7 > 0.4 > mean(down)
    out_of_order = ["the cat is soft .", "the tea is hot .", "the sun is warm ."]
    assert small_talk.faultless(out_of_order, CAT_SUN_TEA) == [True, False, False]
    assert small_talk.faultless(["the cat is very soft .", "the sun is warm ."], CAT_SUN_TEA) == [False, True]
    assert small_talk.faultless(["the cat is soft .", "the cat is soft ."], "tell: cat") == [True, False]
    for row in small_talk.steps(seed=0, num=50, flaws=0):
        assert " ".join(row["steps"]) == perfect(asked(row["prompt"]))
        assert row["labels"] == [True] * len(row["steps"])


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("prompts", {"num": 0}, "num = 0: expected at least 1"),
        ("prompts", {"side": "test"}, "side = 'test': expected one of taught, train, held_out"),
        ("demonstrations", {"flaws": 2.0}, "expected a number from 0 to 1.5"),
        ("preferences", {"flaws": 0.0}, "expected a number from 0.2 to 1.5"),
        ("preferences", {"noise": 0.7}, "a noise from 0 to 0.5"),
        ("preferences", {"num_annotators": 2, "noise": [0.1]}, "one for all or a list"),
        ("preferences", {"temperature": 0}, "temperature = 0: expected a number above 0"),
        ("rankings", {"num_responses": 1}, "num_responses = 1: expected at least 2"),
    ],
)
def test_options_that_cannot_be_are_refused(name, options, told):
    with pytest.raises(ConfigError, match=told):
        makers.make_rows(f"{PLACE}:{name}", seed=0, options=options)


@pytest.mark.parametrize("name", ["model", "base_model"])
def test_the_model_folder_loads_with_its_own_tokenizer(tmp_path, monkeypatch, name):
    monkeypatch.setenv("VERIGRAD_CACHE", str(tmp_path))
    folder = makers.make_model(f"{PLACE}:{name}", seed=0, options={"num_steps": 1})
    assert makers.make_model(f"{PLACE}:{name}", seed=0, options={"num_steps": 1}) == folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer(GOOD).input_ids, skip_special_tokens=True) == GOOD
    ids, num_prompt = small_talk.new_alphabet().demonstration("tell: cat", "the cat is soft .")
    assert (len(ids), num_prompt) == (9, 3)
    assert ids == [*tokenizer("tell: cat the cat is soft .").input_ids, tokenizer.eos_token_id]


def test_every_word_of_the_language_is_one_token():
    alphabet = small_talk.new_alphabet()
    for row in small_talk.demonstrations(seed=0, num=500, flaws=1.5):
        ids, num_prompt = alphabet.demonstration(row["prompt"], row["completion"])
        assert num_prompt == 1 + len(row["prompt"].split()) <= 16
        assert len(ids) - num_prompt <= 48


def test_the_pipeline_is_three_stages_each_on_what_the_one_before_left():
    assert len(find_recipe("tulu_style").read_text().splitlines()) <= 40
    recipe = stage_recipe.load("tulu_style")
    assert [stage.cfg.verb for stage in recipe.stages] == ["sft", "prefer", "train"]
    assert [stage.cfg.policy.model for stage in recipe.stages[1:]] == [
        stage.result for stage in recipe.stages[:2]
    ]
    for stage in recipe.stages:
        data = stage.cfg.data
        sources = [data.path, *(one.path for one in (*data.mix.values(), *data.evals.values()))]
        assert all(callable(getattr(small_talk, path.partition(":")[2])) for path in sources)


@pytest.mark.slow
def test_the_pipeline_runs_and_its_control_too(tmp_path):
    small = (
        "policy.options={num_steps = 2}", "train.num_steps=2", "eval.every=2", "run.folder=run",
        "shown.optim.warmup_steps=0", "rewarded.rollout.groups_per_step=2", "rewarded.eval.num_samples=1",
        "rewarded.data.evals.held_out.num=4", "rollout.backend=transformers",
        "preferred.data.options={num = 80, noise = 0.5}", "rewarded.verifier.name=random",
    )  # fmt: skip
    status, printed = Forked("train", "tulu_style", *small, folder=tmp_path).wait(timeout=400)
    assert status == 0, printed
    assert (tmp_path / "run" / "3_rewarded" / "checkpoints" / "step_000002").is_dir()
    rows = (tmp_path / "run" / "1_shown" / "eval.jsonl").read_text().splitlines()
    assert {json.loads(row)["data"] for row in rows} == {"held_out", "careful"}
