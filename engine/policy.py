"""The model being trained: packed batches to log-probabilities, losses to optimizer steps."""

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from verigrad.engine import lora
from verigrad.engine.activations import offloaded
from verigrad.engine.algorithm_settings import holds_reference
from verigrad.engine.attention_backends import choose
from verigrad.engine.bins import pair_cost
from verigrad.engine.catalogue import LOSSES
from verigrad.engine.config import Config, ConfigError
from verigrad.engine.lanes import MOST_WEIGHTS, add_gradients, halves
from verigrad.engine.loss import LossFn, LossSums, TokenWise, add_up, merge
from verigrad.engine.loss_columns import ColumnLoss, column_loss
from verigrad.engine.optim import build_optimizer, learning_rate
from verigrad.engine.packed_attention import last_hidden
from verigrad.engine.policy_model import load_model
from verigrad.engine.prefixes import layout_of
from verigrad.engine.schema import Coefs, Metrics, PackedBatch
from verigrad.engine.update_dtype import update_dtype
from verigrad.engine.zero_advantage import follows_advantage, with_gradient
from verigrad.kernels.linear_logprob import linear_collision, linear_logprob
from verigrad.kernels.linear_token_loss import linear_token_loss

BesideFn = Callable[[Tensor, PackedBatch], Tensor]
"""Last hidden states [N, H] of a batch's trained columns -> a scalar to add to the policy's loss."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one optimizer step did."""

    sums: Sequence[LossSums]  # of each batch
    grad_norm: float  # before clipping
    lr: float
    applied: bool  # False: weights and optimizer are as they were
    finite: bool = True  # loss and gradient; where they are and nothing is applied, no token was trained on


def combine(updates: Sequence[Update]) -> Metrics:
    """One step's optimizer steps as one set of metrics; mismatch is the first one's, no weight had moved."""
    tried = [done for done in updates if done.applied or not done.finite]  # the others had no token
    metrics = merge([part for done in updates for part in done.sums], num_optimizer_steps=max(1, len(tried)))
    if updates:
        first = merge(updates[0].sums)
        metrics |= {name: first[name] for name in ("mismatch_kl", "mismatch_chi2", "mismatch_max")}
    norms = [done.grad_norm for done in tried]
    return {**metrics, "grad_norm": sum(norms) / max(1, len(norms)), "lr": tried[-1].lr if tried else 0.0}


def take_step(
    parts: Iterable[tuple[Tensor, LossSums]],
    *,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    lr: float,
    max_grad_norm: float,
    weighs: bool = True,
) -> Update:
    """One optimizer step on the sum of the parts' losses, each made, and let go, when it is its turn.

    A part is a scalar and its sums, "loss_sum" among them; one without a gradient has none to add. Without
    `weighs`, or with a loss or gradient that is not finite, weights and optimizer stay as they are.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    seen = []
    for loss, sums in parts:
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        seen.append(sums)
    norm = float(nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    finite = math.isfinite(norm) and math.isfinite(sum(float(sums["loss_sum"]) for sums in seen))
    applied = finite and weighs
    if applied:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return Update(seen, grad_norm=norm, lr=lr, applied=applied, finite=finite)


class Policy:
    """A causal language model with float32 weights, its optimizer and (with a KL term) its frozen start."""

    def __init__(self, cfg: Config, model_folder: str, *, tokenizer: Any, start_folder: str) -> None:
        """Load weights from `model_folder`; the KL reference, if any, from `start_folder`.

        With adapters (LoRA) the weights are those of `start_folder`, and `model_folder`, where it is another,
        holds the adapter.
        """
        self.cfg, self.tokenizer, self.start_folder = cfg, tokenizer, start_folder
        self.device = find_device(cfg)
        self.update_dtype = update_dtype(cfg, self.device)
        choose(cfg.policy.attention, device=self.device, dtype=getattr(torch, self.update_dtype), shared=True)
        self.adapted = cfg.lora.rank > 0
        self.model = load_model(cfg, start_folder if self.adapted else model_folder)
        if self.adapted:
            lora.attach(self.model, cfg.lora, seed=cfg.train.seed)
            if model_folder != start_folder:
                lora.load(self.model, Path(model_folder))
        self.model = self.model.to(self.device)
        self.optimizer = build_optimizer(self.model, cfg.optim)
        self.has_reference = holds_reference(cfg.algorithm)
        self.reference: nn.Module | None = None  # with adapters it is the model without them
        if self.has_reference and not self.adapted:
            self.reference = load_model(cfg, start_folder).to(self.device).requires_grad_(False)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight by its Hugging Face name, as the sampler takes them; adapters merged in."""
        if self.adapted:
            yield from lora.merged(self.model)
            return
        for name, weight in self.model.named_parameters():
            yield name, weight.detach()

    def save_adapter(self, folder: Path) -> None:
        """The adapters alone, for a sampler that loads them."""
        lora.save(self.model, folder, base=self.start_folder)

    def logprobs(self, batch: PackedBatch, *, temperature: float, reference: bool = False) -> Tensor:
        """Log-probability of each label [T] float32 on the CPU; 0 where loss_mask is False.

        The policy's are in policy.dtype, as the sampler's; a reference's as the update computes.
        """
        if not reference:
            dtype = self.cfg.policy.dtype
            return self._look(self.model, batch, temperature=temperature, dtype=dtype)["old"]
        assert self.has_reference
        with lora.switched_off(self.model) if self.adapted else nullcontext():
            return self._look(self.reference or self.model, batch, temperature=temperature)["old"]

    @torch.no_grad()
    def _look(
        self,
        model: Any,
        batch: PackedBatch,
        *,
        temperature: float,
        needs: Collection[str] = (),
        dtype: str | None = None,
    ) -> dict[str, Tensor]:
        """One forward pass: "old" log-probabilities, "entropy", if needed "collision", each [T] float32."""
        hidden = self.hidden(model, batch, dtype=dtype)
        logprobs, entropy = self._head(model, hidden, batch, temperature=temperature)
        seen = {"old": logprobs, "entropy": entropy}
        if "collision" in needs:
            head = model.get_output_embeddings()
            chunk = self.cfg.policy.head_chunk_tokens
            seen["collision"] = linear_collision(
                hidden, head.weight, bias=head.bias, temperature=temperature, chunk_tokens=chunk
            )
        columns = {}
        for name, values in seen.items():
            columns[name] = torch.zeros(batch.loss_mask.shape, dtype=torch.float32)
            columns[name][batch.loss_mask] = values.float().cpu()
        return columns

    def frozen(
        self, batches: Sequence[PackedBatch], *, with_old: bool, needs: Collection[str] = ()
    ) -> list[PackedBatch]:
        """Batches with what must be known before the first optimizer step of this rollout batch.

        `with_old` takes the old log-probabilities from the trainer as it is now; else they stay the
        sampler's. `needs` may also name "entropy" and "collision".
        """
        temperature = self.cfg.rollout.temperature
        done = []
        for batch in batches:
            if self.has_reference:
                ref = self.logprobs(batch, temperature=temperature, reference=True)
                batch = dataclasses.replace(batch, ref_logprobs=ref)
            if with_old or needs:
                seen = self._look(self.model, batch, temperature=temperature, needs=needs)
                batch = dataclasses.replace(
                    batch,
                    old_logprobs=seen["old"] if with_old else batch.old_logprobs,
                    old_entropy=seen["entropy"] if "entropy" in needs else None,
                    old_collision=seen.get("collision"),
                )
            done.append(batch)
        return done

    def update(
        self,
        batches: Sequence[PackedBatch],
        loss_fn: LossFn,
        coefs: Coefs,
        *,
        step: int,
        first: bool,
        beside: BesideFn | None = None,
    ) -> Update:
        """One optimizer step over all batches, the side terms weighted by `coefs`.

        `beside`: a loss of another model on the same hidden states, whose gradient this model shares.

        `first`: no step was taken since sampling, so this forward's own log-probabilities are the old ones
        and every ratio is exactly 1. A non-finite loss or gradient leaves weights and optimizer alone. So do
        batches without a token that weighs: the optimizer's momentum and decay would move the weights. Where
        `skips` says so, batches whose every advantage is 0 go without a backward pass.
        """
        weighs = any(bool(batch.loss_weights[batch.loss_mask].any()) for batch in batches)
        moves = with_gradient(batches, skip=beside is None and self.skips(coefs))

        def part(batch: PackedBatch, moving: bool) -> tuple[Tensor, LossSums]:
            with torch.set_grad_enabled(moving):
                return self._loss(batch, loss_fn, coefs, first=first, beside=beside)

        def parts() -> Iterator[tuple[Tensor, LossSums]]:
            for batch, moving in zip(batches, moves, strict=True):
                pair = self._halves(batch) if beside is None else None
                if pair is None:
                    yield part(batch, moving)
                else:
                    lanes = partial(part, pair[0], moving), partial(part, pair[1], moving)
                    yield from add_gradients(lanes, self._trained())

        return self.step(parts(), step=step, weighs=weighs)

    def _halves(self, batch: PackedBatch) -> tuple[PackedBatch, PackedBatch] | None:
        """What to compute side by side instead, where that pays: on a CPU of several cores, see lanes.py."""
        if self.device.type != "cpu" or torch.get_num_threads() < 2 or LOSSES[self.cfg.algorithm.loss].pairs:
            return None
        if sum(weight.numel() for weight in self._trained()) > MOST_WEIGHTS:
            return None
        text = self.model.config.get_text_config()
        return halves(
            batch,
            pair_cost=pair_cost(
                hidden_size=text.hidden_size,
                num_layers=text.num_hidden_layers,
                num_parameters=self.model.num_parameters(),
            ),
        )

    def _trained(self) -> list[nn.Parameter]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def skips(self, coefs: Coefs) -> bool:
        """Whether rollouts of advantage 0 need no backward pass: nothing else of the loss reaches them."""
        return self.cfg.policy.skip_zero_advantage and follows_advantage(self.cfg, coefs)

    @torch.no_grad()
    def measure(
        self, batches: Sequence[PackedBatch], loss_fn: LossFn, coefs: Coefs, *, first: bool
    ) -> Update:
        """What `update` would see, without taking its step."""
        sums = [self._loss(batch, loss_fn, coefs, first=first)[1] for batch in batches]
        return Update(sums, grad_norm=0.0, lr=0.0, applied=False)

    def step(self, parts: Iterable[tuple[Tensor, LossSums]], *, step: int, weighs: bool = True) -> Update:
        """One optimizer step on the sum of the parts' losses, at this step's rate; see `take_step`."""
        return take_step(
            parts,
            parameters=list(self.model.parameters()),
            optimizer=self.optimizer,
            lr=learning_rate(self.cfg.optim, step=step, num_steps=self.cfg.train.num_steps),
            max_grad_norm=self.cfg.optim.max_grad_norm,
            weighs=weighs,
        )

    def token_logprobs(self, batch: PackedBatch, *, temperature: float) -> Tensor:
        """Log-probability [N] of the labels that count, in their order, with gradient."""
        hidden = self.hidden(self.model, batch)
        return self._head(self.model, hidden, batch, temperature=temperature, entropy=False)[0]

    def _loss(
        self,
        batch: PackedBatch,
        loss_fn: LossFn,
        coefs: Coefs,
        *,
        first: bool,
        beside: BesideFn | None = None,
    ) -> tuple[Tensor, LossSums]:
        hidden = self.hidden(self.model, batch)
        decoupled = self.cfg.algorithm.old_logprobs == "trainer"
        of_columns = column_loss(
            batch,
            loss_fn,
            coefs,
            device=self.device,
            own_old=first and decoupled,
            compare=first and not decoupled,  # the loss is given the sampler's as the old ones
        )
        if isinstance(loss_fn, TokenWise) and beside is None and len(hidden):
            return self._in_one_pass(hidden, batch, of_columns)
        found = self._head(self.model, hidden, batch, temperature=self.cfg.rollout.temperature)
        loss, sums = of_columns(slice(None), *found)
        return loss if beside is None else loss + beside(hidden, batch), sums

    def _in_one_pass(
        self, hidden: Tensor, batch: PackedBatch, of_columns: ColumnLoss
    ) -> tuple[Tensor, LossSums]:
        """The loss and its gradient a chunk of logits at a time, none of which is computed twice."""
        seen: list[LossSums] = []

        def of_chunk(rows: slice, logprobs: Tensor, entropy: Tensor) -> Tensor:
            loss, sums = of_columns(rows, logprobs, entropy)
            seen.append(sums)
            return loss

        head = self.model.get_output_embeddings()
        loss, _, _ = linear_token_loss(
            hidden,
            head.weight,
            batch.labels[batch.loss_mask].to(self.device),
            of_chunk,
            bias=head.bias,
            temperature=self.cfg.rollout.temperature,
            chunk_tokens=self.cfg.policy.head_chunk_tokens,
        )
        return loss, add_up(seen)

    def hidden(self, model: Any, batch: PackedBatch, *, dtype: str | None = None) -> Tensor:
        """Last hidden states [N, H] of the N columns whose label counts, of a model with packed attention.

        Computed in `dtype`, if none is given the update's.
        """
        chosen = self.cfg.policy
        layout = layout_of(
            batch.input_ids,
            batch.cu_seqlens,
            share=chosen.share_prefixes,
            by_shape=self.device.type == "cpu" or chosen.attention == "sdpa",
        )
        keep = offloaded(model) if chosen.offload_activations and torch.is_grad_enabled() else nullcontext()
        with self._autocast(dtype or self.update_dtype), keep:
            hidden = last_hidden(
                model,
                layout,
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                attention=chosen.attention,
            )
        return hidden[layout.places[batch.loss_mask].to(self.device)]

    def _head(
        self, model: Any, hidden: Tensor, batch: PackedBatch, *, temperature: float, entropy: bool = True
    ) -> tuple[Tensor, Tensor]:
        """(log-probability, entropy) [N] of the labels that count; logits are never held as a whole.

        Without `entropy` that is NaN.
        """
        head = model.get_output_embeddings()
        return linear_logprob(
            hidden,
            head.weight,
            batch.labels[batch.loss_mask].to(self.device),
            bias=head.bias,
            temperature=temperature,
            chunk_tokens=self.cfg.policy.head_chunk_tokens,
            entropy=entropy,
        )

    def _autocast(self, dtype: str) -> AbstractContextManager[object]:
        return torch.autocast(
            self.device.type,
            dtype=torch.bfloat16,
            enabled=dtype == "bfloat16",
            cache_enabled=self.device.type != "cpu",  # threads would share it; each weight is used but once
        )

    def save_model(self, folder: Path) -> None:
        """Weights, config and tokenizer as a Hugging Face folder; of an adapted model the adapter alone."""
        if self.adapted:
            self.save_adapter(folder)
        else:
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @torch.no_grad()
    def move_reference(self) -> None:
        """reference <- mix * policy + (1 - mix) * reference (TR-DPO, arXiv 2404.09656)."""
        mix = self.cfg.algorithm.ref_sync_mix
        assert self.reference is not None
        assert mix is not None, "config.resolve fills it"
        ours = dict(self.model.named_parameters())
        for name, theirs in self.reference.named_parameters():
            theirs.lerp_(ours[name], mix)

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint holds besides the weights."""
        state = {"optimizer": self.optimizer.state_dict()}
        if self.reference is not None and self.cfg.algorithm.ref_sync_every:
            state["reference"] = self.reference.state_dict()
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up `state()` again; the weights come with the model folder."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.reference is not None and "reference" in state:
            self.reference.load_state_dict(state["reference"])


def find_device(cfg: Config) -> torch.device:
    """Where the trainer computes. Raises ConfigError for a GPU that is not there."""
    wanted, there = cfg.policy.device, torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError("policy.device = 'cuda', but torch sees no GPU here; use 'auto' or 'cpu'")
    if cfg.policy.offload_activations and (wanted == "cpu" or not there):
        raise ConfigError(
            "policy.offload_activations = true moves a GPU's activations to the host, and the trainer "
            "computes on the CPU here; remove it"
        )
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")
