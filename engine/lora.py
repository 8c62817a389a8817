"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: put on a model, merged, saved and taken up again.

The adapter's layers stand inside the transformers model itself, so a model with one is used like any other.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import Tensor

from verigrad.engine.config import ConfigError
from verigrad.engine.settings import LoraConfig

ADAPTER = "default"
ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def attach(model: Any, cfg: LoraConfig, *, seed: int) -> None:
    """Freeze the model and give its linear layers adapters, which change nothing until they are trained."""
    settings = peft.LoraConfig(
        r=cfg.rank,
        lora_alpha=cfg.alpha,
        lora_dropout=0.0,  # old and new log-probabilities must come from the same function
        target_modules=list(cfg.targets) or "all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model.add_adapter(settings, adapter_name=ADAPTER)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"lora.targets = {list(cfg.targets)}: {reason}; name other layers") from error
    given = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for target in cfg.targets:
        if not any(name == target or name.endswith(f".{target}") for name in given):
            raise ConfigError(f"lora.targets: no layer is called {target!r}; correct or remove it")
    head = model.get_output_embeddings()
    if isinstance(head, LoraLayer):
        raise ConfigError(
            "lora.targets names the output head, which is not adapted: its log-probabilities come from the "
            "plain weight; take it out"
        )
    if any(isinstance(module, LoraLayer) for module in [model.get_input_embeddings()]):
        raise ConfigError("lora.targets names the input embeddings, which are not adapted; take them out")


def load(model: Any, folder: Path) -> None:
    """Take up an adapter's weights; the model has one of the same shape."""
    try:
        from safetensors.torch import load_file

        weights = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{folder.name} holds no adapter that can be read: {error}") from error
    try:
        outcome = peft.set_peft_model_state_dict(model, weights, adapter_name=ADAPTER)
    except RuntimeError as error:  # another shape
        reason = str(error).splitlines()[-1].strip()
        raise ConfigError(f"the adapter in {folder.name} is of another model or rank: {reason}") from error
    if outcome.unexpected_keys:
        raise ConfigError(
            f"the adapter in {folder.name} is of another model: it has {outcome.unexpected_keys[0]}"
        )


def save(model: Any, folder: Path, *, base: str) -> None:
    """Write the adapter alone, as peft reads it; `base` is the model it belongs on."""
    settings = model.peft_config[ADAPTER]
    settings.base_model_name_or_path = base
    model.save_pretrained(folder)


@contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """The model as it was before the adapter: the reference, for free."""
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


@torch.no_grad()
def merged(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Every weight by the name it has without adapters, the adapters added in."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, weight in model.named_parameters():
        owner, _, kind = name.rpartition(".base_layer.")
        if owner in layers:
            layer: Any = layers[owner]
            full = weight.detach()
            yield f"{owner}.{kind}", full + layer.get_delta_weight(ADAPTER) if kind == "weight" else full
        elif ".lora_" not in name:
            yield name, weight.detach()


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter and no model of its own."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(folder: Path) -> str:
    """The model an adapter belongs on."""
    try:
        base = dict(json.loads((folder / ADAPTER_CONFIG).read_text())).get("base_model_name_or_path")
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{folder / ADAPTER_CONFIG} is no adapter's config: {error}") from error
    if not base:
        raise ConfigError(
            f"{folder / ADAPTER_CONFIG} names no base_model_name_or_path; add the model's folder"
        )
    return str(base)


def merge_into(folder: Path, adapter: Path, base: Path, *, trust_remote_code: bool) -> None:
    """Write base plus adapter as an ordinary Hugging Face model folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, trust_remote_code=trust_remote_code
    )
    try:
        whole = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"the adapter in {adapter} does not go on {base}: {str(error).splitlines()[0]}; "
            "check both folders"
        ) from error
    whole.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base, trust_remote_code=trust_remote_code).save_pretrained(folder)
