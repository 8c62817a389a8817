import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verigrad.engine.bins import Bin, Rows, balance, pack_evenly, pack_rows, pair_cost, waste


def rows_of(lengths, *, group_size, common, max_tokens, cost=0.0):
    groups = [index // group_size for index in range(len(lengths))]
    return Rows(lengths, groups, [common] * len(lengths), max_tokens, cost)


def filled(rows, members):
    done = Bin(rows)
    for row in members:
        done.add([row])
    return done


def test_a_beginning_counts_once_in_each_bin():
    rows = rows_of([50, 60, 70], group_size=3, common=40, max_tokens=200)
    assert rows.size([0, 1, 2]) == 40 + 10 + 20 + 30
    assert rows.size([0]) == 50
    assert filled(rows, [0, 1]).growth([2]) == 30
    # pairs: 40 x 40 / 2 once, then what lies after it, of all before
    exact = rows_of([50, 60, 70], group_size=3, common=40, max_tokens=200, cost=0.5)
    pairs = (40**2 + (50**2 - 40**2) + (60**2 - 40**2) + (70**2 - 40**2)) / 2
    assert exact.cost([0, 1, 2]) == 100 + 0.5 * pairs
    assert filled(exact, [2, 0, 1]).cost == exact.cost([0, 1, 2])


def test_a_pair_costs_what_attention_does_per_weight():
    # 12 operations per pair, layer and hidden unit, against 6 per weight and token
    assert pair_cost(hidden_size=4, num_layers=2, num_parameters=100) == pytest.approx(12 * 4 * 2 / 600)


def test_a_group_is_divided_where_that_saves_a_bin():
    rows = rows_of([10] * 12, group_size=3, common=0, max_tokens=40)  # groups of 30
    bins = pack_rows(rows)
    assert sorted(row for one in bins for row in one) == list(range(12))
    assert [len(one) for one in bins] == [4, 4, 4]


def test_whole_groups_are_not_divided_for_nothing():
    rows = rows_of([50, 40, 30, 50, 40, 30], group_size=3, common=20, max_tokens=81)
    assert sorted(map(sorted, pack_rows(rows))) == [[0, 1, 2], [3, 4, 5]]


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.integers(21, 90), min_size=1, max_size=40),
    st.integers(1, 8),
    st.sampled_from([0, 3, 20]),
    st.integers(1, 5),
)
def test_every_row_lies_in_one_bin_within_the_budget(lengths, group_size, common, num_ranks):
    rows = rows_of(lengths, group_size=group_size, common=common, max_tokens=100, cost=0.01)
    packed = [pack_rows(rows)]
    try:
        packed.append(pack_evenly(rows, num_ranks=num_ranks))
    except ValueError:  # as many rows as bins, or fewer than ranks
        assert num_ranks > 1
    assert len(packed[-1]) % num_ranks == 0 or len(packed) == 1
    for bins in packed:
        assert sorted(row for one in bins for row in one) == list(range(len(lengths)))
        assert all(one and filled(rows, one).used <= 100 for one in bins)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 8), st.integers(0, 9), st.data())
def test_every_rank_has_as_many_micro_batches(num_ranks, each, data):
    costs = data.draw(st.lists(st.floats(0, 1e6), min_size=num_ranks * each, max_size=num_ranks * each))
    taken = balance(costs, num_ranks)
    assert [len(indices) for indices in taken] == [each] * num_ranks
    assert sorted(i for indices in taken for i in indices) == list(range(num_ranks * each))
    loads = [sum(costs[i] for i in indices) for indices in taken]
    if each:  # no worse than dealing them out, the costliest first, back and forth
        assert max(loads) - min(loads) <= max(costs) + 1e-6
    assert taken == balance(costs, num_ranks)


def test_exchanges_end_what_greed_begins():
    def loads(costs):
        return sorted(sum(costs[i] for i in some) for some in balance(costs, 2))

    assert loads([9.0, 9.0, 1.0, 1.0]) == [10.0, 10.0]
    # greed: 8 + 5 + 4 against 7 + 6 + 2 - with the last place left - and then 4 for 2, or 7 for 8
    assert loads([8.0, 7.0, 6.0, 5.0, 4.0, 2.0]) == [16.0, 16.0]


def test_what_does_not_divide_is_told():
    with pytest.raises(ValueError, match="5 micro-batches do not divide among 2 ranks"):
        balance([1.0] * 5, 2)
    few = rows_of([10, 10], group_size=2, common=0, max_tokens=10)
    with pytest.raises(ValueError, match="2 rollouts cannot be divided among 3 ranks"):
        pack_evenly(few, num_ranks=3)
    full = rows_of([10] * 3, group_size=3, common=0, max_tokens=10)
    with pytest.raises(ValueError, match="fill a micro-batch each do not divide among 2 ranks"):
        pack_evenly(full, num_ranks=2)


def test_waste_is_what_full_passes_leave_unused_where_one_could_be_spared():
    assert waste([100, 100, 20], 100) == 0.0  # 220 tokens need three
    assert waste([90, 80, 20], 100) == pytest.approx(1 - 170 / 200)  # 190 need two
    assert waste([40], 100) == waste([], 100) == 0.0


def lengths_of(name, rng, num):
    """(tokens of each answer, of the prompt, of the longest answer): what is seen in practice."""
    if name == "grade-school math":
        return np.clip(rng.lognormal(5.25, 0.5, num), 16, 1024), 120, 1024
    if name == "hard math":
        return np.clip(rng.lognormal(7.7, 0.75, num), 64, 16384), 180, 16384
    if name == "long reasoning":
        return np.clip(rng.lognormal(8.8, 1.0, num), 128, 32768), 250, 32768
    short, long = rng.lognormal(6.2, 0.5, num), rng.lognormal(8.9, 0.5, num)
    return np.clip(np.where(rng.random(num) < 0.6, short, long), 32, 16384), 2000, 16384


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["grade-school math", "hard math", "long reasoning", "agent or code"])
def test_real_lengths_waste_less_than_3_percent_and_ranks_differ_by_less_than_5(name, seed):
    answers, prompt, longest = lengths_of(name, np.random.default_rng(seed), 512)
    cost = pair_cost(hidden_size=3584, num_layers=28, num_parameters=7_600_000_000)
    for budget in (prompt + longest, 8192, 65536):
        if budget < prompt + longest:
            continue
        rows = rows_of(
            [prompt + int(n) for n in answers], group_size=16, common=prompt, max_tokens=budget, cost=cost
        )
        assert waste([filled(rows, one).used for one in pack_rows(rows)], budget) < 0.03
        bins = pack_evenly(rows, num_ranks=8)
        costs = [filled(rows, one).cost for one in bins]
        loads = [math.fsum(costs[i] for i in indices) for indices in balance(costs, 8)]
        assert max(loads) / (sum(loads) / 8) < 1.05
