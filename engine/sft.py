"""`verigrad sft RECIPE`: supervised fine-tuning on completions, packed, on the loop's own policy.

rows -> examples -> packed batch -> minus log-likelihood of the learned tokens -> optimizer step -> record
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from verigrad.engine import config_verbs, model_files, sft_data
from verigrad.engine.aggregation import token_mean
from verigrad.engine.checkpoint import name_of
from verigrad.engine.config import Config, ConfigError
from verigrad.engine.interrupt import Interrupt
from verigrad.engine.intervals import Z_95
from verigrad.engine.loss import nll
from verigrad.engine.pack import pack
from verigrad.engine.policy import Policy, combine, find_device
from verigrad.engine.prompts import Prompter
from verigrad.engine.run import Run, RunError
from verigrad.engine.schema import Coefs, Metrics, PackedBatch, Rollout, ScoredGroup
from verigrad.engine.screen import Screen, relative
from verigrad.engine.sft_data import Examples, ExampleStream
from verigrad.engine.sft_rows import Encoder, Example
from verigrad.verifiers.base import Problem, Verdict

INTERRUPTED = 130
NO_TERMS = Coefs(kl=0.0, entropy=0.0)
REPORTED = ("loss", "entropy", "grad_norm", "lr")
EVAL_BATCH = 64  # held-out examples read and packed at once


@dataclass(slots=True)
class SftLoop:
    """The parts of a run, and the little besides the weights that changes from step to step."""

    policy: Policy
    stream: ExampleStream
    held_out: Examples | None
    held_out_name: str
    nonfinite_in_row: int = 0


class SftRun(Run):
    """A run folder whose evaluations are losses and whose tokens are read, not sampled."""

    def __enter__(self) -> "SftRun":
        return self

    def log_loss(self, row: Mapping[str, Any]) -> None:
        """Record a held-out loss in eval.jsonl."""
        self._append("eval.jsonl", row)
        self.trackers.log_eval(row)

    def count_tokens(self, batches: Sequence[PackedBatch]) -> None:
        """Count the tokens of this step, prompts included, for tokens_per_s."""
        self._num_tokens = sum(batch.input_ids.numel() for batch in batches)


def sft(cfg: Config, screen: Screen) -> int:
    """Train to `train.num_steps`, resuming from the newest whole checkpoint; returns the exit status.

    Killed at any moment and started again, a run records the same metrics as one that never was (all but
    times).
    """
    torch.manual_seed(cfg.train.seed)
    with SftRun(cfg) as run:
        tell(run, screen)
        if run.first_step > cfg.train.num_steps:
            screen.say(f"{cfg.run.folder} already holds all {cfg.train.num_steps} steps; nothing left to do")
            return show(run, screen)
        with Interrupt() as interrupt:
            loop = open_loop(cfg, run, screen)
            tell(run, screen)
            if run.first_step == 1:
                evaluate(loop, run, screen, cfg, step=0)
            for step in range(run.first_step, cfg.train.num_steps + 1):
                last = step == cfg.train.num_steps
                with run.timed("total"):
                    metrics = train_step(loop, run, cfg, step)
                show_step(run.log_step(step, metrics), screen, cfg)
                if cfg.eval.every and (step % cfg.eval.every == 0 or last):
                    evaluate(loop, run, screen, cfg, step=step)
                stopping = interrupt.asked and not last
                if stopping or last or step % cfg.run.save_every == 0:
                    with run.timed("save"):
                        saved = run.save(step, state_of(loop), loop.policy.save_model)
                tell(run, screen)
                if loop.nonfinite_in_row >= cfg.train.max_nonfinite_steps:
                    raise RunError(
                        f"{loop.nonfinite_in_row} steps in a row had a non-finite loss or gradient and were "
                        "skipped; start a new run with a lower optim.lr"
                    )
                if stopping:
                    done = "saved" if saved else "NOT saved, see above"
                    screen.say(f"stopped after step {step}, {done}; run the same command again to go on")
                    return INTERRUPTED
        if not saved:
            raise RunError(
                "the last checkpoint could not be written; free space, then run the same command again"
            )
        return show(run, screen)


def open_loop(cfg: Config, run: Run, screen: Screen) -> SftLoop:
    """Build every part, and take up the checkpoint if there is one."""
    find_device(cfg)
    with run.timed("start"):
        sft_data.require_source(cfg.data, seed=cfg.train.seed)
        model = model_files.fetch(config_verbs.neutral(cfg), progress=screen.progress)  # its length is ours
        prompter = Prompter(model.tokenizer, cfg.prompts)
        encoder = Encoder(prompter, eos_ids=model.eos_ids, max_length=cfg.sft.max_length)
        dataset = sft_data.load(cfg.data, encoder, seed=cfg.train.seed)
        if dataset.num_skipped:
            run.note(f"{dataset.num_skipped} malformed rows skipped, the first: {dataset.first_skipped}")
        if dataset.num_overlap:
            run.note(f"{dataset.num_overlap} rows left out: their prompt is held out")
        folder = model.folder if run.resume_from is None else str(run.resume_from[1])
        policy = Policy(cfg, folder, tokenizer=model.tokenizer, start_folder=model.folder)
        require_positions(policy.model.config, dataset.longest)
        stream = ExampleStream(dataset.train, seed=cfg.train.seed, shuffle=cfg.data.shuffle)
        loop = SftLoop(policy, stream, dataset.held_out if cfg.eval.every else None, dataset.held_out_name)
        if run.resume_from is not None:
            restore(loop, run.load_state())
            screen.say(f"resuming after step {run.resume_from[0]}")
    run.record_environment(data=dataset.fingerprint, model=model.fingerprint, prompts=prompter.template_hash)
    return loop


def require_positions(config: Any, longest: int) -> None:
    """Refuse examples longer than the model's positions, where its config says how many there are."""
    text = config.get_text_config()
    rope = getattr(text, "rope_scaling", None) or getattr(text, "rope_parameters", None) or {}
    num_positions = getattr(text, "max_position_embeddings", None)
    if isinstance(num_positions, int) and "factor" not in rope and longest > num_positions:
        raise ConfigError(
            f"the longest example has {longest} tokens, more than the {num_positions} positions of "
            f"policy.model; set sft.max_length = {num_positions} and data.on_bad_row = 'skip'"
        )


def train_step(loop: SftLoop, run: SftRun, cfg: Config, step: int) -> Metrics:
    """One optimizer step over `sft.batch_size` examples, and what was measured."""
    with run.timed("data"):
        batches = batches_of(loop.stream.next_batch(cfg.sft.batch_size), cfg.policy.tokens_per_batch)
        run.count_tokens(batches)
    with run.timed("train"):
        done = loop.policy.update(batches, nll, NO_TERMS, step=step, first=True)
    loop.nonfinite_in_row = 0 if done.applied else loop.nonfinite_in_row + 1
    metrics = combine([done])
    return {
        **{name: metrics[name] for name in REPORTED},
        "skipped_updates": float(not done.finite),
        "num_tokens": float(sum(int(batch.loss_mask.sum()) for batch in batches)),
        "epoch": loop.stream.epoch,
    }


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


def evaluate(loop: SftLoop, run: SftRun, screen: Screen, cfg: Config, *, step: int) -> None:
    """Measure the held-out loss, if anything is held out, and record it."""
    if loop.held_out is None:
        return
    with run.timed("eval"):
        losses, counts = held_out_losses(loop.policy, loop.held_out, max_tokens=cfg.policy.tokens_per_batch)
    loss, low, high = ratio_interval(losses, counts)
    row = {
        "step": step,
        "data": loop.held_out_name,
        "num_examples": len(losses),
        "num_tokens": sum(counts),
        "loss": loss,
        "loss_low": low,
        "loss_high": high,
    }
    run.log_loss(row)
    screen.say(f"step {step}: {loop.held_out_name} loss {_interval(row)} on {len(losses)} examples")


def held_out_losses(policy: Policy, examples: Examples, *, max_tokens: int) -> tuple[list[float], list[int]]:
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


# State and screen ------------------------------------------------------------------------------------------


def state_of(loop: SftLoop) -> dict[str, Any]:
    """What a checkpoint holds besides the weights."""
    return {
        "policy": loop.policy.state(),
        "examples": loop.stream.state(),
        "nonfinite_in_row": loop.nonfinite_in_row,
        "torch_rng": torch.get_rng_state(),
    }


def restore(loop: SftLoop, state: Mapping[str, Any]) -> None:
    """Take up `state_of`; the weights were loaded with the model."""
    loop.policy.load_state(state["policy"])
    loop.stream.load_state(state["examples"])
    loop.nonfinite_in_row = state["nonfinite_in_row"]
    torch.set_rng_state(state["torch_rng"])


def tell(run: Run, screen: Screen) -> None:
    """Show what the run has noted since the last look."""
    for note in run.take_notes():
        screen.say(f"note: {note}")


def show_step(row: Mapping[str, Any], screen: Screen, cfg: Config) -> None:
    """One step on the bar."""
    step, last = row["step"], cfg.train.num_steps
    skipped = "  SKIPPED a non-finite update" if row["skipped_updates"] else ""
    facts = f"loss {row['loss']:.4f}  epoch {row['epoch']:.2f}  {row['tokens_per_s']:,.0f} tok/s{skipped}"
    screen.progress(f"step {step}/{last}  {facts}", step / last)


def show(run: Run, screen: Screen) -> int:
    """Print the table at the end, and return exit status 0."""
    evals, metrics = run.evaluations(), run.metrics()
    rows: list[tuple[str, str]] = []
    if evals:
        before, after = evals[0], evals[-1]
        name = f"{after['data']} loss"
        if before["step"] != after["step"]:
            rows.append((f"{name} before", _interval(before)))
        rows.append((f"{name} after", f"{_interval(after)}  on {after['num_examples']} examples"))
    if metrics:
        rows.append(("training loss", f"{_number(metrics[0]['loss'])} -> {_number(metrics[-1]['loss'])}"))
        rows.append(("epochs", f"{metrics[-1]['epoch']:.2f}"))
    seconds = {k: v for k, v in run.total_seconds().items() if k != "total" and v >= 0.5}
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    rows.append(("where the time went", spent or "less than a second each"))
    newest = run.checkpoints / name_of(run.cfg.train.num_steps)
    rows += [("run folder", relative(run.folder)), ("model", relative(newest))]
    screen.summary(rows, title=f"{run.folder.name}: {len(metrics)} steps")
    return 0


def _interval(row: Mapping[str, Any]) -> str:
    return f"{_number(row['loss'])}  [{_number(row['loss_low'])}, {_number(row['loss_high'])}]"


def _number(value: float | None) -> str:
    """A number that may not have been finite, which is null on disk."""
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.4f}"
