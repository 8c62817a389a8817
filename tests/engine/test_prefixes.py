import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import config, model_folder, rollout, tokenizer, whole
from verigrad.engine import packed_attention
from verigrad.engine.pack import lay_out
from verigrad.engine.policy import Policy
from verigrad.engine.prefixes import Run, layout_of, size_of


def laid_out(sequences, **options):
    bounds = [0, *itertools.accumulate(len(ids) for ids in sequences)]
    return layout_of(torch.tensor(list(itertools.chain(*sequences))), torch.tensor(bounds), **options)


def test_a_common_beginning_is_computed_once():
    prompt = [1] * 40
    layout = laid_out([[*prompt, 2, 3], [*prompt, 4, 5], [*prompt, 2, 6, 7]])
    # the prompt; then [2, 6, 7] after it, and [2, 3] and [4, 5], of one shape
    assert layout.runs == [Run(1, 0, 40), Run(1, 40, 3), Run(2, 40, 2)]
    assert len(layout.columns) == 47
    assert layout.shared == pytest.approx(1 - 47 / 127)
    assert layout.places[:40].tolist() == layout.places[42:82].tolist() == list(range(40))
    assert layout.pasts.tolist() == list(range(40)) * 3


def test_beginnings_within_beginnings():
    system, first, second = [1] * 30, [2] * 20, [3] * 20
    sequences = [[*system, *turn, n] for turn in (first, second) for n in (7, 8, 9)]
    layout = laid_out(sequences)
    assert layout.runs == [Run(1, 0, 30), Run(2, 30, 20), Run(6, 50, 1)]
    assert len(layout.columns) == 76


def test_what_saves_little_is_not_worth_a_stretch():
    assert laid_out([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6]]).runs == [Run(2, 0, 5)]
    assert laid_out([[1] * 40, [1] * 40], share=False).runs == [Run(2, 0, 40)]
    few = [[1, 2, 3, *range(10 + n, 20 + n)] for n in range(20)]  # 57 tokens saved, 3 at a time
    assert laid_out(few).shared == 0
    assert laid_out([[9, *ids] for ids in few]).runs[0] == Run(1, 0, 4)


def test_equal_sequences_and_none():
    assert laid_out([[1] * 40] * 3).runs == [Run(1, 0, 40)]
    assert layout_of(torch.tensor([], dtype=torch.int64), torch.tensor([0])).runs == []


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.lists(st.integers(5, 7), max_size=9))))
def test_every_column_is_found_with_its_token_its_position_and_its_past(drawn):
    sequences = [[*[kind] * num, 4, *rest] for kind, num, rest in drawn]
    layout = laid_out(sequences)
    ids = torch.tensor(list(itertools.chain(*sequences)), dtype=torch.int64)
    positions = torch.tensor([i for row in sequences for i in range(len(row))], dtype=torch.int64)
    assert torch.equal(ids[layout.columns][layout.places], ids)
    assert torch.equal(positions[layout.columns][layout.places], positions)
    column, pasts = 0, layout.pasts.tolist()
    before = {}  # computed column -> the tokens up to it, by the runs alone
    for run in layout.runs:
        for _ in range(run.count):
            seen, pasts = [int(ids[layout.columns[i]]) for i in pasts[: run.past]], pasts[run.past :]
            for _ in range(run.length):
                seen = [*seen, int(ids[layout.columns[column]])]
                before[column] = seen
                column += 1
    assert pasts == []
    at = 0
    for row in sequences:
        for index in range(len(row)):
            assert before[int(layout.places[at])] == row[: index + 1]
            at += 1


def test_size_counts_what_all_begin_with_once():
    assert size_of([[1] * 40 + [2], [1] * 40 + [3, 4]]) == 43
    assert size_of([[1] * 40 + [2], [1] * 40 + [3, 4]], share=False) == 83
    assert size_of([[1, 2], [1, 3]]) == 4
    assert size_of([]) == 0


def logprobs_and_gradients(rows, *, share, **model):
    cfg = config(policy={"share_prefixes": share})
    policy = Policy(cfg, folder := model_folder(**model), tokenizer=tokenizer(), start_folder=folder)
    policy.model.double()
    batch = lay_out(rows)
    logprobs = policy.token_logprobs(batch, temperature=0.8)
    torch.manual_seed(0)
    (logprobs * torch.randn(len(logprobs), dtype=torch.float64)).sum().backward()
    return logprobs.detach(), torch.cat([p.grad.flatten() for p in policy.model.parameters()])


@pytest.mark.parametrize("queries", [1024, 3])
def test_values_and_gradients_are_those_of_whole_sequences(queries, monkeypatch):
    monkeypatch.setattr(packed_attention, "QUERIES", queries)
    rows = [rollout([3, *range(4, 4 + 20), i], [5 + j] * (3 + 2 * j)) for i in (7, 8) for j in range(4)]
    rows.append(rollout([9, 9, 9], [6, 7, 1]))
    assert lay_out(rows).input_ids.numel() == 8 * 22 + 2 * (3 + 5 + 7 + 9) + 6
    (ours, gradient), (plain, expected) = (logprobs_and_gradients(rows, share=s) for s in (True, False))
    assert torch.allclose(ours, plain, atol=1e-12)
    assert (gradient - expected).norm() / expected.norm() < 1e-7  # the model takes its norms in float32


def test_a_sliding_window_reaches_into_the_past():
    q, k, v = (torch.randn(1, 2, 50, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    module = torch.nn.Linear(1, 1)
    prompt, tails = [1] * 40, ([2] * 5, [3] * 5)
    layout = laid_out([[*prompt, *tail] for tail in tails])
    for window in (3, 8, 44):
        ours, _ = packed_attention.packed_attention(
            module, q, k, v, None, packed_layout=layout, sliding_window=window
        )
        for tail in range(2):
            columns = [*range(40), *range(40 + 5 * tail, 45 + 5 * tail)]
            alone, _ = packed_attention.packed_attention(
                module, *(x[:, :, columns] for x in (q, k, v)), None, packed_layout=whole(45),
                sliding_window=window,
            )  # fmt: skip
            assert torch.allclose(ours[0, columns], alone[0], atol=1e-6)
