"""`verigrad sample`: what is kept gives the sampled tokens again, and a kill costs no chunk that is done."""

import json
import random
import shutil

import pyarrow.parquet as pq
import pytest

from tests.engine.test_resume import kill_when, rows, rows_or_none
from tests.tiny import Forked, rollout, tokenizer
from tests.tiny_stages import write_sample, write_sft
from verigrad.engine.config import Config, ConfigError, PromptsConfig, load, to_toml
from verigrad.engine.prompts import Prompter
from verigrad.engine.sample import chosen, completion_of, keep, measured
from verigrad.engine.schema import VerifiedGroup
from verigrad.engine.sft_rows import Encoder
from verigrad.verifiers.base import Problem, Verdict

EOS, BOS = 1, 2


@pytest.fixture(scope="module")
def encoder():
    return Encoder(Prompter(tokenizer(), PromptsConfig(prefill="(")), eos_ids=[EOS], max_length=10**9)


def ids(text):
    return tokenizer().convert_tokens_to_ids(list(text))


def said(text, *, finish="stop", end=(EOS,)):
    return rollout(ids("1+1=("), [*ids(text), *end], finish=finish)


def group(*pairs, problem_id="p"):
    rollouts, verdicts = zip(*pairs, strict=True)
    return VerifiedGroup(Problem(problem_id, "1+1=", "2"), rollouts, verdicts)


def cfg(**sample):
    return Config.model_validate({"sample": sample})


# What is kept -----------------------------------------------------------------------------------------------


def test_the_text_is_the_completion_without_its_end_and_without_the_prefill(encoder):
    assert completion_of(said("2)"), encoder) == "2)"
    assert completion_of(said("2)", end=()), encoder) == "2)"  # ended by a stop string


@pytest.mark.parametrize(
    "odd",
    [
        rollout(ids("1="), [BOS, *ids("2"), EOS]),  # a special token is not in the text that was judged
        rollout(ids("1="), [*ids("2"), EOS, *ids("3"), EOS]),
        rollout(ids("1="), [EOS]),  # nothing to learn
        rollout(ids("1="), [*ids("  "), EOS]),
        rollout(ids("1="), [60, EOS]),  # an id without a token: no text gives it
    ],
)
def test_what_text_cannot_give_again_is_left_out(encoder, odd):
    assert completion_of(odd, encoder) is None


def test_only_decided_rewards_of_at_least_the_smallest_are_accepted(encoder):
    several = group(
        (said("2"), Verdict.right()),
        (said("3"), Verdict.wrong()),
        (said("4"), Verdict.undecided("the checker crashed")),
        (said("5"), Verdict(0.5, "partial")),
    )
    strict = keep(cfg(keep_per_problem=4), encoder, [several])
    assert [row["completion"] for row in strict.rows] == ["2"]
    assert strict.counts["accepted"] == 1
    loose = keep(cfg(keep_per_problem=4, min_reward=0.5), encoder, [several])
    assert [(row["completion"], row["reward"]) for row in loose.rows] == [("2", 1.0), ("5", 0.5)]
    everything = keep(cfg(keep_per_problem=4, min_reward=-1.0), encoder, [several])
    assert [row["completion"] for row in everything.rows] == ["2", "3", "5"]  # undecided: never


def test_the_first_different_ones_are_kept_and_the_rest_is_counted(encoder):
    right = Verdict.right()
    chunk = keep(
        cfg(keep_per_problem=2),
        encoder,
        [
            group((said("222"), right), (said("222"), right), (said("2"), right), (said("22"), right)),
            group(
                (said("7", finish="length"), right), (rollout(ids("1="), [BOS, EOS]), right), problem_id="q"
            ),
        ],
    )
    assert [row["completion"] for row in chunk.rows] == ["222", "2"]  # not the shortest
    assert chunk.rows[0] == {"prompt": "1+1=", "completion": "222", "problem_id": "p", "reward": 1.0}
    assert dict(chunk.counts) == {
        "accepted": 6,
        "duplicate": 1,
        "solved": 1,
        "truncated": 1,
        "retokenised": 1,
    }


def test_the_best_of_all_are_kept_and_equal_ones_in_the_order_of_their_seeds(encoder):
    rewards = {"1": 0.2, "2": 0.9, "3": 0.9}
    judged = [(said(text), Verdict(reward, "partial")) for text, reward in rewards.items()]
    several = group(*judged, (said("4"), Verdict.undecided("")), (said("2"), Verdict(0.95, "partial")))
    chunk = keep(cfg(keep_per_problem=2, pick="best", min_reward=0.0), encoder, [several])
    assert [row["completion"] for row in chunk.rows] == ["2", "3"]
    assert [row["reward"] for row in chunk.rows] == [0.95, 0.9]


def test_all_different_answers_are_kept_for_somebody_to_label(encoder):
    several = group(
        (said("2"), Verdict.right()),
        (said("3"), Verdict.wrong()),
        (said("3"), Verdict.wrong()),
        (said("4"), Verdict.undecided("crashed")),
        (said(" "), Verdict.wrong()),
        (said("5", finish="length"), Verdict.wrong()),
    )
    chunk = keep(cfg(keep="all"), encoder, [several])
    assert [(row["completion"], row["reward"], row["truncated"]) for row in chunk.rows] == [
        ("2", 1.0, False), ("3", 0.0, False), ("4", None, False), ("5", 0.0, True),
    ]  # fmt: skip
    assert chunk.counts["accepted"] == 1


def test_the_undecided_are_in_no_share_of_the_decided(encoder):
    several = group(
        (said("2"), Verdict.right()),
        (said("3"), Verdict.wrong()),
        (said("4"), Verdict.undecided("crashed")),
        (said("4"), Verdict.undecided("crashed")),
    )
    row = measured([several], keep(cfg(), encoder, [several]))
    assert (row["num_sampled"], row["num_decided"], row["num_accepted"], row["num_kept"]) == (4, 2, 1, 1)
    assert (row["accepted_frac"], row["undecided_frac"], row["reward"]) == (0.5, 0.5, 0.5)


def test_which_problems_are_sampled_depends_on_the_seed_and_not_on_how_many():
    def order(num, seed=0, shuffle=True):
        tree = {"sample": {"num_problems": num}, "train": {"seed": seed}, "data": {"shuffle": shuffle}}
        return chosen(Config.model_validate(tree), range(20))

    assert sorted(order(0)) == list(range(20))
    assert order(5) == order(0)[:5]
    assert order(5) != order(5, seed=1)
    assert order(5, shuffle=False) == [0, 1, 2, 3, 4]


# The recipe -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("rollout.group_size=4", "rollout.group_size has no effect on `verigrad sample`; remove it"),
        ("optim.lr=1", "[optim] has no effect on `verigrad sample`"),
        ("train.num_steps=4", "train.num_steps has no effect"),
        ("run.save_every=4", "run.save_every has no effect"),
        ("policy.tokens_per_batch=4", "policy.tokens_per_batch has no effect"),
        ("policy.share_prefixes=false", "policy.share_prefixes has no effect"),
        ("eval.every=0", "[eval] has no effect"),
        ("sft.batch_size=2", "[sft] is for `verigrad sft`"),
        ("sample.keep_per_problem=49", "more than sample.num_samples = 48, so no problem ever has as many"),
        ("sample.num_samples=0", "sample.num_samples = 0"),
        ("sample.min_reward=nan", "sample.min_reward = nan"),
        ("sample.keep=2", "sample.keep = 2: input should be 'accepted' or 'all'"),
        ("sample.keeps=2", "sample.keeps is not a setting"),
    ],
)
def test_what_has_no_effect_or_cannot_be_is_refused(tmp_path, overrides, says):
    write_sample(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(str(tmp_path / "sample.toml"), overrides.split(), verb="sample")
    assert says in str(caught.value)


def test_the_record_loads_as_itself(tmp_path):
    write_sample(tmp_path)
    resolved = load(str(tmp_path / "sample.toml"))
    assert resolved.verb == "sample"
    (tmp_path / "again.toml").write_text(to_toml(resolved))
    assert load(str(tmp_path / "again.toml")) == resolved


# Runs -------------------------------------------------------------------------------------------------------


def run_sample(folder, *overrides, timeout=120):
    return Forked("sample", "sample.toml", *overrides, folder=folder).wait(timeout)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder)
    status, printed = run_sample(folder)
    assert status == 0, printed
    return folder, printed


@pytest.fixture
def fresh(tmp_path, reference):
    for path in reference[0].iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    return tmp_path


def everything(run):
    tables = {
        path.name: pq.read_table(path).drop_columns("verify_s").to_pylist()
        for path in sorted(run.glob("rollouts/*.parquet"))
    }
    return {
        "metrics": rows(run / "metrics.jsonl"),
        "samples": (run / "samples.jsonl").read_text(),
        "tables": tables,
        "top": sorted(path.name for path in run.iterdir() if path.name != "log.txt"),
    }


def test_what_is_kept_is_what_was_accepted_in_the_rollouts(reference):
    run = everything(reference[0] / "run")
    samples = [json.loads(line) for line in run["samples"].splitlines()]
    rollouts = [row for table in run["tables"].values() for row in table]
    assert len(rollouts) == 30 * 48
    assert len(samples) == sum(row["num_kept"] for row in run["metrics"]) > 5
    encode = Encoder(Prompter(tokenizer(), PromptsConfig()), eos_ids=[EOS], max_length=10**9)
    for sample in samples:
        alike = [r for r in rollouts if r["problem_id"] == sample["problem_id"] and r["reward"] == 1.0]
        tokens = encode.completion_ids(sample["completion"])
        sampled = [[t for t, own in zip(r["token_ids"], r["loss_mask"], strict=True) if own] for r in alike]
        assert tokens in sampled
        assert sample["prompt"] == alike[0]["prompt"]
    assert sum(row["num_accepted"] for row in run["metrics"]) == sum(r["reward"] == 1.0 for r in rollouts)


def test_held_out_problems_are_not_sampled_and_that_is_said(reference):
    folder, printed = reference
    assert "note: 6 held-out problems" in printed
    prompts = {r["prompt"] for table in everything(folder / "run")["tables"].values() for r in table}
    assert len(prompts) == 30


def test_killed_at_random_moments_it_ends_as_if_never_killed(fresh, reference):
    draw, kills = random.Random(3), 0
    for num_rows in (0, 1, 2, 3):
        metrics = fresh / "run" / "metrics.jsonl"
        process = Forked("sample", "sample.toml", folder=fresh)
        ready = lambda n=num_rows, m=metrics: m.parent.exists() and len(rows_or_none(m)) >= n  # noqa: E731
        kills += kill_when(process, ready, after=draw.uniform(0, 0.03))
    assert kills >= 3
    status, printed = run_sample(fresh)
    assert status == 0, printed
    ours, theirs = everything(fresh / "run"), everything(reference[0] / "run")
    for part, value in theirs.items():
        assert ours[part] == value, part


def test_a_finished_run_is_shown_again(reference):
    before = everything(reference[0] / "run")
    status, printed = run_sample(reference[0])
    assert status == 0
    assert "run/samples.jsonl is already there; nothing left to do" in printed
    assert "completions sampled" in printed
    assert everything(reference[0] / "run") == before


def test_sft_reads_what_was_sampled_as_it_is(reference, tmp_path):
    write_sft(tmp_path)
    shutil.copy(reference[0] / "run" / "samples.jsonl", tmp_path / "shown.jsonl")
    status, printed = Forked(
        "sft", "shown.toml", "data.num_eval=2", "train.num_steps=1", folder=tmp_path
    ).wait()
    assert status == 0, printed


def test_other_settings_are_another_run(reference):
    status, printed = run_sample(reference[0], "sample.num_samples=4", "sample.keep_per_problem=2")
    assert status == 2, printed
    assert "sample.num_samples: 48 -> 4" in printed.splitlines()[-1]


def test_more_problems_than_there_are(fresh):
    status, printed = run_sample(fresh, "sample.num_problems=31")
    assert status == 2, printed
    assert "sums.jsonl has 30 problems that are not held out; lower it" in printed.splitlines()[-1]


def test_some_problems_only(fresh, reference):
    status, printed = run_sample(fresh, "sample.num_problems=8")
    assert status == 0, printed
    first = [json.loads(line) for line in everything(reference[0] / "run")["samples"].splitlines()]
    some = [json.loads(line) for line in (fresh / "run" / "samples.jsonl").read_text().splitlines()]
    assert some == first[: len(some)]


def test_nothing_accepted_is_said_and_leaves_no_samples(fresh):
    status, printed = run_sample(fresh, "verifier.name=verifiers_of_tests.py:never_right")
    assert status == 1, printed
    assert "nothing was kept" in printed.splitlines()[-1]
    assert not (fresh / "run" / "samples.jsonl").exists()


def test_a_broken_verifier_ends_the_run_and_counts_nobody_wrong(fresh):
    status, printed = run_sample(fresh, "verifier.name=verifiers_of_tests.py:always_raises")
    assert status == 1, printed
    assert "could not decide" in printed.splitlines()[-1]
    assert not (fresh / "run" / "samples.jsonl").exists()


@pytest.mark.slow
@pytest.mark.vllm
def test_with_vllm(tmp_path):
    write_sample(tmp_path, backend="vllm")
    status, printed = run_sample(tmp_path)
    assert status == 0, printed
    assert "kept" in printed
