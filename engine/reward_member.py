"""One reward model in training: compared answers or labelled steps -> an optimizer step; read and saved."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from verigrad.engine import lora
from verigrad.engine.config import Config, ConfigError
from verigrad.engine.optim import build_optimizer, learning_rate
from verigrad.engine.reward_card import Card
from verigrad.engine.reward_data import Comparison, LabelledSteps
from verigrad.engine.reward_head import HEADS, choose_pad, open_model, outputs
from verigrad.engine.reward_loss import bradley_terry, centring, plackett_luce, step_cross_entropy
from verigrad.engine.reward_model import ProcessRewardModel, Reader, RewardModel
from verigrad.engine.reward_text import TextBatch, lay_out
from verigrad.engine.schema import Metrics

LENGTH_LR = 0.02  # of the length's own coefficient, which is one number and convex


class Member:
    """A model with a reward head, its optimizer, and (with reward.length_control) what length explains."""

    def __init__(
        self,
        cfg: Config,
        start_folder: str,
        resumed: Path | None,
        *,
        tokenizer: Any,
        card: Card,
        seed: int,
    ) -> None:
        """Weights come from `resumed` where that is not None; adapters and all else from `load_state`."""
        self.cfg = cfg
        self.length_scale = 1.0  # tokens that the length's coefficient is told per
        self.adapted, self.is_steps = cfg.lora.rank > 0, card.kind == "steps"
        folder = start_folder if self.adapted or resumed is None else resumed
        model = open_model(
            folder, steps=self.is_steps, seed=seed, trust_remote_code=cfg.policy.trust_remote_code
        )
        choose_pad(model, tokenizer, card.eos_id)
        if self.adapted:
            attach(model, cfg, seed=seed)
        if cfg.policy.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        device = Reader.of(cfg.policy.device, cfg.policy.dtype, cfg.policy.tokens_per_batch)
        self.model = model.to(device.device).train()
        kind = ProcessRewardModel if self.is_steps else RewardModel
        self.reader: RewardModel | ProcessRewardModel = kind(self.model, tokenizer, card, device)
        self.optimizer = build_optimizer(self.model, cfg.optim)
        self.length = torch.zeros((), device=device.device, requires_grad=True)
        self.length_optimizer = torch.optim.Adam([self.length], lr=LENGTH_LR)

    def batches_of(self, examples: Sequence[Any]) -> list[TextBatch]:
        """Packed, the answers of one row together."""
        groups = [[e.text] if self.is_steps else e.texts for e in examples]
        return lay_out(groups, max_tokens=self.cfg.policy.tokens_per_batch)

    def step(self, examples: Sequence[Any], batches: Sequence[TextBatch], *, step: int) -> Metrics:
        """One optimizer step over all examples, packed as `batches_of` does.

        A non-finite loss or gradient leaves everything as it is. Every row weighs the same (of labelled steps
        every step), whichever way they were packed.
        """
        rate = learning_rate(self.cfg.optim, step=step, num_steps=self.cfg.train.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        self.length_optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        total = sum(len(e.labels) for e in examples) if self.is_steps else len(examples)
        for batch in batches:
            some = [examples[index] for index in dict.fromkeys(batch.groups)]
            loss, seen = self._loss(batch, some, total)
            loss.backward()  # type: ignore[no-untyped-call]
            for name, value in seen.items():
                sums[name] = sums.get(name, 0.0) + value
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.optim.max_grad_norm))
        applied = math.isfinite(norm) and math.isfinite(sums["loss"])
        if applied:
            self.optimizer.step()
            if self.cfg.reward.length_control:
                self.length_optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {**sums, "grad_norm": norm, "lr": rate, "skipped_updates": float(not applied)}

    def _loss(self, batch: TextBatch, examples: Sequence[Any], total: int) -> tuple[Tensor, dict[str, float]]:
        autocast = self.cfg.policy.dtype == "bfloat16"
        out = outputs(self.model, batch, autocast=autocast, share_prefixes=self.cfg.policy.share_prefixes)
        return self._of_steps(out, examples, total) if self.is_steps else self._of_pairs(out, examples, total)

    def _of_steps(
        self, logits: Tensor, examples: Sequence[LabelledSteps], total: int
    ) -> tuple[Tensor, dict[str, float]]:
        labels = torch.tensor([x for e in examples for x in e.labels], device=logits.device)
        loss = step_cross_entropy(logits, labels).sum() / total
        right = ((logits[:, 1] > logits[:, 0]) == (labels > 0.5)).sum()
        return loss, {"loss": float(loss.detach()), "accuracy": float(right) / total}

    def _of_pairs(
        self, out: Tensor, examples: Sequence[Comparison], total: int
    ) -> tuple[Tensor, dict[str, float]]:
        """Bradley-Terry over pairs, Plackett-Luce over rankings of three or more; length explains its part.

        A row's pairs share its weight (arXiv 2203.02155, eq. 1).
        """
        rewards, device = out[:, 0], out.device
        lengths = torch.tensor([float(t.num_answer) for e in examples for t in e.texts], device=device)
        explained = rewards
        if self.cfg.reward.length_control:
            explained = rewards + self.length * lengths / self.length_scale
        better, worse, weights, p, margins = [], [], [], [], []
        loss, start = rewards.new_zeros(()), 0
        for example in examples:
            end = start + len(example.texts)
            loss = loss + self.cfg.reward.center_coef * centring(rewards[start:end]) / total
            if len(example.texts) > 2 and self.cfg.reward.ranking == "plackett_luce":
                ranks = torch.tensor(example.ranks, device=device)
                loss = loss + plackett_luce(explained[start:end], ranks) / total
            pairs = example.pairs
            better += [start + i for i, _ in pairs]
            worse += [start + j for _, j in pairs]
            weights += [1 / (total * len(pairs))] * len(pairs)
            p += [example.p_chosen] * len(pairs)
            margins += [example.margin] * len(pairs)
            start = end
        weight, target = torch.tensor(weights, device=device), torch.tensor(p, device=device)
        gap = rewards[better] - rewards[worse]
        losses = bradley_terry(
            explained[better],
            explained[worse],
            margin=torch.tensor(margins, device=device),
            p_chosen=target,
        )
        if self.cfg.reward.ranking == "plackett_luce":
            large = [len(e.texts) > 2 for e in examples for _ in e.pairs]
            losses = losses.masked_fill(torch.tensor(large, device=device), 0.0)
        loss = loss + (weight * losses).sum()
        seen = {
            "loss": loss,
            "accuracy": (weight * (gap > 0)).sum(),
            "reward_gap": (weight * gap).sum(),
            "reward_mean": rewards.sum() / len(rewards) * len(examples) / total,
        }
        return loss, {name: float(value.detach()) for name, value in seen.items()}

    @torch.no_grad()
    def read(self, examples: Sequence[Any]) -> list[Tensor]:
        """What the head says of each example's texts: [K] rewards, or [steps] probabilities."""
        self.model.eval()  # dropout is off either way; checkpointing needs no gradient here
        try:
            if self.is_steps:
                seen = self.reader.read([e.text for e in examples])
                return [each.softmax(-1)[:, 1] for each in seen]
            flat = self.reader.read([text for e in examples for text in e.texts])
            rewards = iter(flat)
            return [torch.stack([next(rewards)[0, 0] for _ in e.texts]) for e in examples]
        finally:
            self.model.train()

    def save(self, folder: Path, card: Card) -> None:
        """Whole weights, adapters merged in, with tokenizer and card: a folder that any program can load."""
        if self.adapted:
            with torch.device("meta"):
                plain = type(self.model)(self.model.config)
            weights = dict(self.model.named_buffers()) | dict(lora.merged(self.model))
            plain.load_state_dict(weights, strict=False, assign=True)
            plain.save_pretrained(folder)
        else:
            self.model.save_pretrained(folder)
        self.reader.tokenizer.save_pretrained(folder)
        card.save(folder)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds besides whole weights."""
        trained = {n: p.detach().cpu() for n, p in self.model.named_parameters() if p.requires_grad}
        return {
            "optimizer": self.optimizer.state_dict(),
            "length": float(self.length.detach()),
            "length_optimizer": self.length_optimizer.state_dict(),
            "adapters": trained if self.adapted else {},
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up `state`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.length.fill_(state["length"])
        self.length_optimizer.load_state_dict(state["length_optimizer"])
        ours = dict(self.model.named_parameters())
        for name, weight in state["adapters"].items():
            ours[name].copy_(weight)


def attach(model: Any, cfg: Config, *, seed: int) -> None:
    """Freeze the model and give its layers adapters; the new head is trained whole."""
    if named := [target for target in cfg.lora.targets if target in HEADS]:
        raise ConfigError(
            f"lora.targets names {named[0]!r}, the reward head, which is trained whole; remove it"
        )
    lora.attach(model, cfg.lora, seed=seed)
    for name in HEADS:
        head = getattr(model, name, None)
        if isinstance(head, LoraLayer):
            head = head.base_layer
            setattr(model, name, head)
        if isinstance(head, nn.Module):
            head.requires_grad_(True)
