import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import rollout
from verigrad.engine.aggregation import token_mean
from verigrad.engine.pack import lay_out, pack
from verigrad.engine.prefixes import layout_of
from verigrad.engine.schema import ScoredGroup
from verigrad.verifiers.base import Problem, Verdict


def group(*rollouts, verdicts=None, advantages=None):
    verdicts = verdicts or [Verdict.right()] * len(rollouts)
    return ScoredGroup(Problem("p", "q", "a"), rollouts, verdicts, advantages or [1.0] * len(rollouts))


def test_columns_speak_about_the_next_token():
    a = rollout([5, 6], [7, 8, 1], logprobs=[-0.7, -0.8, -0.1])
    b = rollout([9], [4], logprobs=[-0.4])
    [batch] = pack([group(a, b, advantages=[0.5, -2.0])], token_mean, max_tokens=100)
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 1, 9, 4]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert batch.labels.tolist() == [6, 7, 8, 1, 0, 4, 0]
    assert batch.loss_mask.tolist() == [False, True, True, True, False, True, False]
    assert batch.rollout_logprobs[batch.loss_mask].tolist() == torch.tensor([-0.7, -0.8, -0.1, -0.4]).tolist()
    assert batch.advantages[batch.loss_mask].tolist() == [0.5, 0.5, 0.5, -2.0]
    assert batch.loss_weights[batch.loss_mask].tolist() == [0.25] * 4
    assert batch.cu_seqlens.tolist() == [0, 5, 7]


def test_undecided_rollouts_are_in_neither_batch_nor_denominator():
    kept, lost = rollout([5], [6, 1]), rollout([5], [7, 8, 9, 1])
    groups = [group(kept, lost, verdicts=[Verdict.right(), Verdict.undecided("dead")])]
    [batch] = pack(groups, token_mean, max_tokens=100)
    assert batch.input_ids.tolist() == [5, 6, 1]
    assert batch.loss_weights[batch.loss_mask].tolist() == [0.5, 0.5]


def test_truncated_rollouts_leave_the_loss_only_under_the_filter():
    whole, cut = rollout([5], [6, 1]), rollout([5], [7, 8], finish="length")
    assert pack([group(whole, cut)], token_mean, max_tokens=100)[0].num_rollouts == 2
    assert pack([group(whole, cut)], token_mean, max_tokens=100, overlong_filter=True)[0].num_rollouts == 1


def test_nothing_to_train_on_gives_no_batch():
    assert pack([], token_mean, max_tokens=10) == []
    assert (
        pack([group(rollout([5], [6]), verdicts=[Verdict.undecided("x")])], token_mean, max_tokens=10) == []
    )


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60))
def test_every_rollout_lands_in_one_batch_within_the_budget(lengths):
    rollouts = [rollout([3], list(range(4, 4 + n))) for n in lengths]
    batches = pack([group(*rollouts)], token_mean, max_tokens=64)
    assert all(len(layout_of(batch.input_ids, batch.cu_seqlens).columns) <= 64 for batch in batches)
    found = sorted(n for batch in batches for n in batch.cu_seqlens.diff().tolist())
    assert found == sorted(n + 1 for n in lengths)
    assert len(batches) <= -(-11 * -(-sum(n + 1 for n in lengths) // 64) // 9) + 1
    assert abs(sum(float(b.loss_weights[b.loss_mask].sum()) for b in batches) - 1) < 1e-5


def test_a_group_lies_together_and_its_prompt_counts_once():
    prompt = list(range(5, 45))  # 40 tokens
    groups = [group(*(rollout([i, *prompt], [6 + j] * 9) for j in range(4))) for i in (3, 4)]
    batches = pack(groups, token_mean, max_tokens=77)  # 41 + 4 * 9
    assert [batch.groups.tolist() for batch in batches] == [[0] * 4, [1] * 4]
    assert len(pack(groups, token_mean, max_tokens=77, share_prefixes=False)) == 8  # 50 tokens each


def test_a_group_too_large_for_the_budget_is_divided():
    prompt = list(range(5, 45))
    batches = pack([group(*(rollout(prompt, [6 + j] * 9) for j in range(5)))], token_mean, max_tokens=60)
    assert [batch.num_rollouts for batch in batches] == [2, 2, 1]


def test_lay_out_is_a_batch_of_weight_zero():
    batch = lay_out([rollout([5], [6]), rollout([5, 6], [7, 8])])
    assert batch.cu_seqlens.tolist() == [0, 4, 6]
    assert not batch.loss_weights.any()
