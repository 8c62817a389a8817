import pytest
import torch

from tests.tiny import config
from verigrad.engine import update_dtype as place
from verigrad.engine.update_dtype import update_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("native", "device", "recipe", "expected"),
    [
        (True, CPU, {}, "bfloat16"),
        (False, CPU, {}, "float32"),
        (True, GPU, {}, "float32"),
        (True, CPU, {"algorithm": {"old_logprobs": "rollout"}}, "float32"),
        (True, CPU, {"sft": {}}, "float32"),
        (True, CPU, {"policy": {"update_dtype": "same"}}, "float32"),
        (True, CPU, {"policy": {"update_dtype": "float32"}}, "float32"),
        (False, CPU, {"policy": {"update_dtype": "bfloat16"}}, "bfloat16"),
        (False, GPU, {"policy": {"dtype": "bfloat16"}}, "bfloat16"),
    ],
)
def test_auto_is_bfloat16_where_it_is_native_and_sound(native, device, recipe, expected, monkeypatch):
    monkeypatch.setattr(place, "multiplies_natively", lambda: native)
    recipe = {**recipe, "policy": {"update_dtype": "auto", **recipe.get("policy", {})}}
    assert update_dtype(config(**recipe), device) == expected


@pytest.mark.parametrize(
    ("found", "native"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False), ({}, False)],
)
def test_what_a_cpu_says_of_itself(found, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert place.multiplies_natively() == native
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not place.multiplies_natively()
