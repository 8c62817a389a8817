import importlib
import itertools

import pytest
import torch
import torch.nn.attention.flex_attention
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import config, model_folder, rollout, tokenizer
from verigrad.engine import attention_backends
from verigrad.engine.attention_backends import BLOCK, block_mask, choose, dense_mask, mask_of
from verigrad.engine.config import ConfigError
from verigrad.engine.pack import lay_out
from verigrad.engine.packed_attention import packed_attention
from verigrad.engine.policy import Policy
from verigrad.engine.prefixes import layout_of

CPU, GPU = torch.device("cpu"), torch.device("cuda")
MODULE = torch.nn.Linear(1, 1)


def laid_out(sequences, **options):
    bounds = [0, *itertools.accumulate(len(ids) for ids in sequences)]
    return layout_of(torch.tensor(list(itertools.chain(*sequences))), torch.tensor(bounds), **options)


def seen_by_paths(sequences, layout, window):
    """[C, C] bool, the plain way: within a sequence each column sees what is before it, and itself."""
    mask = torch.zeros(len(layout.columns), len(layout.columns), dtype=torch.bool)
    at = 0
    for ids in sequences:
        places = layout.places[at : at + len(ids)].tolist()
        for i, j in itertools.product(range(len(ids)), repeat=2):
            if j <= i and (window is None or i - j < window):
                mask[places[i], places[j]] = True
        at += len(ids)
    return mask


SHARED = [[1] * 300 + [2] * n for n in (200, 90, 3)] + [[1] * 300 + [3] * 40 + [n] * 50 for n in (4, 5)]
SHARED += [[9] * 150, [7] * 33 + [8], [7] * 33 + [9, 9]]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.lists(st.integers(5, 7), max_size=9))),
    st.booleans(),
    st.sampled_from([None, 1, 7]),
)
def test_a_column_sees_the_beginning_of_its_own_sequence(drawn, by_shape, window):
    sequences = [[*[kind] * num, 4, *rest] for kind, num, rest in drawn]
    layout = laid_out(sequences, by_shape=by_shape)
    assert torch.equal(dense_mask(layout, window), seen_by_paths(sequences, layout, window))


@pytest.mark.parametrize("window", [None, 60, 200])
@pytest.mark.parametrize("by_shape", [True, False])
def test_blocks_hold_all_that_is_seen_and_whole_blocks_need_no_mask(by_shape, window):
    layout = laid_out(SHARED, by_shape=by_shape)
    wanted = dense_mask(layout, window)
    mask = block_mask(layout, window)
    num = -(-len(layout.columns) // BLOCK)
    tiles = torch.zeros(num * BLOCK, num * BLOCK, dtype=torch.bool)
    tiles[: len(wanted), : len(wanted)] = wanted
    tiles = tiles.view(num, BLOCK, num, BLOCK).transpose(1, 2)
    kept = mask.to_dense()[0, 0].bool()
    assert bool((kept >= tiles.any(-1).any(-1)).all())
    assert mask.full_kv_num_blocks.sum() > 0 or window
    for i in range(num):
        for j in mask.full_kv_indices[0, 0, i, : mask.full_kv_num_blocks[0, 0, i]].tolist():
            assert tiles[i, j].all()
    assert not kept.all()  # something is skipped


def inputs(columns, *, dtype=torch.float64, device=CPU, dim=8):
    g = torch.Generator().manual_seed(0)
    sizes = [(1, heads, columns, dim) for heads in (4, 2, 2)]
    return [
        torch.randn(size, generator=g, dtype=dtype).to(device).detach().requires_grad_() for size in sizes
    ]


def attended(backend, layout, *, window=None, given=None):
    """Output, and gradients of queries, keys and values."""
    given = given or inputs(len(layout.columns))
    out, _ = packed_attention(
        MODULE, *given, None, packed_layout=layout, packed_backend=backend, sliding_window=window
    )
    g = torch.Generator().manual_seed(1)
    weights = torch.randn(out.shape, generator=g, dtype=torch.float64).to(out.device, out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), given)]


def plain_varlen(query, key, value, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """What the kernel computes, sequence by sequence: a causal mask aligned with the last key."""
    outs = []
    assert max_q == cu_q.diff().max()
    assert max_k == cu_k.diff().max()
    for (a, b), (c, d) in zip(
        itertools.pairwise(cu_q.tolist()), itertools.pairwise(cu_k.tolist()), strict=True
    ):
        ages = (torch.arange(b - a)[:, None] + (d - c) - (b - a)) - torch.arange(d - c)[None, :]
        mask = ages >= 0
        if window_size[0] >= 0:
            mask &= ages <= window_size[0]
        q, k, v = (
            x[s].transpose(0, 1)[None]
            for x, s in ((query, slice(a, b)), (key, slice(c, d)), (value, slice(c, d)))
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)  # fmt: skip


@pytest.mark.parametrize("window", [None, 7, 60])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("by_shape", [True, False])
def test_every_backend_computes_the_same(by_shape, share, window, monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", plain_varlen)
    layout = laid_out([row[250:] or row for row in SHARED], share=share, by_shape=by_shape)
    expected = attended("sdpa", layout, window=window)
    for backend in ("flex", "varlen"):
        for ours, theirs in zip(attended(backend, layout, window=window), expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("window", [None, 60])
def test_flex_attention_with_our_blocks_computes_the_same(window, monkeypatch):
    # On a CPU it runs uncompiled, and its backward pass is switched off though it is there.
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_validate_device", lambda *_: None)
    layout = laid_out(SHARED, by_shape=False)
    q, k, v = given = inputs(len(layout.columns), dtype=torch.float32)
    mask = block_mask(layout, window)
    with torch._dynamo.config.patch(disable=False):  # the sampler's part switches it off on CPUs
        out = torch.nn.attention.flex_attention.flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((out * weights).sum(), given)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=dense_mask(layout, window), enable_gqa=True)
    expected = torch.autograd.grad((wanted * weights).sum(), given)
    for ours, theirs in zip([out, *gradients], [wanted, *expected], strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5)


def test_a_policy_with_flex_has_the_same_gradients():
    rows = [rollout([3, *range(4, 44)], [5 + j] * (3 + 2 * j)) for j in range(4)]
    found = []
    for attention in ("auto", "flex"):
        cfg = config(policy={"attention": attention})
        policy = Policy(cfg, folder := model_folder(), tokenizer=tokenizer(), start_folder=folder)
        policy.model.double()
        policy.token_logprobs(lay_out(rows), temperature=1.0).square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in policy.model.parameters()]))
    assert (found[0] - found[1]).norm() / found[0].norm() < 1e-7


def test_what_is_not_there_is_told_in_one_line(monkeypatch):
    with pytest.raises(ConfigError, match=r"^policy.attention = 'varlen' runs on CUDA alone, .* use 'auto'"):
        choose("varlen", device=CPU, dtype=torch.bfloat16, shared=False)
    with pytest.raises(ConfigError, match=r"needs policy.dtype or policy.update_dtype = 'bfloat16'"):
        choose("varlen", device=GPU, dtype=torch.float32, shared=False)
    monkeypatch.setattr(attention_backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'flex' is compiled by Triton, which is not installed; use"):
        choose("flex", device=GPU, dtype=torch.bfloat16, shared=True)
    with pytest.raises(ConfigError, match=r"is not in torch .* 2.10 or newer"):
        choose("varlen", device=GPU, dtype=torch.bfloat16, shared=False)
    monkeypatch.undo()
    cfg = config(policy={"attention": "varlen"})
    with pytest.raises(ConfigError, match="runs on CUDA alone"):
        Policy(cfg, model_folder(), tokenizer=tokenizer(), start_folder=model_folder())


def test_auto_takes_what_is_made_for_the_layout(monkeypatch):
    def auto(device, shared, dtype=torch.bfloat16):
        return choose("auto", device=device, dtype=dtype, shared=shared)

    assert auto(CPU, True) == auto(CPU, False) == "sdpa"
    monkeypatch.setattr(attention_backends.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert (auto(GPU, True), auto(GPU, False)) == ("flex", "varlen")
    assert auto(GPU, False, torch.float32) == "sdpa"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "old")
    assert auto(GPU, False) == "sdpa"


def test_auto_does_not_trust_a_backend_that_disagrees_or_fails(monkeypatch):
    packed = importlib.import_module("verigrad.engine.packed_attention")
    right = packed.flex
    packed.agrees.cache_clear()
    assert packed.agrees("flex", CPU, torch.float32)
    for wrong in (lambda *a, **k: 1.1 * right(*a, **k), lambda *a, **k: 1 / 0):
        packed.agrees.cache_clear()
        monkeypatch.setattr(packed, "flex", wrong)
        with pytest.warns(UserWarning, match="attention: flex .* sdpa is used instead"):
            assert not packed.agrees("flex", CPU, torch.float32)
    packed.agrees.cache_clear()


def test_masks_are_made_once_for_all_layers_if_they_are_small(monkeypatch):
    def masks(layout):
        (made,) = layout.cache.values()
        return [mask for block in made.blocks for mask in block.masks.values()]

    layout = laid_out(SHARED)
    attended("sdpa", layout)
    kept = masks(layout)
    assert kept
    attended("sdpa", layout)
    assert all(before is after for before, after in zip(kept, masks(layout), strict=True))
    assert layout.to(CPU).cache == {}
    monkeypatch.setattr("verigrad.engine.packed_attention.MOST_KEPT", 0)
    fresh = layout.to(CPU)
    attended("sdpa", fresh)
    assert masks(fresh) == []


def test_attention_on_a_cpu_is_in_float32_under_autocast():
    layout = laid_out([[1] * 40 + [2] * 3, [1] * 40 + [3] * 4])
    given = [x.to(torch.bfloat16) for x in inputs(len(layout.columns))]
    expected, _ = packed_attention(MODULE, *(x.float() for x in given), None, packed_layout=layout)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = packed_attention(MODULE, *given, None, packed_layout=layout)
    assert torch.equal(out, expected)


def test_the_mask_is_one_function_of_two_columns():
    layout = laid_out([[1] * 40 + [2] * 3, [1] * 40 + [3] * 4])  # columns: 40, then 4 (the longest), then 3
    sees = mask_of(layout, None)
    i = torch.tensor([40, 44, 44, 46, 10])
    j = torch.tensor([39, 40, 44, 39, 11])
    assert sees(i, i, i, j).tolist() == [True, False, True, True, False]


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 60])
@pytest.mark.parametrize("backend", ["flex", "varlen"])
def test_backends_agree_on_a_gpu(backend, window):
    for share in (True, False):
        layout = laid_out(SHARED, share=share, by_shape=False).to(GPU)
        given = inputs(len(layout.columns), dtype=torch.bfloat16, device=GPU, dim=64)
        exact = [x.detach().double().requires_grad_() for x in given]
        expected = attended("sdpa", layout, window=window, given=exact)
        for ours, theirs in zip(attended(backend, layout, window=window, given=given), expected, strict=True):
            assert (ours.double() - theirs).norm() / theirs.norm() < 2e-2
