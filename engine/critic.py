"""PPO's value model: packed batches to the reward expected at each token, and a step towards the returns.

It has a trunk of its own, all of it trained, or is one linear head on the policy's last hidden states, whose
trunk then learns from both losses in one backward pass.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification

from verigrad.engine import model_files
from verigrad.engine.config import Config, ConfigError, OptimConfig
from verigrad.engine.loss import LossFn, LossSums
from verigrad.engine.model_files import ModelFiles
from verigrad.engine.optim import build_optimizer, learning_rate
from verigrad.engine.packed_attention import NAME as PACKED
from verigrad.engine.packed_attention import require_packable
from verigrad.engine.policy import Policy, Update, take_step
from verigrad.engine.reward_head import head_of
from verigrad.engine.schema import Coefs, Metrics, PackedBatch

FOLDER = "critic"  # within a checkpoint
HEAD = "value_head.safetensors"


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float, num_tokens: int
) -> tuple[Tensor, LossSums]:
    """Half the squared error, summed over tokens and divided by `num_tokens` of the whole optimizer step.

    With `clip` above 0 a value counts as no further than `clip` from `old_values` where that makes its error
    larger, so a token gets no more than that far in one step (arXiv 1707.06347 and its code). All [N] float.
    """
    errors = (values - returns) ** 2
    stopped = torch.zeros_like(errors, dtype=torch.bool)
    if clip:
        near = old_values + (values - old_values).clamp(-clip, clip)
        clipped = (near - returns) ** 2
        stopped = clipped > errors
        errors = torch.maximum(errors, clipped)
    loss = 0.5 * errors.sum() / max(1, num_tokens)
    return loss, {
        "loss_sum": loss.detach().double(),
        "clip_count": stopped.sum(dtype=torch.float64),
        "num_tokens": torch.tensor(float(values.numel()), dtype=torch.float64),
    }


class JoinedLoss:
    """The value loss as a part of the policy's, of each batch's hidden states; it keeps the sums."""

    def __init__(self, loss: Callable[[Tensor, PackedBatch], tuple[Tensor, LossSums]], coef: float) -> None:
        self.loss, self.coef = loss, coef
        self.sums: list[LossSums] = []

    def __call__(self, hidden: Tensor, batch: PackedBatch) -> Tensor:
        """The scalar to add to the policy's loss."""
        loss, sums = self.loss(hidden, batch)
        self.sums.append(sums)
        return self.coef * loss


def look(
    policy: Policy, batches: Sequence[PackedBatch], loss: LossFn, coefs: Coefs, *, first: bool
) -> Update:
    """What the policy's step would see in the warm-up, where it takes none.

    `applied` is what it would be if it did, so that combine() takes the mean of these losses over optimizer
    steps, as of the later ones'.
    """
    seen = policy.measure(batches, loss, coefs, first=first)
    weighs = any(bool(batch.loss_weights[batch.loss_mask].any()) for batch in batches)
    return dataclasses.replace(seen, applied=weighs)


class Critic:
    """Says what reward is still to come at each token, before that token is known.

    Weights are float32 on the policy's device; a new head starts at 0, and with it every value.
    """

    def __init__(self, cfg: Config, policy: Policy, *, folder: Path) -> None:
        """Own trunk: weights from the model in `folder`. Shared: the head in `folder`, if one is there."""
        self.cfg, self.policy = cfg, policy
        self.model: Any = None
        self.head: nn.Linear
        if cfg.critic.trunk == "own":
            self.model = load_trunk(cfg, folder).to(policy.device)
            self.head, self.trained = head_of(self.model), self.model
        else:
            self.head = self.trained = new_head(policy.model).to(policy.device)
            if (folder / HEAD).is_file():
                self.head.load_state_dict(load_file(folder / HEAD))
        self.optimizer = build_optimizer(self.trained, schedule_of(cfg))

    def values(self, minibatches: Sequence[Sequence[PackedBatch]]) -> list[list[PackedBatch]]:
        """The same batches with their `values`; 0 where nothing is trained."""
        return [[self._valued(batch) for batch in batches] for batches in minibatches]

    @torch.no_grad()
    def _valued(self, batch: PackedBatch) -> PackedBatch:
        column = torch.zeros(batch.loss_mask.shape, dtype=torch.float32)
        column[batch.loss_mask] = self._read(self._hidden(batch)).cpu()
        return dataclasses.replace(batch, values=column)

    def joined(self, batches: Sequence[PackedBatch], *, step: int) -> JoinedLoss | None:
        """What goes into the policy's backward pass; None where the critic learns by itself."""
        if self.model is not None or step <= self.cfg.critic.warmup_steps:
            return None
        return JoinedLoss(self._loss_of(batches), self.cfg.critic.coef)

    def update(
        self, batches: Sequence[PackedBatch], *, step: int, joined: JoinedLoss | None, applied: bool
    ) -> Update:
        """One optimizer step. `joined`: its backward pass is done, and `applied` says whether to use it.

        Shared during the warm-up: the head alone, the trunk's hidden states taken as they are.
        """
        rate = learning_rate(schedule_of(self.cfg), step=step, num_steps=self.cfg.train.num_steps)
        if joined is not None:
            return self._finish(joined.sums, lr=rate, applied=applied)
        loss_of = self._loss_of(batches)
        return take_step(
            (loss_of(self._hidden(batch), batch) for batch in batches),
            parameters=list(self.trained.parameters()),
            optimizer=self.optimizer,
            lr=rate,
            max_grad_norm=self.cfg.optim.max_grad_norm,
            weighs=any(bool(batch.loss_mask.any()) for batch in batches),
        )

    def _finish(self, sums: Sequence[LossSums], *, lr: float, applied: bool) -> Update:
        """The head's step on the gradient that the policy's backward pass left."""
        parameters = list(self.head.parameters())
        norm = float(nn.utils.clip_grad_norm_(parameters, self.cfg.optim.max_grad_norm))
        finite = math.isfinite(norm) and math.isfinite(sum(float(part["loss_sum"]) for part in sums))
        if applied and finite:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Update(sums, grad_norm=norm, lr=lr, applied=applied and finite, finite=finite)

    def _loss_of(
        self, batches: Sequence[PackedBatch]
    ) -> Callable[[Tensor, PackedBatch], tuple[Tensor, LossSums]]:
        """The value loss of one batch's hidden states; its denominator is that of all `batches`."""
        num_tokens = sum(int(batch.loss_mask.sum()) for batch in batches)

        def loss_of(hidden: Tensor, batch: PackedBatch) -> tuple[Tensor, LossSums]:
            assert batch.values is not None, "values come before the step"
            assert batch.returns is not None, "returns come with the advantages"
            mask, device = batch.loss_mask, self.policy.device
            return value_loss(
                self._read(hidden),
                batch.values[mask].to(device),
                batch.returns[mask].to(device),
                clip=self.cfg.critic.value_clip,
                num_tokens=num_tokens,
            )

        return loss_of

    def _hidden(self, batch: PackedBatch) -> Tensor:
        if self.model is not None:
            return self.policy.hidden(self.model, batch)
        with torch.no_grad():
            return self.policy.hidden(self.policy.model, batch)

    def _read(self, hidden: Tensor) -> Tensor:
        """Hidden states [N, H] to values [N] float32."""
        values: Tensor = self.head(hidden.float())
        return values[:, 0]

    def save(self, folder: Path) -> None:
        """The weights into `folder`: a Hugging Face model, or the head alone."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.model is not None:
            self.model.save_pretrained(folder)
        else:
            save_file({name: w.contiguous() for name, w in self.head.state_dict().items()}, folder / HEAD)

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint holds besides the weights."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up `state()` again; the weights come with the folder."""
        self.optimizer.load_state_dict(state["optimizer"])


def open_critic(cfg: Config, policy: Policy, start: ModelFiles, *, checkpoint: Path | None) -> Critic:
    """A run's critic: as the checkpoint has it, else from critic.model, else from the policy's start."""
    if checkpoint is not None:
        return Critic(cfg, policy, folder=checkpoint / FOLDER)
    if not cfg.critic.model:
        return Critic(cfg, policy, folder=Path(start.folder))
    chosen = cfg.policy.model_copy(update={"model": cfg.critic.model, "options": {}})
    try:
        files = model_files.fetch(cfg.model_copy(update={"policy": chosen}))
    except ConfigError as error:
        raise ConfigError(str(error).replace("policy.model", "critic.model")) from error
    known = files.tokenizer.get_vocab()
    strange = [word for word, number in start.tokenizer.get_vocab().items() if known.get(word) != number]
    if strange:
        raise ConfigError(
            f"critic.model = {cfg.critic.model!r} has another vocabulary than policy.model (found no "
            f"{strange[0]!r} where that has it); the critic reads the policy's tokens. Take a model with the "
            "same tokenizer"
        )
    return Critic(cfg, policy, folder=Path(files.folder))


def schedule_of(cfg: Config) -> OptimConfig:
    """The critic's optimizer: [optim] with a learning rate of its own."""
    return cfg.optim.model_copy(update={"lr": cfg.critic.lr})


def new_head(model: Any) -> nn.Linear:
    """A head that says 0 of every hidden state of `model`."""
    head = nn.Linear(model.config.get_text_config().hidden_size, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def load_trunk(cfg: Config, folder: Path) -> Any:
    """A model in float32 with one value per token, packed attention and no dropout.

    What a reward model's head says is kept; a language model gets a new head that says 0.
    """
    try:
        model, loading = AutoModelForTokenClassification.from_pretrained(
            folder,
            num_labels=1,
            dtype=torch.float32,
            attn_implementation=PACKED,
            trust_remote_code=cfg.policy.trust_remote_code,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"critic.trunk = 'own': {str(folder)!r} could not be loaded with one value per token: {reason}. "
            "Take another critic.model, or critic.trunk = 'shared'"
        ) from error
    require_packable(model, str(folder))
    head = head_of(model)
    missing = {name.rsplit(".", 1)[-1] for name in loading["missing_keys"] if name.count(".") == 1}
    with torch.no_grad():
        if "weight" in missing:
            head.weight.zero_()
        if head.bias is not None and "bias" in missing:
            head.bias.zero_()
    for weight in model.parameters():
        # Memory of its own: weights that lie in a file are aligned as the file is, and a start's file and a
        # checkpoint's are not alike, so that a resumed run would add floats in another order.
        weight.data = weight.data.clone()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # old and new values must come from the same function
    model.train()
    if cfg.policy.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def measure(minibatches: Sequence[Sequence[PackedBatch]], updates: Sequence[Update]) -> Metrics:
    """What one step's critic said before it learned, and how its optimizer steps went.

    Explained variance is 1 - var(returns - values) / var(returns): 1 where the values are the returns, 0
    where they are no better than a constant, and below where they are worse; 0.0 where returns do not vary.
    """
    batches = [batch for minibatch in minibatches for batch in minibatch]
    values = _trained([(batch.values, batch.loss_mask) for batch in batches])
    returns = _trained([(batch.returns, batch.loss_mask) for batch in batches])
    spread = float(returns.var(correction=0)) if returns.numel() else 0.0
    left = float((returns - values).var(correction=0)) if returns.numel() else 0.0
    sums = [part for done in updates for part in done.sums]

    def total(name: str) -> float:
        return sum(float(part[name]) for part in sums)

    return {
        "critic/loss": total("loss_sum") / max(1, len(updates)),
        "critic/clip_frac": total("clip_count") / max(1.0, total("num_tokens")),
        "critic/explained_variance": 1.0 - left / spread if spread > 0 else 0.0,
        "critic/value_mean": float(values.mean()) if values.numel() else 0.0,
        "critic/return_mean": float(returns.mean()) if returns.numel() else 0.0,
        "critic/grad_norm": sum(done.grad_norm for done in updates) / max(1, len(updates)),
        "critic/lr": updates[-1].lr if updates else 0.0,
    }


def _trained(columns: Sequence[tuple[Tensor | None, Tensor]]) -> Tensor:
    """Of columns and their masks: what is trained on, end to end, float64."""
    return torch.cat([torch.zeros(0), *(c[mask] for c, mask in columns if c is not None)]).double()
