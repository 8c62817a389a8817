"""engine/advantage.py against the reference vectors and groups worked out by hand."""

import inspect
import itertools
import math
from functools import partial

import pytest
import torch

from tests.vectors import load
from verigrad.engine import catalogue
from verigrad.engine.advantage import (
    ADVANTAGES,
    batch_norm,
    batch_std,
    gdpo,
    gpg,
    group_mean,
    group_norm,
    leave_one_out,
    length_shaped,
    maxrl,
    opo,
    optimal_token_baseline,
    pass_at_k,
    pkpo,
    pkpo_weights,
    raw,
    reinforce_pp,
    reinforce_pp_baseline,
    remax,
    score,
    soft_overlong,
    top_two,
    unshaped,
)
from verigrad.engine.failures import WorkError
from verigrad.engine.schema import GroupRewards, Rollout, VerifiedGroup
from verigrad.verifiers.base import Problem, Verdict


def rollout(num_tokens=3, finish_reason="stop"):
    length = num_tokens + 1
    return Rollout(
        token_ids=[1] * length,
        loss_mask=[False] + [True] * num_tokens,
        logprobs=[0.0] * length,
        policy_versions=[-1] + [0] * num_tokens,
        text="",
        finish_reason=finish_reason,
        seed=0,
    )


def group(rewards, lengths=None, parts=None):
    """A verified group; a reward of None is an undecided verdict."""
    parts = parts or [{}] * len(rewards)
    verdicts = [
        Verdict.undecided("sandbox died") if r is None else Verdict(r, "right" if r else "wrong", parts=p)
        for r, p in zip(rewards, parts, strict=True)
    ]
    lengths = lengths or [3] * len(rewards)
    return VerifiedGroup(Problem("p", "?"), [rollout(n) for n in lengths], verdicts)


def column(values):
    return torch.as_tensor(values, dtype=torch.float64)


def given(rewards, *, lengths=None, right=None, parts=None, greedy=None):
    """What an advantage sees of one group; by default a reward of 1 is right."""
    lengths = [3.0] * len(rewards) if lengths is None else lengths
    parts = {name: column(values) for name, values in (parts or {}).items()}
    right = column(rewards) == 1 if right is None else torch.tensor(right)
    return GroupRewards(column(rewards), column(lengths), right, parts, greedy)


def run(vector, function, order=None, drop=()):
    """Advantages of a vector's rewards, grouped by id, back in the vector's order; NaN for dropped groups."""
    ids = vector.inputs["group"]
    rewards = vector.tensor("rewards")
    lengths = vector.tensor("length") if "length" in vector.inputs else torch.ones(len(ids))
    indices = [i for i in (order if order is not None else range(len(ids))) if ids[i] not in drop]
    members = {g: [i for i in indices if ids[i] == g] for g in dict.fromkeys(ids[i] for i in indices)}
    result = torch.full_like(rewards, torch.nan)
    groups = [given(rewards[m], lengths=lengths[m]) for m in members.values()]
    for places, values in zip(members.values(), function(groups), strict=True):
        result[places] = values
    return result


def every(name):
    """The function of this name with the numbers it starts from."""
    part = catalogue.ADVANTAGES[name]
    settings = dict(part.settings) | ({"part_weights": {}} if part.parts else {})
    return partial(ADVANTAGES[name], **settings)


def test_every_name_of_the_catalogue_has_a_function_that_takes_exactly_its_settings():
    assert ADVANTAGES.keys() == catalogue.ADVANTAGES.keys()
    for name, part in catalogue.ADVANTAGES.items():
        parameters = inspect.signature(ADVANTAGES[name]).parameters.values()
        keywords = {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
        assert keywords == set(part.settings) | ({"part_weights"} if part.parts else set()), name
        assert [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY] == ["groups"]


@pytest.mark.parametrize("name", ["adv_grpo_verl_eps1e-6", "adv_grpo_trl_eps1e-4"])
def test_group_norm_matches_the_reference(name):
    vector = load(name)
    advantages = run(vector, partial(group_norm, std_eps=vector.params["eps"]))
    vector.check(advantages, "adv")
    vector.check_no_bug(advantages)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("adv_dr_grpo", group_mean),
        ("adv_dr_grpo", reinforce_pp_baseline),
        ("adv_rloo", leave_one_out),
        ("adv_grpo_batch_std", partial(batch_std, std_eps=1e-4)),
    ],
)
def test_group_baselines_match_the_reference(name, function):
    vector = load(name)
    vector.check(run(vector, function), "adv")


@pytest.mark.parametrize(("name", "function", "lone"), [("adv_opo", opo, 0.3), ("adv_gpg", gpg, 0.39 / 1.1)])
def test_opo_and_gpg_match_the_reference_but_for_its_group_of_one(name, function, lone):
    vector = load(name)
    advantages = run(vector, function)
    assert vector.expected["adv"][-1] == pytest.approx(lone)  # the raw reward, times gpg's 13 / 11
    vector.expected["adv"][-1] = 0.0
    vector.check(advantages, "adv")
    assert advantages[-1] == 0.0


def test_maxrl_matches_the_reference_where_rewards_are_not_negative():
    vector = load("adv_maxrl")
    advantages = run(vector, maxrl, drop=[1])
    kept = [i for i, g in enumerate(vector.inputs["group"]) if g != 1]
    vector.expected["kept"] = [vector.expected["adv"][i] for i in kept]
    vector.check(advantages[kept], "kept")


def test_maxrl_refuses_a_negative_reward_in_one_line():
    with pytest.raises(WorkError, match=r"'maxrl'.*found a reward of -0\.5; expected 0 or more") as error:
        maxrl([given([1.0, 0.0]), given([0.5, -0.5])])
    assert "\n" not in str(error.value)
    assert [v.tolist() for v in maxrl([given([0.0, -1e-12, 0.0]), given([])])] == [[0, 0, 0], []]


def test_remax_matches_the_reference_where_the_reward_comes_at_the_end():
    vector = load("adv_remax")
    for row in (1, 2, 3):
        reward = sum(vector.inputs["token_rewards"][row])
        (value,) = remax([given([reward], greedy=vector.inputs["greedy_reward"][row])])
        assert value.tolist() == pytest.approx([vector.expected["adv_masked"][row][0]])


def test_remax_gives_nothing_where_the_greedy_rollout_is_undecided_and_zero_is_a_reward():
    groups = [given([1.0, 0.25]), given([1.0, 0.25], greedy=0.0), given([0.5], greedy=0.5)]
    assert [v.tolist() for v in remax(groups)] == [[0.0, 0.0], [1.0, 0.25], [0.0]]


def test_raw_rewards_have_no_baseline():
    groups = [given([0.7, -0.2]), given([0.3]), given([])]
    for function in (raw, partial(reinforce_pp, gamma=0.9)):
        assert [v.tolist() for v in function(groups)] == [[0.7, -0.2], [0.3], []]
    assert [v.tolist() for v in optimal_token_baseline(groups)] == [[0.7, -0.2], [0.0], []]


def test_advantages_of_batch_norm_have_one_baseline_for_all_groups():
    values = batch_norm([given([1.0, 0.0]), given([1.0]), given([0.0])], std_eps=1e-6)
    std = (4 * 0.25 / 3) ** 0.5
    assert [v.tolist() for v in values] == [
        pytest.approx([0.5 / std, -0.5 / std], abs=1e-5),
        pytest.approx([0.5 / std], abs=1e-5),
        pytest.approx([-0.5 / std], abs=1e-5),
    ]
    assert [v.tolist() for v in batch_norm([given([1.0, 1.0]), given([1.0])], std_eps=1e-6)] == [[0, 0], [0]]


def parts_of(vector):
    matrix, ids = vector.tensor("reward_matrix"), column(vector.inputs["group"])
    return [
        given(rows.sum(1), parts={"answer": rows[:, 0], "format": rows[:, 1]})
        for rows in (matrix[ids == 0], matrix[ids == 1])
    ]


def test_gdpo_matches_the_reference():
    vector = load("adv_gdpo")
    values = torch.cat(
        gdpo(parts_of(vector), std_eps=vector.params["eps"], part_weights={"answer": 1.0, "format": 0.5})
    )
    vector.check(values, "adv")
    vector.check_no_bug(values)


def test_gdpo_weighs_a_part_by_1_where_no_weight_names_it():
    groups = parts_of(load("adv_gdpo"))
    silent = gdpo(groups, std_eps=1e-4, part_weights={"format": 0.5})
    full = gdpo(groups, std_eps=1e-4, part_weights={"answer": 1.0, "format": 0.5})
    for one, other in zip(silent, full, strict=True):
        assert one.tolist() == other.tolist()
    ignored = torch.cat(gdpo(groups, std_eps=1e-4, part_weights={"answer": 0.0, "format": 1.0}))
    assert ignored[5] > 0 > ignored[4]  # in the second group only "format" differs


def test_gdpo_groups_without_signal_get_exactly_zero_beside_others():
    groups = [given([0.3] * 3, parts={"a": [0.1] * 3}), given([1.0, 0.0, 0.7], parts={"a": [1.0, 0.0, 0.7]})]
    silent, other = gdpo(groups, std_eps=1e-4, part_weights={})
    assert silent.tolist() == [0.0, 0.0, 0.0]
    assert other[0] > 0
    assert gdpo([given([]), given([0.5])], std_eps=1e-4, part_weights={})[1].tolist() == [0.0]


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ({}, {}, r"no part that all verdicts.*verifier\.name = 'combine'"),
        ({"answer": [1.0, 0.0]}, {"anwser": 1.0}, r"names 'anwser', which is no part.*there are: answer\."),
        ({"answer": [1.0, math.nan]}, {}, r"part 'answer' holds nan; expected finite"),
        ({"answer": [1.0, -math.inf]}, {}, r"part 'answer' holds -inf"),
    ],
)
def test_gdpo_says_in_one_line_which_part_is_missing_or_wrong(parts, weights, message):
    with pytest.raises(WorkError, match=message) as error:
        gdpo([given([1.0, 0.0], parts=parts)], std_eps=1e-4, part_weights=weights)
    assert "\n" not in str(error.value)


def rights(n, c):
    return [1.0] * c + [0.0] * (n - c)


def test_pass_at_k_matches_the_reference():
    vector = load("adv_passk_analytic")
    for row in vector.expected["rows"]:
        n, c = row["n"], row["c"]
        (values,) = pass_at_k([given(rights(n, c))], pass_k=row["k"])
        right, wrong = row["adv_correct"] or 0.0, row["adv_wrong"] or 0.0
        assert values.tolist() == pytest.approx([right] * c + [wrong] * (n - c), abs=vector.tolerance)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 3), (6, 1, 2), (4, 2, 1)])
def test_pass_at_k_is_the_mean_over_all_subsets(n, c, k):
    subsets = list(itertools.combinations(range(n), k))
    pay = torch.tensor([float(min(subset) < c) for subset in subsets])
    standard = (pay - pay.mean()) / (pay.std(correction=0) + 1e-6)
    expected = [
        torch.stack([a for a, subset in zip(standard, subsets, strict=True) if i in subset]).mean().item()
        for i in range(n)
    ]
    (values,) = pass_at_k([given(rights(n, c))], pass_k=k)
    assert values.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("function", [pass_at_k, pkpo])
def test_right_is_what_the_verdict_says_whatever_it_pays(function):
    verdicts = [
        Verdict(0.5, "right"), Verdict(1.0, "wrong"), Verdict(2.0, "partial"), Verdict.undecided("died"),
    ]  # fmt: skip
    mixed = VerifiedGroup(Problem("p", "?"), [rollout()] * 4, verdicts)
    (done,) = score([mixed], partial(function, pass_k=1), shape=lambda _: -1.0)
    (plain,) = function([given([1.0, 0.0, 0.0])], pass_k=1)
    assert done.advantages == [*plain.tolist(), 0.0]
    assert plain[0] > 0 > plain[1] == plain[2]


def test_k_is_at_most_the_number_decided():
    for function in (pass_at_k, pkpo):
        short, same = (
            function([given([1.0, 0.0, 0.0])], pass_k=9),
            function([given([1.0, 0.0, 0.0])], pass_k=3),
        )
        assert short[0].tolist() == same[0].tolist()


def test_pkpo_weights_match_the_reference():
    for row in load("pkpo_weights").expected["rows"]:
        weights = pkpo_weights(column(rights(row["n"], row["c"])) > 0, k=row["k"])
        wanted = [row["w_correct"]] * row["c"] + [row["w_wrong"]] * (row["n"] - row["c"])
        assert weights.tolist() == pytest.approx(wanted, abs=1e-6)


def expected_gradient(function, probabilities, n):
    """Sum over all samples of n answers, answer 0 the only right one, of P times factor times score."""
    total = torch.zeros_like(probabilities)
    for answers in itertools.product(range(len(probabilities)), repeat=n):
        factors = function(column([float(a == 0) for a in answers]))
        scores = torch.eye(len(probabilities), dtype=torch.float64)[list(answers)] - probabilities
        total += probabilities[list(answers)].prod() * (factors[:, None] * scores).sum(0)
    return total


@pytest.mark.parametrize(("n", "k"), [(2, 1), (2, 2), (4, 2), (4, 3), (5, 5)])
def test_the_gradient_of_pkpo_is_that_of_pass_at_k(n, k):
    logits = column([0.3, -0.4, 0.9]).requires_grad_()
    probabilities = logits.softmax(0)
    (exact,) = torch.autograd.grad(1 - (1 - probabilities[0]) ** k, logits)
    probabilities = probabilities.detach()

    def plain(rewards):
        return pkpo_weights(rewards > 0, k=k)

    def centred(rewards):
        return pkpo([given(rewards)], pass_k=k)[0]

    def others_weights(rewards):  # the baseline that suggests itself
        weights = plain(rewards)
        return weights - (weights.sum() - weights) / (n - 1)

    torch.testing.assert_close(expected_gradient(plain, probabilities, n), exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(expected_gradient(centred, probabilities, n), exact, rtol=0, atol=1e-12)
    if k > 1:
        assert (expected_gradient(others_weights, probabilities, n) - exact).abs().max() > 1e-3


def test_the_advantages_of_pkpo_worked_out_by_hand():
    # n 4, c 1, k 2; weights 1/2 and 1/2 * 1/3; pass@2 of the others: 0 for the right one, 2/3 for a wrong one
    (values,) = pkpo([given([1.0, 0.0, 0.0, 0.0])], pass_k=2)
    assert values.tolist() == pytest.approx([0.5, -1 / 6, -1 / 6, -1 / 6])


def test_top_two_matches_the_reference():
    vector = load("adv_grpo_passk_top2")
    (values,) = top_two([given(vector.inputs["rewards"])], std_eps=vector.params["eps"])
    vector.check(values, "adv")
    assert top_two([given([1.0, 0.0, 1.0])], std_eps=1e-6)[0].tolist() == [0.0, 0.0, 0.0]


def test_length_shaped_takes_off_the_reference_penalty_of_output_length():
    vector = load("prime_length_penalty")
    rewards, lengths = vector.tensor("rewards"), vector.tensor("output_tokens")
    prompts, turns = vector.tensor("total_tokens") - lengths, vector.tensor("turns")
    weight = vector.params["num_output_tokens_weight"]
    # what the reference takes off besides: for input tokens and for turns, each times the mean reward
    besides = 0.75 * (0.1 * prompts / prompts.max() + 0.1 * turns / turns.max())
    penalty = vector.tensor("rewards").new_tensor(vector.expected["penalty"]) - besides
    shaped = rewards - penalty
    (values,) = length_shaped([given(rewards, lengths=lengths)], length_weight=weight)
    torch.testing.assert_close(values, shaped - shaped.mean(), rtol=0, atol=1e-6)
    assert values.tolist() == pytest.approx([0.314453125, 0.173828125, -0.732421875, 0.244140625])


def test_length_shaped_leaves_hopeless_groups_alone_and_never_pays_for_length():
    groups = [given([0.0, 0.0], lengths=[1, 9]), given([-1.0, -1.0], lengths=[1, 9])]
    assert [v.tolist() for v in length_shaped(groups, length_weight=0.25)] == [[0.0, 0.0], [0.0, 0.0]]
    (right,) = length_shaped([given([1.0, 1.0], lengths=[4, 8])], length_weight=0.5)
    assert right.tolist() == [0.125, -0.125]  # 1 - 0.25 and 1 - 0.5


@pytest.mark.parametrize("name", ["group_norm", "batch_std", "opo", "gpg", "pkpo", "batch_norm", "top_two"])
def test_advantages_do_not_depend_on_the_order_of_rollouts(name):
    vector = load("adv_opo")
    order = torch.randperm(13, generator=torch.Generator().manual_seed(1)).tolist()
    torch.testing.assert_close(
        run(vector, every(name), order)[:10], run(vector, every(name))[:10], rtol=0, atol=1e-12
    )


COMPARING = sorted(name for name, part in catalogue.ADVANTAGES.items() if part.group_baseline)


@pytest.mark.parametrize("name", [*sorted(set(COMPARING) - {"optimal_token_baseline"}), "batch_norm"])
def test_equal_rewards_give_exactly_zero(name):
    rewards = load("adv_zero_variance_exact_zero").inputs["rewards"]
    (values,) = every(name)([given(rewards, parts={"answer": rewards})])
    assert values.tolist() == [0.0] * 64


def test_rounding_noise_becomes_an_advantage_without_the_rule():
    rewards = torch.tensor(load("adv_zero_variance_exact_zero").inputs["rewards"])  # float32
    assert ((rewards - rewards.mean()) / (rewards.std() + 1e-9)).abs().max() > 0.5
    almost = column([0.1 + 0.2, 0.3])
    assert almost[0] != almost[1]
    assert group_norm([given(almost)], std_eps=1e-20)[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", COMPARING)
def test_a_group_of_one_or_none_has_no_advantage(name):
    groups = [given([1.0], parts={"a": [1.0]}), given([]), given([0.3], parts={"a": [0.3]})]
    assert [v.tolist() for v in every(name)(groups)] == [[0.0], [], [0.0]]


@pytest.mark.parametrize("name", list(ADVANTAGES))
def test_every_advantage_is_finite_float64_of_the_groups_size_and_changes_nothing(name):
    rewards = [[1.0, 0.0, 0.0, 1.0], [0.5, 1.0], [1.0], [], [0.0, 0.0, 0.0], [1.0] * 5]
    groups = [
        given(r, parts={"a": r, "b": [0.5] * len(r)}, lengths=range(len(r)), greedy=0.5) for r in rewards
    ]
    values = every(name)(groups)
    assert [v.shape for v in values] == [g.rewards.shape for g in groups]
    assert all(v.dtype == torch.float64 and v.isfinite().all() for v in values)
    assert [g.rewards.tolist() for g in groups] == rewards
    assert every(name)([]) == []


def test_undecided_rollouts_do_not_shift_the_baseline():
    (scored,) = score([group([1.0, None, 0.0])], group_mean, shape=unshaped)
    assert scored.advantages == pytest.approx([0.5, 0.0, -0.5])


def test_a_group_with_nothing_decided_gets_zeros():
    groups = [group([None, None]), group([1.0, 0.0])]
    assert [s.advantages for s in score(groups, leave_one_out, shape=unshaped)] == [[0.0, 0.0], [1.0, -1.0]]
    for name in ADVANTAGES:
        (scored,) = score([group([None, None])], every(name), shape=unshaped, greedy=[None])
        assert scored.advantages == [0.0, 0.0]


def test_a_group_keeps_its_rollouts_and_verdicts():
    verified = group([1.0, 0.0])
    (scored,) = score([verified], group_mean, shape=unshaped)
    assert (scored.problem, scored.rollouts, scored.verdicts) == (
        verified.problem,
        verified.rollouts,
        verified.verdicts,
    )


def test_a_greedy_reward_belongs_to_its_group():
    groups = [group([1.0, None]), group([1.0, 0.0]), group([0.5, 0.0])]
    scored = score(groups, remax, shape=unshaped, greedy=[0.25, None, 0.0])
    assert [s.advantages for s in scored] == [[0.75, 0.0], [0.0, 0.0], [0.5, 0.0]]
    with pytest.raises(ValueError, match="shorter"):
        score(groups, remax, shape=unshaped, greedy=[0.25])


def seen(groups, shape=unshaped):
    """What an advantage is shown of verified groups."""
    shown = []

    def look(given):
        shown.extend(given)
        return raw(given)

    score(groups, look, shape=shape)
    return shown


def overlong(rollout):
    return soft_overlong(rollout.num_completion_tokens, max_tokens=100, buffer_tokens=20)


def test_shaping_is_added_before_the_baseline():
    verified = group([1.0, 1.0, None], lengths=[80, 90, 100])
    (scored,) = score([verified], group_mean, shape=overlong)
    assert scored.advantages == pytest.approx([0.25, -0.25, 0.0])


def test_shaping_is_a_part_where_there_are_parts_and_any_of_the_step_is_shaped():
    parts = [{"answer": 1.0}, {"answer": 0.0}]
    groups = [group([1.0, 0.0], [90, 10], parts), group([1.0, 0.0], [10, 20], parts), group([1.0, 0.0])]
    first, second, bare = seen(groups, shape=overlong)
    assert {name: values.tolist() for name, values in first.parts.items()} == {
        "answer": [1.0, 0.0],
        "shape": [-0.5, 0.0],
    }
    assert second.parts["shape"].tolist() == [0.0, 0.0]
    assert bare.parts == {}
    assert all(set(g.parts) <= {"answer"} for g in seen(groups[1:], shape=overlong))
    clash = group([1.0, 0.0], [90, 10], [{"shape": 2.0}, {"shape": 0.0}])
    assert seen([clash], shape=overlong)[0].parts["shape"].tolist() == [1.5, 0.0]


def test_an_advantage_sees_lengths_and_shared_parts_of_the_decided_only():
    parts = [{"a": 1.0, "b": 2.0}, {}, {"a": True, "b": None}]
    (shown,) = seen([group([1.0, None, 0.0], [5, 6, 7], parts)])
    assert (shown.rewards.tolist(), shown.lengths.tolist()) == ([1.0, 0.0], [5.0, 7.0])
    assert {name: values.tolist() for name, values in shown.parts.items()} == {"a": [1.0, 1.0]}
    assert shown.rewards.dtype == shown.lengths.dtype == shown.parts["a"].dtype == torch.float64


def test_an_attempt_killed_on_its_deadline_earned_none_of_the_parts():
    killed = Verdict.wrong("too slow", outcome="timeout")
    verified = VerifiedGroup(
        Problem("p", "?"), [rollout(), rollout()], [Verdict(1.0, "right", parts={"a": 0.5, "b": 0.5}), killed]
    )
    (shown,) = seen([verified])
    assert {name: values.tolist() for name, values in shown.parts.items()} == {
        "a": [0.5, 0.0],
        "b": [0.5, 0.0],
    }
    (alone,) = seen([VerifiedGroup(Problem("p", "?"), [rollout()], [killed])])
    assert alone.parts == {}


def test_soft_overlong_punishment_matches_the_reference():
    vector = load("soft_overlong_punishment")
    values = [
        soft_overlong(n, max_tokens=vector.params["l_max"], buffer_tokens=vector.params["l_cache"])
        for n in vector.inputs["lengths"]
    ]
    vector.check(values, "paper")
    vector.check(values, "openrlhf_capped")
    assert values[-1] != vector.expected["verl_uncapped"][-1]
