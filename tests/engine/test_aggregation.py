"""engine/aggregation.py: weights by hand, and that they depend on nothing but the optimizer step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verigrad.engine.aggregation import constant, seq_mean_token_mean, seq_mean_token_sum, token_mean

ALL = [token_mean, seq_mean_token_mean, seq_mean_token_sum, constant(8)]
steps = st.lists(st.integers(0, 50), min_size=1, max_size=12)
aggregations = st.sampled_from(ALL)


@pytest.mark.parametrize(
    ("aggregate", "weights"),
    [
        (token_mean, [0.25, 0.25, 0.0]),
        (seq_mean_token_mean, [0.5, 1 / 6, 0.0]),
        (seq_mean_token_sum, [0.5, 0.5, 0.0]),
        (constant(8), [1 / 16, 1 / 16, 0.0]),
    ],
)
def test_a_rollout_without_trainable_tokens_leaves_the_denominator(aggregate, weights):
    assert aggregate([1, 3, 0]) == pytest.approx(weights)


@pytest.mark.parametrize("aggregate", ALL)
def test_a_step_without_trainable_tokens_weighs_nothing(aggregate):
    assert aggregate([0, 0]) == [0.0, 0.0]
    assert aggregate([]) == []


@given(aggregations, steps, st.randoms())
def test_weights_follow_their_rollout_in_any_order(aggregate, num_tokens, random):
    order = list(range(len(num_tokens)))
    random.shuffle(order)
    weights = aggregate(num_tokens)
    assert aggregate([num_tokens[i] for i in order]) == [weights[i] for i in order]


@given(aggregations, steps, st.data())
def test_any_split_into_micro_batches_adds_up_to_the_same_loss(aggregate, num_tokens, data):
    losses = [
        data.draw(st.lists(st.floats(-10, 10), min_size=n, max_size=n)) if n < 4 else [float(n)] * n
        for n in num_tokens
    ]
    weighted = [w * sum(row) for w, row in zip(aggregate(num_tokens), losses, strict=True)]
    cut = data.draw(st.integers(0, len(num_tokens)))
    assert sum(weighted[:cut]) + sum(weighted[cut:]) == pytest.approx(sum(weighted), abs=1e-9)
    if aggregate is token_mean and sum(num_tokens):
        mean = sum(map(sum, losses)) / sum(num_tokens)
        assert sum(weighted) == pytest.approx(mean, abs=1e-9)


@given(aggregations, steps)
def test_empty_rollouts_change_nothing(aggregate, num_tokens):
    assert aggregate([*num_tokens, 0])[:-1] == aggregate(num_tokens)
