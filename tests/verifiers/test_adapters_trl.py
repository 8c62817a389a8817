"""TRL reward functions as verifiers, and verifiers in TRL's own GRPOTrainer."""

import json
import textwrap

import pytest

from tests import tiny
from verigrad.verifiers import registry
from verigrad.verifiers.adapters import trl as adapter
from verigrad.verifiers.base import Attempt, Problem
from verigrad.verifiers.isolation import VerifierPool

REWARDS = '''
def by_column(prompts, completions, kind, answer, **kwargs):
    """0.5 for the right kind, 1 for the right answer."""
    return [1.0 if a in c else 0.5 if k in c else 0.0 for c, k, a in zip(completions, kind, answer)]

async def slowly(prompts, completions, **kwargs):
    return [None if "?" in c else float(len(c)) for c in completions]

def chatty(prompts, completions, **kwargs):
    assert prompts[0][-1]["role"] == "user"
    return [c[-1]["content"] == "yes" and c[-1]["role"] == "assistant" for c in completions]

def logs(completions, log_metric, log_extra, trainer_state, **kwargs):
    log_metric("length", sum(map(len, completions)) / len(completions))
    log_extra("seen", completions)
    return [1.0 if trainer_state.global_step == 0 else 0.0] * len(completions)

def too_few(completions, **kwargs):
    return [1.0]

def nothing(completions, **kwargs):
    return None

def reads_tokens(completions, completion_ids, **kwargs):
    return [float(len(ids)) for ids in completion_ids]

def nan(completions, **kwargs):
    return [float("nan") for _ in completions]

not_a_function = 3
'''
LOWER = """
def lower(text, answer, level):
    return None if answer == "lost" else level * text[:1].islower()
"""


@pytest.fixture
def judge(tmp_path):
    (tmp_path / "rewards.py").write_text(textwrap.dedent(REWARDS))

    def judge(name, *texts, prompt="2+2?", options=None, **meta):
        verifier = registry.load(f"trl:{tmp_path / 'rewards.py'}:{name}", options)
        return verifier.judge(Problem("1", prompt, "4", meta), [Attempt(text) for text in texts])

    return judge


def test_columns_arrive_by_name(judge):
    verdicts = judge("by_column", "it is 4", "even", "odd", kind="even")
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.5, 0.0]
    assert [verdict.outcome for verdict in verdicts] == ["right", "partial", "wrong"]


def test_the_answer_can_have_another_name_and_more_arguments_can_be_given(judge):
    with pytest.raises(TypeError, match="answer"):
        judge("by_column", "4", kind="even", options={"answer_column": "solution"})
    options = {"answer_column": "solution", "kwargs": {"answer": ["5"]}}
    assert judge("by_column", "it is 5", kind="even", options=options)[0].reward == 1.0


def test_async_is_awaited_and_none_is_undecided(judge):
    verdicts = judge("slowly", "abc", "?")
    assert [verdict.reward for verdict in verdicts] == [3.0, None]
    assert judge("nan", "x")[0].reward is None


def test_a_chat_prompt_gives_chat_completions(judge):
    verdicts = judge("chatty", "yes", "no", prompt=[{"role": "user", "content": "well?"}])
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0]


def test_what_trl_provides_has_stand_ins(judge):
    (one, two) = judge("logs", "ab", "abcd")
    assert (one.reward, two.reward, one.parts["length"]) == (1.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("name", "says"),
    [("too_few", "1 rewards for 2"), ("nothing", "no list for 2"), ("reads_tokens", "read the text")],
)
def test_a_broken_contract_is_never_a_reward(judge, name, says, tmp_path):
    with pytest.raises((ValueError, TypeError), match=says):
        judge(name, "a", "b")
    with VerifierPool(f"trl:{tmp_path / 'rewards.py'}:{name}", num_workers=1) as pool:
        verdicts = pool.submit(Problem("1", "p", "4"), [Attempt("a"), Attempt("b")]).result(60)
    assert [verdict.reward for verdict in verdicts] == [None, None]


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("trl:no_such_module:f", "no module 'no_such_module'"),
        ("trl:nothing", "not known"),
        ("trl:{file}:by_colum", "did you mean 'by_column'"),
        ("trl:{file}:not_a_function", "expected a reward function"),
    ],
)
def test_a_wrong_reference_is_one_clear_line(tmp_path, reference, says):
    (tmp_path / "rewards.py").write_text(REWARDS)
    with pytest.raises(ValueError, match=says):
        registry.load(reference.format(file=tmp_path / "rewards.py"))


def test_trls_own_reward_functions_are_verifiers():
    think = registry.load("trl:trl.rewards:think_format_reward")
    texts = ["<think>\nhm\n</think>\n4", "4"]
    prompt = [{"role": "user", "content": "2+2?"}]
    verdicts = think.judge(Problem("1", prompt, "4"), [Attempt(text) for text in texts])
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0]


# Ours in theirs ---------------------------------------------------------------------------------------------


def test_a_verifier_judges_columns_chat_and_text():
    with adapter.as_reward_func("math_answer", num_workers=1) as reward:
        chat = [[{"role": "assistant", "content": r"\boxed{4}"}], [{"role": "assistant", "content": "no"}]]
        assert reward(prompts=["2+2?"] * 2, completions=chat, answer=["4", "4"], trainer_state=None) == [1, 0]
        assert reward(["a", "b"], [r"\boxed{1/2}", r"\boxed{3}"], answer=["0.5", "4"]) == [1.0, 0.0]
        assert reward.__name__ == "math_answer"
        with pytest.raises(ValueError, match="'answer' as 1 values; expected a list of 2"):
            reward(["a", "b"], ["1", "2"], answer=["4"])


def test_a_group_verifier_sees_the_completions_of_one_prompt_together(tmp_path):
    (tmp_path / "group.py").write_text("def size(texts):\n    return [len(texts)] * len(texts)\n")
    with adapter.as_reward_func(f"{tmp_path / 'group.py'}:size", num_workers=1) as reward:
        assert reward(["a", "a", "a", "b"], ["1", "2", "3", "4"]) == [3.0, 3.0, 3.0, 1.0]


def test_a_failing_check_is_none_for_trl(tmp_path):
    (tmp_path / "broken.py").write_text("def broken(text):\n    raise OSError('the judge is away')\n")
    with adapter.as_reward_func(f"{tmp_path / 'broken.py'}:broken", num_workers=1) as reward:
        assert reward(["a"], ["1"]) == [None]


def test_an_unknown_verifier_or_option_is_refused_before_training():
    with pytest.raises(ValueError, match="did you mean 'math_answer'"):
        adapter.as_reward_func("math_anser")
    with pytest.raises(ValueError, match="no option 'require'"):
        adapter.as_reward_func("math_answer", require=True)


def test_grpo_trainer_trains_on_a_verifier(tmp_path):
    """Two steps of the real trainer: the rewards in its log are the verdicts."""
    import datasets
    import trl

    (tmp_path / "lower.py").write_text(LOWER)
    rows = [{"prompt": f"{n}+1=", "answer": "lost" if n == 3 else str(n + 1), "level": 0.5} for n in range(4)]
    seen = []

    with adapter.as_reward_func(f"{tmp_path / 'lower.py'}:lower", num_workers=1) as reward:

        def spy(prompts, completions, **columns):
            given = reward(prompts, completions, **columns)
            seen.extend(zip(prompts, completions, given, strict=True))
            return given

        args = trl.GRPOConfig(
            output_dir=str(tmp_path / "out"), use_cpu=True, max_steps=2, per_device_train_batch_size=8,
            num_generations=4, max_completion_length=4, report_to=[], logging_steps=1, learning_rate=1e-3,
            save_strategy="no", bf16=False, gradient_checkpointing=False,
        )  # fmt: skip
        trainer = trl.GRPOTrainer(
            tiny.model_folder(),
            reward_funcs=[spy],
            args=args,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tiny.tokenizer(),
        )
        trainer.train()
    assert len(seen) == 16
    for prompt, completion, given in seen:
        expected = None if prompt == "3+1=" else 0.5 * completion[:1].islower()
        assert given == expected, (prompt, completion)
    logged = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    assert len(logged) == 2
    assert json.dumps(logged) != json.dumps([0.0, 0.0])
