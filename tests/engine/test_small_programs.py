"""The quickstart in code: what it asks, its teacher and its data; numbers worked out by hand."""

import itertools
import random

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from verigrad.engine import config, data
from verigrad.engine.recipes import small_programs as made
from verigrad.engine.recipes.small_programs import Spec

BRANCHES = Spec((("sub", 4), ("mod", 2)), 8, True, (("times", 9),))


def test_what_is_asked_and_what_is_right():
    assert BRANCHES.prompt == "if x over 8: sub 4 mod 2 else times 9?"
    assert [BRANCHES(x) for x in (-1, 8, 9, 10)] == [-9, 72, 1, 0]
    assert made.written(BRANCHES) == "(x-4)%2 if x>8 else x*9"
    at_least = Spec((("sub", 4),), 8, False, (("times", 9),))
    assert at_least.prompt == "if x at least 8: sub 4 else times 9?"
    assert (at_least(7), at_least(8)) == (63, 4)
    assert made.written(at_least) == "x-4 if x>=8 else x*9"


def test_the_teachers_slips():
    assert made.written(BRANCHES, forgets=lambda: True) == "x-4%2 if x>8 else x*9"
    assert made.written(BRANCHES, mistakes=True) == "(x-4)%2 if x>=8 else x*9"
    chain = (("times", 8), ("mod", 6), ("add", 5))
    assert made.expression(chain, lambda: False) == "(x*8)%6+5"
    assert made.apply(chain, -7) == -56 % 6 + 5 == 9  # -56 = -10 * 6 + 4


def test_tests_tell_over_from_at_least():
    for bound in range(1, 9):
        inputs = Spec((("add", 1),), bound, True, (("sub", 1),)).inputs()
        assert {bound - 1, bound, bound + 1} <= set(inputs)


def test_every_reference_solution_passes_its_tests_and_no_problem_is_shown():
    rows = made.problems(seed=0)
    prompts = {row["prompt"] for row in rows}
    assert len(prompts) == len(rows) > 4500
    assert {row["level"] for row in rows} == set(made.LEVELS)
    for row in rows:
        source = row["solution"].removeprefix("```python\n").removesuffix("\n```")
        space = {}
        exec(source, space)  # written by us
        assert [space["f"](*case["args"]) for case in row["cases"]] == [c["expected"] for c in row["cases"]]
    shown = itertools.islice(made.demonstrations(random.Random(0)), 4000)
    assert prompts.isdisjoint(prompt for prompt, _ in shown)


def test_the_teacher_gives_up_now_and_then_and_is_often_wrong():
    shown = list(itertools.islice(made.demonstrations(random.Random(0)), 4000))
    gives_up = sum(text.startswith("exit()") for _, text in shown) / len(shown)
    assert gives_up == pytest.approx(made.GIVES_UP, abs=0.015)
    assert all(text.endswith(made.ENDING) for _, text in shown)
    longest = max(len(made.ALPHABET.encode(prompt + made.OPENING)) for prompt, _ in shown)
    cfg = config.load("quickstart_code")
    assert longest < cfg.rollout.max_prompt_tokens
    assert max(len(made.ALPHABET.encode(text)) for _, text in shown) < cfg.rollout.max_tokens
    assert cfg.prompts.prefill == made.OPENING


def test_the_same_seed_makes_the_same_rows():
    few = {"num_problems": 50, "levels": ["if2", "plain3"]}
    assert made.problems(seed=1, **few) == made.problems(seed=1, **few) != made.problems(seed=2, **few)
    with pytest.raises(ValueError, match=r"levels = \['if9'\]: expected some of plain2"):
        made.problems(seed=0, levels=["if9"])


def test_rows_reach_the_verifier_as_it_takes_them():
    cfg = config.load("quickstart_code", ["data.options={num_problems = 60}", "data.num_eval=5"])
    problem = data.load(cfg.data, seed=0).train[0]
    assert problem.meta["entry_point"] == "f"
    assert all(set(case) == {"args", "expected"} for case in problem.meta["cases"])


def test_the_made_model_reads_and_writes_programs(tmp_path):
    made.model(tmp_path, seed=0, progress=lambda *_: None, num_steps=2, batch_size=2, hidden_size=32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = f"if x at least 3: add 2 else mod 7?{made.OPENING}x+2 if x>=3 else x%7{made.ENDING}"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer.unk_token_id not in tokenizer(text).input_ids
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config.vocab_size == len(made.ALPHABET.tokens)
