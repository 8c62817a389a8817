"""The races' arithmetic, worked out by hand, and what they are fair by: lengths come from the model alone."""

import math
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(HERE))

import against_trl  # noqa: E402
import makers  # noqa: E402
import measured  # noqa: E402
import run as all_benchmarks  # noqa: E402
import step_time  # noqa: E402
import works  # noqa: E402

from verigrad.engine import config  # noqa: E402


def run_of(*steps, tokens=100.0, peak=1000.0):
    return {
        "all_steps_s": list(steps),
        "step_s": measured.spread(steps),
        "cpu_s": measured.spread(steps),
        "phases_s": {"generate": 1.0, "verify": 0.1, "update": 2.0, "sync": 0.1, "other": 0.0},
        "generated_tokens_per_step": tokens,
        "generated_tokens_per_s": tokens / steps[0],
        "peak_rss_mib": peak,
        "imports_mib": 500.0,
    }


def runs(ours, shipped, patched, *, tokens=100.0):
    """One run of two equal steps per round and side."""
    return {
        "verigrad": [run_of(s, s, tokens=tokens) for s in ours],
        "trl_transformers": [run_of(s, s) for s in shipped],
        "trl_vllm": [run_of(s, s) for s in patched],
    }


def work(name):
    return works.load(works.RACES / f"{name}.toml")


def test_a_ratio_is_taken_within_its_round():
    raced = runs(ours=[1.0, 2.0, 4.0], shipped=[3.0, 4.0, 4.0], patched=[9.0, 9.0, 9.0])
    ratio = against_trl.ratio_of(raced, "trl_transformers")
    assert ratio["per_step"] == {"median": 2.0, "low": 1.0, "high": 3.0}


def test_fewer_tokens_are_no_lead_per_token():
    raced = runs(ours=[1.0], shipped=[2.5], patched=[5.0], tokens=50.0)  # half of the others' tokens
    ratio = against_trl.ratio_of(raced, "trl_transformers")
    assert ratio["per_step"]["median"] == pytest.approx(2.5)
    assert ratio["per_token"]["median"] == pytest.approx(1.25)
    row = against_trl.summarise(work("ragged"), raced)
    assert row["held"] is False


def test_the_fixed_race_is_against_the_faster_mode_and_the_ragged_one_against_the_shipped():
    raced = runs(ours=[1.0], shipped=[2.5], patched=[0.9])
    fixed = against_trl.summarise(work("fixed_3.6m"), raced)
    assert (fixed["best_mode"], fixed["against"], fixed["held"]) == ("trl_vllm", "trl_vllm", False)
    ragged = against_trl.summarise(work("ragged"), raced)
    assert (ragged["against"], ragged["held"]) == ("trl_transformers", True)
    assert against_trl.summarise(work("fixed_0.6m"), raced)["held"] is None


def test_every_bar_of_a_work_must_be_held():
    def held(ours, shipped, patched, peak=700.0):
        raced = runs(ours=[ours], shipped=[shipped], patched=[patched])
        raced["verigrad"][0]["peak_rss_mib"] = peak  # 200 above imports, of 500
        return against_trl.summarise(work("reasoning"), raced)["held"]

    assert held(1.0, 4.0, 2.0)
    assert not held(1.0, 3.9, 2.0)
    assert not held(1.0, 4.0, 1.9)
    assert not held(1.0, 4.0, 2.0, peak=800.0)


def test_the_table_says_what_was_missed():
    raced = runs(ours=[1.0], shipped=[0.5], patched=[0.9])
    row = {"title": "t", "machine": {"load_1min": 0.1}, "runs": raced}
    text = against_trl.table(row | against_trl.summarise(work("fixed_3.6m"), raced))
    assert "0.50 [0.50, 0.50]" in text
    assert "Bar of 1 against trl_transformers: MISSED" in text


def test_quartiles():
    assert measured.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0, "n": 5}
    assert measured.spread([7.0]) == {"median": 7.0, "q1": 7.0, "q3": 7.0, "n": 1}


def test_warm_up_steps_do_not_count():
    step = {"phases_s": {"generate": 0.5, "update": 1.0}, "generated_tokens": 30, "trained_tokens": 20,
            "longest": 9, "rollouts": 3, "cpu_s": 1.0}  # fmt: skip
    record = {"steps": [{**step, "wall_s": s} for s in (60.0, 2.0, 3.0)], "peak_gpu_mib": None,
              "device": "cpu", "versions": {}, "imports_mib": 1.0}  # fmt: skip
    row = step_time.summarise(record, warmup=1)
    assert row["step_s"]["median"] == 2.5
    assert row["generated_tokens_per_s"] == 12.0
    assert row["trained_tokens_per_s"] == 8.0
    assert row["phases_s"] == {"generate": 0.5, "update": 1.0, "other": 1.0}


@pytest.mark.parametrize("path", sorted(works.RACES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_work_is_a_recipe(path, tmp_path):
    one = works.load(path)
    recipe = step_time.write_recipe(one, tmp_path)
    cfg = config.load(str(recipe))
    assert (cfg.rollout.groups_per_step, cfg.rollout.group_size) == (one.groups, one.samples)
    assert len((tmp_path / "problems.jsonl").read_text().splitlines()) == one.num_problems
    assert step_time.without_evaluations(str(recipe), [])[-1] == "eval.every=0"


def new_model(folder, **options):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    makers.model(
        folder, seed=0, progress=lambda *_: None, hidden_size=32, num_layers=2, vocab_size=64, **options
    )
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def end_probabilities(model, tokenizer):
    ids = torch.randint(3, 63, (8, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(ids).logits.softmax(-1)[..., tokenizer.eos_token_id]


def test_a_model_that_never_ends_gives_the_end_no_probability_at_all(tmp_path):
    model, tokenizer = new_model(tmp_path, ends=False)
    assert tokenizer.eos_token_id == 63
    assert end_probabilities(model, tokenizer).max() == 0.0
    loss = model(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss
    loss.backward()
    assert model.lm_head.weight.grad[63].abs().max() == 0.0  # nor does training give it any


def test_a_model_that_ends_does_so_about_once_in_its_vocabulary(tmp_path):
    model, tokenizer = new_model(tmp_path, ends=True)
    assert float(end_probabilities(model, tokenizer).mean()) == pytest.approx(1 / 64, rel=0.3)


def test_a_prompt_has_the_tokens_asked_for(tmp_path):
    _, tokenizer = new_model(tmp_path / "m", ends=True)
    makers.write_problems(tmp_path / "p.jsonl", seed=0, num_problems=5, prompt_tokens=256)
    import json

    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert {len(tokenizer.encode(row["prompt"])) for row in rows} == {256}
    assert len({row["prompt"] for row in rows}) == 5


def test_a_work_with_a_part_missing_or_unknown_is_told(tmp_path):
    text = (works.RACES / "ragged.toml").read_text()
    (tmp_path / "w.toml").write_text(text.replace("groups = 4", ""))
    with pytest.raises(SystemExit, match="groups is missing"):
        works.load(tmp_path / "w.toml")
    (tmp_path / "w.toml").write_text("colour = 1\n" + text)
    with pytest.raises(SystemExit, match="colour is no part of a work"):
        works.load(tmp_path / "w.toml")


def test_a_command_that_fails_or_hangs_is_told_with_what_it_printed(tmp_path):
    def run(code, limit_s):
        env = measured.environment(1)
        return measured.run([sys.executable, "-c", code], env=env, folder=tmp_path, limit_s=limit_s)

    with pytest.raises(measured.Failed, match=r"status 3\n.*boom"):
        run("import sys; print('boom'); sys.exit(3)", 60)
    with pytest.raises(measured.Failed, match="took more than 1 s"):
        run("import time; time.sleep(60)", 1)
    assert run("x = bytearray(200 << 20); import time; time.sleep(1)", 60).peak_rss_mib > 200


def test_a_bar_is_held_by_the_newest_row_that_tells_of_it_and_by_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(all_benchmarks, "RESULTS", tmp_path)
    bar = next(bar for bar in all_benchmarks.BARS if bar.what.startswith("reasoning: s/step, TRL as shipped"))
    assert all_benchmarks.newest(bar) is None
    assert all_benchmarks.show([bar]) == 0  # unmeasured is neither held nor missed

    def race(name, median):
        ratios = {"trl_transformers": {"per_step": {"median": median}}}
        measured.append_row(
            tmp_path / "against_trl.jsonl", {"race": name, "ratios": ratios, "machine": measured.machine()}
        )

    race("reasoning", 3.9)
    race("ragged", 9.0)
    assert all_benchmarks.newest(bar)[0] == 3.9
    assert all_benchmarks.show([bar]) == 1
    race("reasoning", 4.0)
    assert all_benchmarks.show([bar]) == 0
    assert not bar.held(math.nan)


def test_time_to_an_accuracy_is_that_of_the_first_evaluation_there():
    curve = [{"train_s": s, "avg": a} for s, a in ((0.0, 0.1), (10.0, 0.91), (20.0, 0.89), (30.0, 0.95))]
    row = {"curves": {"verigrad": curve, "TRL": [curve[0], {"train_s": 45.0, "avg": 0.8}]}}
    assert all_benchmarks.seconds_to(0.9, "verigrad", row) == 10.0
    assert all_benchmarks.seconds_to(0.9, "TRL", row) == math.inf
    assert all_benchmarks.faster_than_trl(row) == 4.5  # stopped after 45 s
