"""A decoder with a linear head instead of its vocabulary: packed texts -> rewards, or classes of steps.

These are transformers' own sequence and token classification models, run packed; saved by save_pretrained,
they load and score the same in any program that uses transformers.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification
from transformers.utils import logging

from verigrad.engine.config import ConfigError
from verigrad.engine.packed_attention import NAME as PACKED
from verigrad.engine.packed_attention import last_hidden, require_packable
from verigrad.engine.prefixes import layout_of
from verigrad.engine.reward_card import Card
from verigrad.engine.reward_text import TextBatch

HEADS = ("score", "classifier")


def open_model(
    folder: str | Path,
    *,
    steps: bool,
    seed: int | None,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> Any:
    """The model in a folder with one reward (or, with `steps`, two classes) per token, without dropout.

    A folder without such a head, as a language model's, gets a new one drawn from `seed`, N(0, 1/(H+1)) for
    hidden size H (arXiv 2009.01325, 1.B); with seed None it is refused.
    """
    kind = AutoModelForTokenClassification if steps else AutoModelForSequenceClassification
    try:
        with _quiet():  # a new head is no surprise
            model, loading = kind.from_pretrained(
                folder,
                num_labels=2 if steps else 1,
                dtype=dtype,
                attn_implementation=PACKED,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{folder} could not be loaded as a reward model: {reason}") from error
    require_packable(model, str(folder))
    head = head_of(model)
    if any(name.split(".")[0] in HEADS for name in loading["missing_keys"]):
        if seed is None:
            raise ConfigError(
                f"{folder} holds a language model without a reward head; train one with `verigrad reward`"
            )
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            head.weight.normal_(std=(head.in_features + 1) ** -0.5)
            if head.bias is not None:
                head.bias.zero_()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # a reward is a function of its text
    return model


def head_of(model: Any) -> nn.Linear:
    """The linear layer that makes rewards of hidden states."""
    for name in HEADS:
        if isinstance(head := getattr(model, name, None), nn.Linear):
            return head
    raise ConfigError(f"{type(model).__name__} has no linear reward head; use another kind of model")


def longest_text(model: Any, card: Card) -> int:
    """Tokens of the longest text it reads, by the card's limit and the model's positions; 0 is unknown."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_scaling", None) or getattr(config, "rope_parameters", None) or {}
    positions = getattr(config, "max_position_embeddings", None)
    known = [card.max_length] if card.max_length else []
    if isinstance(positions, int) and "factor" not in rope:
        known.append(positions)
    return min(known, default=0)


def choose_pad(model: Any, tokenizer: Any, end: int | None) -> int | None:
    """Give model and tokenizer a padding token that is not the one that ends answers; returns its id.

    transformers reads a score at the last token that is no padding; were the two the same, the end would not
    be seen.
    """
    config = model.config.get_text_config()
    candidates = [
        config.pad_token_id,
        tokenizer.pad_token_id,
        tokenizer.unk_token_id,
        tokenizer.bos_token_id,
    ]
    pad = next((i for i in candidates if i is not None and i != end and 0 <= i < config.vocab_size), end)
    config.pad_token_id = model.config.pad_token_id = pad
    if pad is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    return pad


def outputs(model: Any, batch: TextBatch, *, autocast: bool, share_prefixes: bool = True) -> Tensor:
    """What the head says at the columns of `batch.reads`: [R, 1] rewards or [R, 2] logits, float32."""
    device = next(model.parameters()).device
    layout = layout_of(batch.input_ids, batch.cu_seqlens, share=share_prefixes)
    with _autocast(device, autocast):
        hidden = last_hidden(model, layout, input_ids=batch.input_ids, position_ids=batch.position_ids)
    read, head = hidden[layout.places[batch.reads].to(device)].float(), head_of(model)
    bias = None if head.bias is None else head.bias.float()
    return nn.functional.linear(read, head.weight.float(), bias)


@contextmanager
def _quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _autocast(device: torch.device, enabled: bool) -> AbstractContextManager[object]:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)
