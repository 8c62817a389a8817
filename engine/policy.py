"""The model being trained: packed batches to log-probabilities, losses to optimizer steps."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from verigrad.engine.config import Config, ConfigError
from verigrad.engine.loss import LossFn, LossInputs, LossSums, merge, mismatch_sums
from verigrad.engine.optim import build_optimizer, learning_rate
from verigrad.engine.packed_attention import NAME as PACKED
from verigrad.engine.packed_attention import runs_of
from verigrad.engine.schema import Metrics, PackedBatch
from verigrad.kernels.linear_logprob import linear_logprob

UNSUPPORTED_HEADS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


@dataclass(frozen=True, slots=True)
class Update:
    """What one optimizer step did."""

    sums: Sequence[LossSums]  # of each batch
    grad_norm: float  # before clipping
    lr: float
    applied: bool  # False: loss or gradient was not finite, the weights are as they were


def combine(updates: Sequence[Update]) -> Metrics:
    """One step's optimizer steps as one set of metrics; mismatch is the first one's, no weight had moved."""
    metrics = merge(
        [part for done in updates for part in done.sums], num_optimizer_steps=max(1, len(updates))
    )
    if not updates:
        metrics["entropy"] = math.nan  # nothing was looked at
    else:
        first = merge(updates[0].sums)
        metrics |= {name: first[name] for name in ("mismatch_kl", "mismatch_max")}
    norms = [done.grad_norm for done in updates]
    return {**metrics, "grad_norm": sum(norms) / max(1, len(norms)), "lr": updates[-1].lr if updates else 0.0}


class Policy:
    """A causal language model with float32 weights, its optimizer and (with a KL term) its frozen start."""

    def __init__(self, cfg: Config, model_folder: str, *, tokenizer: Any, start_folder: str) -> None:
        """Load weights from `model_folder`; the KL reference, if any, from `start_folder`."""
        self.cfg, self.tokenizer = cfg, tokenizer
        self.device = find_device(cfg)
        self.model = load_model(cfg, model_folder).to(self.device)
        self.optimizer = build_optimizer(self.model, cfg.optim)
        self.reference: nn.Module | None = None
        if cfg.algorithm.kl_coef > 0:
            self.reference = load_model(cfg, start_folder).to(self.device).requires_grad_(False)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight by its Hugging Face name, as the sampler takes them."""
        for name, weight in self.model.named_parameters():
            yield name, weight.detach()

    @torch.no_grad()
    def logprobs(self, batch: PackedBatch, *, temperature: float, reference: bool = False) -> Tensor:
        """Log-probability of each label [T] float32 on the CPU; 0 where loss_mask is False."""
        model = self.reference if reference else self.model
        assert model is not None
        chosen, _ = self._forward(model, batch, temperature=temperature)
        out = torch.zeros(batch.loss_mask.shape, dtype=torch.float32)
        out[batch.loss_mask] = chosen.float().cpu()
        return out

    def frozen(self, batches: Sequence[PackedBatch], *, with_old: bool) -> list[PackedBatch]:
        """Batches with what must be known before the first optimizer step of this rollout batch.

        `with_old` takes the old log-probabilities from the trainer as it is now; else they stay the
        sampler's.
        """
        temperature = self.cfg.rollout.temperature
        done = []
        for batch in batches:
            if self.reference is not None:
                ref = self.logprobs(batch, temperature=temperature, reference=True)
                batch = dataclasses.replace(batch, ref_logprobs=ref)
            if with_old:
                batch = dataclasses.replace(batch, old_logprobs=self.logprobs(batch, temperature=temperature))
            done.append(batch)
        return done

    def update(self, batches: Sequence[PackedBatch], loss_fn: LossFn, *, step: int, first: bool) -> Update:
        """One optimizer step over all batches.

        `first`: no step was taken since sampling, so this forward's own log-probabilities are the old ones
        and every ratio is exactly 1. A non-finite loss or gradient leaves weights and optimizer alone.
        """
        rate = learning_rate(self.cfg.optim, step=step, num_steps=self.cfg.train.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        parts = []
        for batch in batches:
            loss, sums = self._loss(batch, loss_fn, first=first)
            loss.backward()  # type: ignore[no-untyped-call]
            parts.append(sums)
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.optim.max_grad_norm))
        applied = math.isfinite(norm) and math.isfinite(merge(parts)["loss"])
        if applied:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Update(parts, grad_norm=norm, lr=rate, applied=applied)

    def _loss(self, batch: PackedBatch, loss_fn: LossFn, *, first: bool) -> tuple[Tensor, LossSums]:
        logprobs, entropy = self._forward(self.model, batch, temperature=self.cfg.rollout.temperature)
        mask, decoupled = batch.loss_mask, self.cfg.algorithm.old_logprobs == "trainer"
        sequence = torch.repeat_interleave(torch.arange(batch.num_rollouts), batch.cu_seqlens.diff().long())

        def chosen(column: Tensor) -> Tensor:
            return column[mask].to(self.device)

        inputs = LossInputs(
            logprobs=logprobs,
            old_logprobs=logprobs.detach() if first and decoupled else chosen(batch.old_logprobs),
            rollout_logprobs=chosen(batch.rollout_logprobs),
            ref_logprobs=None if batch.ref_logprobs is None else chosen(batch.ref_logprobs),
            entropy=entropy,
            advantages=chosen(batch.advantages),
            weights=chosen(batch.loss_weights),
            sequence=chosen(sequence),
        )
        loss, sums = loss_fn(inputs)
        if first and not decoupled:  # the loss was given the sampler's as the old ones: nothing to compare
            sums |= mismatch_sums(dataclasses.replace(inputs, old_logprobs=logprobs.detach()))
        return loss, sums

    def _forward(self, model: Any, batch: PackedBatch, *, temperature: float) -> tuple[Tensor, Tensor]:
        """(log-probability, entropy) [N] of the N labels that count; logits are never held as a whole."""
        with self._autocast():
            hidden = model.base_model(
                input_ids=batch.input_ids[None].to(self.device),
                position_ids=batch.position_ids[None].to(self.device),
                use_cache=False,
                packed_runs=runs_of(batch.cu_seqlens),
            ).last_hidden_state[0]
        mask = batch.loss_mask.to(self.device)
        head = model.get_output_embeddings()
        return linear_logprob(
            hidden[mask],
            head.weight,
            batch.labels.to(self.device)[mask],
            bias=head.bias,
            temperature=temperature,
            chunk_tokens=self.cfg.policy.head_chunk_tokens,
        )

    def _autocast(self) -> AbstractContextManager[object]:
        enabled = self.cfg.policy.dtype == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def save_model(self, folder: Path) -> None:
        """Weights, config and tokenizer as a Hugging Face folder."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint holds besides the weights."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up `state()` again; the weights come with the model folder."""
        self.optimizer.load_state_dict(state["optimizer"])


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


def find_device(cfg: Config) -> torch.device:
    """Where the trainer computes. Raises ConfigError for a GPU that is not there."""
    wanted, there = cfg.policy.device, torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError("policy.device = 'cuda', but torch sees no GPU here; use 'auto' or 'cpu'")
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")
