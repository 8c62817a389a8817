"""`verigrad sft RECIPE`: supervised fine-tuning on completions, packed, on the loop's own policy.

rows -> examples -> packed batch -> minus log-likelihood of the learned tokens -> optimizer step -> record
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from verigrad.engine import config_verbs, model_files, sft_data
from verigrad.engine.aggregation import token_mean
from verigrad.engine.config import Config, ConfigError
from verigrad.engine.examples import Examples
from verigrad.engine.intervals import Z_95
from verigrad.engine.loss import LossFn, nll
from verigrad.engine.mixture import Mixture, MixtureStream
from verigrad.engine.offline import OfflineRun, Row, run_task
from verigrad.engine.pack import pack
from verigrad.engine.policy import Policy, combine, find_device
from verigrad.engine.prompts import Prompter
from verigrad.engine.schema import Coefs, Metrics, PackedBatch, Rollout, ScoredGroup
from verigrad.engine.screen import Screen
from verigrad.engine.sft_loss import dft
from verigrad.engine.sft_rows import Encoder, Example
from verigrad.verifiers.base import Problem, Verdict

NO_TERMS = Coefs(kl=0.0, entropy=0.0)
LOSSES: Mapping[str, LossFn] = {"nll": nll, "dft": dft}
REPORTED = ("loss", "entropy", "grad_norm", "lr")
EVAL_BATCH = 64  # held-out examples read and packed at once


def sft(cfg: Config, screen: Screen) -> int:
    """Train to `train.num_steps`, resuming by itself; returns the exit status. See offline.run_task."""
    return run_task(cfg, screen, SftTask.open, summary)


@dataclasses.dataclass(slots=True)
class SftTask:
    """A policy and written answers; see offline.Task."""

    cfg: Config
    run: OfflineRun
    policy: Policy
    dataset: Mixture[Example]
    stream: MixtureStream[Example]
    fingerprints: Mapping[str, str]  # of model and prompts

    @classmethod
    def open(cls, cfg: Config, run: OfflineRun, screen: Screen) -> "SftTask":
        """Build every part."""
        find_device(cfg)
        sft_data.require_source(cfg.data, seed=cfg.train.seed)
        model = model_files.fetch(config_verbs.neutral(cfg), progress=screen.progress)  # its length is ours
        prompter = Prompter(model.tokenizer, cfg.prompts)
        encoder = Encoder(prompter, eos_ids=model.eos_ids, max_length=cfg.sft.max_length)
        dataset = sft_data.load(cfg.data, encoder, seed=cfg.train.seed)
        for note in dataset.notes():
            run.note(note)
        folder = model.folder if run.resume_from is None else str(run.resume_from[1])
        policy = Policy(cfg, folder, tokenizer=model.tokenizer, start_folder=model.folder)
        require_positions(policy.model.config, dataset.longest, setting="sft.max_length")
        stream = MixtureStream(dataset.train, dataset.parts, seed=cfg.train.seed, shuffle=cfg.data.shuffle)
        fingerprints = {"model": model.fingerprint, "prompts": prompter.template_hash}
        return cls(cfg, run, policy, dataset, stream, fingerprints)

    def facts(self) -> Mapping[str, Any]:
        """See offline.Task."""
        return {"data": self.dataset.fingerprint, **self.fingerprints}

    def train_step(self, step: int) -> Metrics:
        """One optimizer step over `sft.batch_size` examples, and what was measured."""
        with self.run.timed("data"):
            examples = self.stream.next_batch(self.cfg.sft.batch_size)
            batches = batches_of(examples, self.cfg.policy.tokens_per_batch)
            self.run.count_tokens(batches)
        with self.run.timed("train"):
            loss = LOSSES[self.cfg.sft.loss]
            done = self.policy.update(batches, loss, NO_TERMS, step=step, first=True)
        metrics = combine([done])
        return {
            **{name: metrics[name] for name in REPORTED},
            "skipped_updates": float(not done.applied),
            "num_tokens": float(sum(int(batch.loss_mask.sum()) for batch in batches)),
            **self.stream.metrics(),
        }

    def evaluate(self, step: int) -> Sequence[Row]:
        """Minus the log-likelihood of what is held out of each set, if anything is, whatever sft.loss."""
        rows: list[Row] = []
        for name, held_out in self.dataset.held_out.items() if self.cfg.eval.every else ():
            max_tokens = self.cfg.policy.tokens_per_batch
            losses, counts = held_out_losses(self.policy, held_out, max_tokens=max_tokens)
            loss, low, high = ratio_interval(losses, counts)
            rows.append(
                {
                    "step": step,
                    "data": name,
                    "num_examples": len(losses),
                    "num_tokens": sum(counts),
                    "loss": loss,
                    "loss_low": low,
                    "loss_high": high,
                }
            )
        return rows

    def tell_evaluation(self, row: Mapping[str, Any]) -> str:
        """See offline.Task."""
        return f"{row['data']} loss {_interval(row)} on {row['num_examples']} examples"

    def state(self) -> dict[str, Any]:
        """See offline.Task."""
        return {"policy": self.policy.state(), "examples": self.stream.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See offline.Task."""
        self.policy.load_state(state["policy"])
        self.stream.load_state(state["examples"])

    def save_model(self, folder: Path) -> None:
        """See offline.Task."""
        self.policy.save_model(folder)


def positions_of(config: Any) -> int | None:
    """The longest sequence a model was made for, where its config says so and nothing stretches it."""
    text = config.get_text_config()
    rope = getattr(text, "rope_scaling", None) or getattr(text, "rope_parameters", None) or {}
    num_positions = getattr(text, "max_position_embeddings", None)
    return num_positions if isinstance(num_positions, int) and "factor" not in rope else None


def require_positions(config: Any, longest: int, *, setting: str) -> None:
    """Refuse examples longer than the model's positions, where its config says how many there are."""
    num_positions = positions_of(config)
    if num_positions is not None and longest > num_positions:
        raise ConfigError(
            f"the longest example has {longest} tokens, more than the {num_positions} positions of "
            f"policy.model; set {setting} = {num_positions} and data.on_bad_row = 'skip'"
        )


def batches_of(examples: Sequence[Example], max_tokens: int) -> list[PackedBatch]:
    """Examples as the packed batches of one optimizer step, in which every learned token weighs the same."""
    groups = []
    for example in examples:
        length = len(example.token_ids)
        rollout = Rollout(
            token_ids=example.token_ids,
            loss_mask=example.loss_mask,
            logprobs=[0.0] * length,
            policy_versions=[-1] * length,
            text="",
            finish_reason="stop",
            seed=0,
        )
        groups.append(ScoredGroup(Problem("", ""), [rollout], [Verdict.right()], [0.0]))
    return pack(groups, token_mean, max_tokens=max_tokens)


# Held-out loss ---------------------------------------------------------------------------------------------


def held_out_losses(
    policy: Policy, examples: Examples[Example], *, max_tokens: int
) -> tuple[list[float], list[int]]:
    """(minus log-likelihood in nats, learned tokens) of each example, in no particular order."""
    losses: list[float] = []
    counts: list[int] = []
    for start in range(0, len(examples), EVAL_BATCH):
        for batch in batches_of(examples[start : start + EVAL_BATCH], max_tokens):
            logprobs = policy.logprobs(batch, temperature=1.0).double()
            for first, end in _spans(batch):
                losses.append(-float(logprobs[first:end].sum()))
                counts.append(int(batch.loss_mask[first:end].sum()))
    return losses, counts


def _spans(batch: PackedBatch) -> Iterator[tuple[int, int]]:
    bounds = batch.cu_seqlens.tolist()
    yield from itertools.pairwise(bounds)


def ratio_interval(losses: Sequence[float], counts: Sequence[int]) -> tuple[float, float, float]:
    """Mean loss per token with its 95% interval; examples, not tokens, are the units.

    The linearised ratio of two sums (Cochran, Sampling Techniques, 1977, section 6.5). NaN bounds for one
    example.
    """
    num, tokens = len(losses), sum(counts)
    mean = sum(losses) / tokens
    if num < 2:
        return mean, math.nan, math.nan
    squares = sum((loss - mean * count) ** 2 for loss, count in zip(losses, counts, strict=True))
    half = Z_95 * math.sqrt(squares * num / (num - 1)) / tokens
    return mean, mean - half, mean + half


# Screen ----------------------------------------------------------------------------------------------------


def summary(evals: Sequence[Row], metrics: Sequence[Row]) -> list[tuple[str, str]]:
    """The table at the end."""
    rows: list[tuple[str, str]] = []
    for data in dict.fromkeys(row["data"] for row in evals):
        of_set = [row for row in evals if row["data"] == data]
        before, after = of_set[0], of_set[-1]
        name = f"{data} loss"
        if before["step"] != after["step"]:
            rows.append((f"{name} before", _interval(before)))
        rows.append((f"{name} after", f"{_interval(after)}  on {after['num_examples']} examples"))
    if metrics:
        rows.append(("training loss", f"{_number(metrics[0]['loss'])} -> {_number(metrics[-1]['loss'])}"))
    return rows


def _interval(row: Mapping[str, Any]) -> str:
    return f"{_number(row['loss'])}  [{_number(row['loss_low'])}, {_number(row['loss_high'])}]"


def _number(value: float | None) -> str:
    """A number that may not have been finite, which is null on disk."""
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.4f}"
