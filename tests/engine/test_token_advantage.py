"""engine/token_advantage.py against the reference vectors and rollouts worked out by hand."""

import dataclasses
import itertools
import math
import random

import pytest
import torch

from tests.vectors import load
from verigrad.engine.schema import PackedBatch
from verigrad.engine.token_advantage import place

NOTHING = {"per_token": "", "gamma": 1.0, "kl_coef": 0.0, "kl_estimator": "k1"}
GARBAGE = 77.0  # in every column that is not trained


@dataclasses.dataclass(frozen=True)
class Row:
    """One rollout: its number, which of its tokens are trained, and what is known of each token."""

    advantage: float
    mask: list[float]
    old: list[float] | None = None
    ref: list[float] | None = None
    collision: list[float] | None = None
    group: int = 0
    prompt: int = 2  # tokens before the completion


def batch_of(rows):
    """Rows packed end to end, label-aligned, with garbage wherever nothing is trained."""

    def column(values):
        out = []
        for row in rows:
            trained = values(row) or [0.0] * len(row.mask)
            out += [GARBAGE] * (row.prompt - 1)
            out += [v if m else GARBAGE for v, m in zip(trained, row.mask, strict=True)] + [GARBAGE]
        return torch.tensor(out, dtype=torch.float32)

    lengths = [row.prompt + len(row.mask) for row in rows]
    mask = [m for row in rows for m in [False] * (row.prompt - 1) + [bool(m) for m in row.mask] + [False]]
    ids = torch.zeros(len(mask), dtype=torch.int64)
    old = column(lambda row: row.old)
    return PackedBatch(
        input_ids=ids,
        position_ids=ids,
        cu_seqlens=torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32),
        labels=ids,
        loss_mask=torch.tensor(mask),
        rollout_logprobs=old,
        old_logprobs=old,
        ref_logprobs=None if rows[0].ref is None else column(lambda row: row.ref),
        advantages=torch.tensor([row.advantage for row in rows]).repeat_interleave(torch.tensor(lengths)),
        loss_weights=torch.ones(len(mask)),
        old_collision=None if rows[0].collision is None else column(lambda row: row.collision),
        groups=torch.tensor([row.group for row in rows]),
    )


def placed(rows, *, cuts=(), **options):
    """Advantages of each row's tokens, 0 where not trained; `cuts` split the rows into batches."""
    edges = [0, *cuts, len(rows)]
    batches = [batch_of(rows[a:b]) for a, b in itertools.pairwise(edges)]
    result = place(batches, **NOTHING | options)
    values = []
    for batch in result:
        assert batch.advantages.dtype == torch.float32
        assert (batch.advantages[~batch.loss_mask] == 0.0).all()
        for start, end in itertools.pairwise(batch.cu_seqlens.tolist()):
            values.append(batch.advantages[start:end])
    return [v[row.prompt - 1 : -1].tolist() for v, row in zip(values, rows, strict=True)]


def test_nothing_to_do_leaves_each_rollouts_number_on_its_trained_tokens():
    rows = [Row(0.7, [1, 1, 0, 1]), Row(-0.3, [1]), Row(0.5, [0, 0])]
    numbers = torch.tensor([0.7, -0.3]).tolist()
    assert placed(rows) == [[numbers[0], numbers[0], 0.0, numbers[0]], [numbers[1]], [0.0, 0.0]]


def test_the_rest_of_a_batch_stays_and_the_argument_is_not_changed():
    batch = batch_of([Row(1.0, [1, 1]), Row(0.0, [1])])
    before = batch.advantages.clone()
    (result,) = place([batch], **NOTHING | {"per_token": "whiten", "gamma": 0.5})
    assert batch.advantages.tolist() == before.tolist()
    assert result.advantages.tolist() != before.tolist()
    for field in dataclasses.fields(PackedBatch):
        if field.name != "advantages":
            assert getattr(result, field.name) is getattr(batch, field.name)


def test_the_number_is_discounted_per_trained_token_only():
    # the tool's two tokens in the middle and the one after the last trained token cost nothing
    (values,) = placed([Row(8.0, [1, 1, 0, 0, 1, 0])], gamma=0.5)
    assert values == [2.0, 4.0, 0.0, 0.0, 8.0, 0.0]


def kl_rows(vector):
    inputs = vector.inputs
    columns = zip(inputs["score"], inputs["mask"], inputs["old_logp"], inputs["ref_logp"], strict=True)
    return [Row(score, mask, old=old, ref=ref) for score, mask, old, ref in columns]


def test_kl_in_the_reward_and_the_return_match_the_reference():
    rows = kl_rows(load("kl_in_reward_tokens"))
    returns = load("adv_reinforce_pp")
    values = placed(rows, gamma=returns.params["gamma"], kl_coef=0.05)
    returns.check(values, "returns")


def test_reinforce_pp_matches_the_reference():
    rows = kl_rows(load("kl_in_reward_tokens"))
    vector = load("adv_reinforce_pp")
    for cuts in ((), (2,), (1, 2, 3)):
        values = placed(rows, per_token="whiten", gamma=vector.params["gamma"], kl_coef=0.05, cuts=cuts)
        vector.check(values, "adv")
        vector.check_no_bug(values, "whitened_with_padding")


def test_reinforce_pp_baseline_matches_the_reference():
    vector = load("adv_reinforce_pp_baseline")
    centred = [0.5, -0.5, 0.45, -0.45]  # 1.0 and 0.0; 0.7 and -0.2
    vector.check(
        placed([Row(a, m) for a, m in zip(centred, vector.inputs["mask"], strict=True)], per_token="whiten"),
        "adv",
    )


def test_whitening_matches_the_reference_and_divides_by_n_minus_1():
    vector = load("masked_whiten")
    numbers = [values[0] for values in vector.inputs["values"]]
    rows = [Row(a, m) for a, m in zip(numbers, vector.inputs["mask"], strict=True)]
    values = placed(rows, per_token="whiten", cuts=(3,))
    vector.check(values, "ddof1")
    assert abs(values[0][0] - vector.expected["ddof0"][0][0]) > 1e-2


def test_every_estimator_pays_its_own_kl():
    # d = log(policy / reference) = -1 and 0.5; nothing but the KL, 0.1 per nat, from each token on
    row = Row(0.0, [1, 0, 1], old=[-2.0, 0.0, -0.5], ref=[-1.0, 0.0, -1.0])
    k3 = [math.e - 2, math.exp(-0.5) - 0.5]
    for estimator, first, last in [
        ("k1", -1.0, 0.5),
        ("k2", 0.5, 0.125),
        ("abs", 1.0, 0.5),
        ("k3", *k3),
    ]:
        (values,) = placed([row], kl_coef=0.1, kl_estimator=estimator)
        assert values == pytest.approx([-0.1 * (first + last), 0.0, -0.1 * last], abs=1e-6)


def test_no_kl_is_paid_where_its_weight_is_zero_or_a_log_probability_is_unknown():
    row = Row(1.0, [1, 1], old=[-2.0, math.nan], ref=[-1.0, -1.0])
    assert placed([row], kl_coef=0.0) == [[1.0, 1.0]]
    assert placed([row], kl_coef=0.5) == [[1.5, 1.0]]  # the first token pays -0.5 times -1


def test_kl_in_the_reward_without_a_reference_is_our_fault():
    with pytest.raises(AssertionError, match="needs a reference"):
        placed([Row(1.0, [1])], kl_coef=0.1)
    with pytest.raises(AssertionError, match="sum of squared"):
        placed([Row(1.0, [1])], per_token="optimal_baseline")
    batch = dataclasses.replace(batch_of([Row(1.0, [1], collision=[1.0])]), groups=None)
    with pytest.raises(AssertionError, match="groups"):
        place([batch], **NOTHING | {"per_token": "optimal_baseline"})


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [Row(0.7, [1])],
        [Row(0.7, [0])],
        [Row(0.1, [1] * 5), Row(0.1, [1])],
        [Row(1e-9, [1]), Row(0.0, [1])],
    ],
)
def test_tokens_that_are_all_equal_are_whitened_to_exactly_zero(rows):
    batches = [batch_of(rows)] if rows else []
    for batch in place(batches, **NOTHING | {"per_token": "whiten"}):
        assert batch.advantages.tolist() == [0.0] * batch.advantages.numel()


def baseline_rows(vector):
    inputs = vector.inputs
    rewards = [sum(values) for values in inputs["token_rewards"]]
    columns = zip(
        rewards, inputs["mask"], inputs["old_logp"], inputs["sum_pi_squared"], inputs["group"], strict=True
    )
    return [Row(r, m, old=o, collision=c, group=g) for r, m, o, c, g in columns]


def test_the_optimal_token_baseline_matches_the_reference():
    vector = load("adv_optimal_token_baseline")
    expected = vector.expected["adv"]
    values = placed(baseline_rows(vector), per_token="optimal_baseline", cuts=(1,))
    for row, columns in [(0, (0, 1, 4, 5)), (1, (0, 1, 2, 3)), (2, range(6)), (3, range(6))]:
        assert [values[row][t] for t in columns] == pytest.approx(
            [expected[row][t] for t in columns], abs=vector.tolerance
        )


def test_rollouts_with_tool_output_are_compared_by_their_trained_tokens():
    # In the reference's columns the first rollout stands alone where the second has its tool's output: it is
    # its own baseline, 0 on a rollout that was right. Here its third token meets the second one's third.
    vector = load("adv_optimal_token_baseline")
    values = placed(baseline_rows(vector), per_token="optimal_baseline")
    old, collision = vector.inputs["old_logp"], vector.inputs["sum_pi_squared"]

    def norms(row, columns):
        return torch.tensor([1 - 2 * math.exp(old[row][t]) + collision[row][t] for t in columns]).cumsum(0)

    first, second = norms(0, range(4)), norms(1, (0, 1, 4, 5))
    baseline = (first / (first + second)).tolist()  # rewards 1 and 0
    assert values[0][:4] == pytest.approx([1 - b for b in baseline], abs=1e-6)
    assert [values[1][t] for t in (0, 1, 4, 5)] == pytest.approx([-b for b in baseline], abs=1e-6)
    assert abs(values[0][2] - vector.expected["adv"][0][2]) > 0.1


def test_a_baseline_worked_out_by_hand():
    # score norms 1 - 2 p + c: 0.25 then 0.75 in all, against 0.75; rewards 1 and 0; then one is alone
    half = math.log(0.5)
    rows = [
        Row(1.0, [1, 1], old=[half, half], collision=[0.25, 0.5]),
        Row(0.0, [1], old=[half], collision=[0.75], prompt=5),
    ]
    assert placed(rows, per_token="optimal_baseline") == [
        pytest.approx([0.75, 1.0], abs=1e-6),
        pytest.approx([-0.25], abs=1e-6),
    ]


def test_equal_rewards_leave_exactly_nothing_up_to_the_second_longest():
    rows = [Row(0.7, [1] * n, old=[-1.3] * n, collision=[0.31] * n) for n in (4, 4, 3)]
    assert placed(rows, per_token="optimal_baseline") == [[0.0] * 4, [0.0] * 4, [0.0] * 3]


def test_a_rollout_whose_group_is_not_in_the_batches_keeps_its_kl_alone():
    lone = Row(0.7, [1, 1], old=[-1.0, -1.0], ref=[-2.0, -2.0], collision=[0.3, 0.3], group=3)
    empty = dataclasses.replace(lone, mask=[0, 0])  # of the same group, with nothing trained
    assert placed([lone, empty], per_token="optimal_baseline") == [[0.0, 0.0], [0.0, 0.0]]
    (values,) = placed([lone], per_token="optimal_baseline", kl_coef=0.25)
    assert values == [-0.5, -0.25]


def test_certain_tokens_and_missing_log_probabilities_have_no_score():
    rows = [
        Row(1.0, [1, 1], old=[1e-7, -1.0], collision=[1.0, 0.4]),  # p of just above 1, as float32 gives
        Row(0.0, [1, 1], old=[math.nan, -1.0], collision=[math.nan, 0.4]),
    ]
    first, second = placed(rows, per_token="optimal_baseline")
    assert all(map(math.isfinite, first + second))
    assert (first[1], second[1]) == (pytest.approx(0.5, abs=1e-6), pytest.approx(-0.5, abs=1e-6))


def test_rounding_of_certain_tokens_cannot_throw_a_baseline_out_of_its_rewards():
    # 1 - 2 p + c is -2.0e-7 and 2.2e-7 here: as weights they would make a baseline of 11 rewards
    rows = [
        Row(0.0, [1, 0], old=[1e-7, 0.0], collision=[1.0, 0.0]),
        Row(1.0, [1, 0], old=[-1.1e-7, 0.0], collision=[1.0, 0.0]),
    ]
    (first,), (second,) = ([v[0]] for v in placed(rows, per_token="optimal_baseline"))
    assert -1.0 <= first <= 0.0 <= second <= 1.0


@pytest.mark.parametrize("per_token", ["", "whiten", "optimal_baseline"])
def test_values_depend_neither_on_packing_nor_on_order(per_token):
    rng = random.Random(3)
    rows = []
    for index in range(40):
        n = rng.randint(1, 30)
        mask = [float(rng.random() < 0.8) for _ in range(n - 1)] + [1.0]
        old, ref = ([-rng.expovariate(1.0) for _ in range(n)] for _ in range(2))
        collision = [rng.uniform(0.05, 1.0) for _ in range(n)]
        rows.append(Row(rng.random(), mask, old, ref, collision, group=index // 4, prompt=rng.randint(1, 5)))
    options = {"per_token": per_token, "gamma": 0.97, "kl_coef": 0.05, "kl_estimator": "k3"}
    once = placed(rows, **options)
    for _ in range(3):
        order = rng.sample(range(40), 40)
        cuts = sorted(rng.sample(range(1, 40), 6))
        again = placed([rows[i] for i in order], cuts=cuts, **options)
        for place_now, i in enumerate(order):
            assert again[place_now] == pytest.approx(once[i], abs=1e-6)


def test_long_rollouts_are_added_up_in_float64():
    n = 100_000
    row = Row(0.0, [1.0] * n, old=[0.1] * n, ref=[0.0] * n)
    (values,) = placed([row], kl_coef=1.0)
    tenth = torch.tensor(0.1).item()  # as float32 holds it
    assert values[0] == torch.tensor(-n * tenth).item()


def test_the_token_baseline_is_of_reward_and_kl_together():
    # d = 1 and 0 at weight 0.5: the first gets 1 - 0.5, the second 0; equal score norms, so a baseline of 1/4
    rows = [
        Row(1.0, [1], old=[-1.0], ref=[-2.0], collision=[0.3]),
        Row(0.0, [1], old=[-1.0], ref=[-1.0], collision=[0.3]),
    ]
    (first,), (second,) = placed(rows, per_token="optimal_baseline", kl_coef=0.5)
    assert (first, second) == pytest.approx((0.25, -0.25), abs=1e-6)
