"""A model folder -> the causal language model that a policy trains, with packed attention."""

from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM

from verigrad.engine.config import Config, ConfigError
from verigrad.engine.packed_attention import NAME as PACKED
from verigrad.engine.packed_attention import require_packable

UNSUPPORTED_HEADS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


def load_model(cfg: Config, folder: str) -> Any:
    """A causal LM in float32 with packed attention, without dropout."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=PACKED,
            trust_remote_code=cfg.policy.trust_remote_code,
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"policy.model = {folder!r} could not be loaded: {reason}") from error
    require_packable(model, folder)
    text_config = model.config.get_text_config()
    for name in UNSUPPORTED_HEADS:
        if getattr(text_config, name, None) not in (None, 1, 1.0):
            raise ConfigError(
                f"policy.model: {name} = {getattr(text_config, name)} changes the logits in a way the "
                "trainer does not reproduce; use a model without it"
            )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # old and new log-probabilities must come from the same function
    model.train()
    if cfg.policy.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model
