import itertools
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from verigrad.engine import attention_blocks
from verigrad.engine.attention_blocks import blocks_of, segments
from verigrad.engine.packed_attention import packed_attention
from verigrad.engine.prefixes import Run, layout_of


def laid_out(sequences):
    bounds = [0, *itertools.accumulate(len(ids) for ids in sequences)]
    return layout_of(torch.tensor(list(itertools.chain(*sequences))), torch.tensor(bounds))


def test_calls_against_padding_by_hand():
    # apart: 16 + 9 pairs and two calls; as one block 2 x 16 pairs and one call
    runs = [Run(1, 0, 4), Run(1, 0, 3)]
    assert segments(runs, call_cost=8) == [(0, 2)]
    assert segments(runs, call_cost=6) == [(0, 1), (1, 2)]
    # 10 long ones apart from what is short and alike
    runs = [Run(10, 0, 100), Run(1, 0, 4), Run(1, 0, 3), Run(1, 0, 2)]
    assert segments(runs, call_cost=40) == [(0, 1), (1, 4)]
    assert segments([], call_cost=40) == []


def test_a_mask_stays_small():
    runs = [Run(64, 0, 128), Run(1, 0, 127)]  # 65 x 128 x 128 pairs are more than 2**20
    assert segments(runs, call_cost=1e9) == [(0, 1), (1, 2)]
    assert segments([Run(60, 0, 128), Run(1, 0, 127)], call_cost=1e9) == [(0, 2)]


def test_padding_repeats_columns_of_the_same_stretch():
    prompt = [1] * 40
    layout = laid_out([[*prompt, 2, 3, 4], [*prompt, 5, 6], [7, 8, 9]])
    assert layout.runs == [Run(1, 0, 40), Run(1, 0, 3), Run(1, 40, 3), Run(1, 40, 2)]
    made = blocks_of(layout, width=2**17)  # a call costs 8 pairs, padding 45
    assert [(block.count, block.past, block.length) for block in made.blocks] == [
        (1, 0, 40), (1, 0, 3), (1, 40, 3), (1, 40, 2),
    ]  # fmt: skip
    made = blocks_of(layout, width=2**14)  # 64
    assert [(block.count, block.past, block.length) for block in made.blocks] == [
        (1, 0, 40), (1, 0, 3), (2, 40, 3),
    ]  # fmt: skip
    assert made.queries.tolist() == [*range(43), 43, 44, 45, 46, 47, 47]
    assert made.keys.tolist()[43:] == [*range(40), 43, 44, 45, *range(40), 46, 47, 47]
    assert made.back.tolist() == list(range(48))


@pytest.mark.parametrize("call_cost", [0, 2**12, 2**30])
@pytest.mark.parametrize("window", [None, 3, 50])
def test_however_divided_it_is_attention_of_each_sequence_alone(call_cost, window, monkeypatch):
    monkeypatch.setattr(attention_blocks, "CALL_COST", call_cost)
    draw = random.Random(0)
    sequences = [
        [kind] * (30 + kind) + [draw.randrange(9) for _ in range(draw.randrange(1, 12))]
        for kind in (1, 2, 3)
        for _ in range(5)
    ]
    layout = laid_out(sequences)
    torch.manual_seed(0)
    shapes = [(1, heads, len(layout.columns), 8) for heads in (4, 2, 2)]
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    out, _ = packed_attention(nn.Identity(), *given, None, packed_layout=layout, sliding_window=window)
    weights = torch.randn_like(out)
    found = torch.autograd.grad((out * weights).sum(), given)
    q, k, v = given
    expected, start = torch.zeros_like(out), 0
    for ids in sequences:
        places = layout.places[start : start + len(ids)]
        start += len(ids)
        ages = torch.arange(len(ids))[:, None] - torch.arange(len(ids))
        sees = (ages >= 0) & (ages < (window or 99))
        alone = F.scaled_dot_product_attention(
            *(x[:, :, places] for x in (q, k, v)), attn_mask=sees, enable_gqa=True
        )
        # a shared column is written by each that has it, with the same values
        expected = expected.index_put((torch.tensor([0]), places), alone[0].transpose(0, 1))
    assert torch.allclose(out, expected, atol=1e-12)
    # the last to write takes the gradient, and the values are the same: whole again for each
    for one, other in zip(found, torch.autograd.grad((expected * weights).sum(), given), strict=True):
        assert torch.allclose(one, other, atol=1e-12)
