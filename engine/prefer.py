"""`verigrad prefer RECIPE`: learning from preferences (DPO and its kin, KTO), on the loop's own policy.

rows or rollouts -> pairs -> the reference's log-probabilities, once -> packed batch -> loss -> optimizer step
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from verigrad.engine import config_verbs, lora, mixture, model_files, reference_cache
from verigrad.engine.config import Config
from verigrad.engine.intervals import mean_interval
from verigrad.engine.mixture import Mixture, MixtureStream
from verigrad.engine.model_files import ModelFiles
from verigrad.engine.offline import OfflineRun, Row, run_task
from verigrad.engine.policy import Policy, find_device
from verigrad.engine.preference_batch import batches_of, measure, reference_sums, update
from verigrad.engine.preference_catalogue import PREFERENCES
from verigrad.engine.preference_data import WithTwins, pair_form, require_source, single_form, sources
from verigrad.engine.preference_loss import AnswerLossFn, PairLossFn, build
from verigrad.engine.prompts import Prompter
from verigrad.engine.schema import Metrics
from verigrad.engine.screen import Screen
from verigrad.engine.sft import positions_of, ratio_interval, require_positions
from verigrad.engine.sft_rows import Encoder


def prefer(cfg: Config, screen: Screen) -> int:
    """Train to `train.num_steps`, resuming by itself; returns the exit status. See offline.run_task."""
    return run_task(cfg, screen, PreferTask.open, summary)


@dataclasses.dataclass(slots=True)
class PreferTask:
    """A policy, pairs or labelled answers, and what the reference said of them; see offline.Task."""

    cfg: Config
    run: OfflineRun
    policy: Policy
    loss: PairLossFn | AnswerLossFn
    dataset: Mixture[Any]
    held_out: Mapping[str, reference_cache.Source]  # by the name it is recorded under
    stream: MixtureStream[Any]
    fingerprints: Mapping[str, str]  # of model and prompts

    @classmethod
    def open(cls, cfg: Config, run: OfflineRun, screen: Screen) -> "PreferTask":
        """Build every part; what the loss needs of the reference is there when this returns."""
        find_device(cfg)
        require_source(cfg)
        model = model_files.fetch(config_verbs.neutral(cfg), progress=screen.progress)  # its length is ours
        prompter = Prompter(model.tokenizer, cfg.prompts)
        dataset = load(
            cfg,
            run,
            Encoder(
                prompter, eos_ids=model.eos_ids, max_length=cfg.prefer.max_length, setting="prefer.max_length"
            ),
        )
        folder = model.folder if run.resume_from is None else str(run.resume_from[1])
        policy = Policy(cfg, folder, tokenizer=model.tokenizer, start_folder=model.folder)
        require_positions(policy.model.config, dataset.longest, setting="prefer.max_length")
        most = min(cfg.prefer.max_length, positions_of(policy.model.config) or cfg.prefer.max_length)
        train = completed(cfg, dataset.train, max_length=most)
        held_out = {name: completed(cfg, one, max_length=most) for name, one in dataset.held_out.items()}
        if PREFERENCES[cfg.prefer.loss].reference:
            reference = Reference(cfg, run, screen, policy, model, prompter.template_hash)
            train = reference.attached(train, of="training")
            held_out = {name: reference.attached(one, of=name) for name, one in held_out.items()}
        stream = MixtureStream[Any](train, dataset.parts, seed=cfg.train.seed, shuffle=cfg.data.shuffle)
        fingerprints = {"model": model.fingerprint, "prompts": prompter.template_hash}
        return cls(cfg, run, policy, build(cfg), dataset, held_out, stream, fingerprints)

    def facts(self) -> Mapping[str, Any]:
        """See offline.Task."""
        return {"data": self.dataset.fingerprint, **self.fingerprints}

    def train_step(self, step: int) -> Metrics:
        """One optimizer step over `prefer.batch_size` pairs or answers, and what was measured."""
        with self.run.timed("data"):
            drawn = self.stream.next_batch(self.cfg.prefer.batch_size)
            batches = packed(self.cfg, drawn)
            self.run.count_tokens([batch.sequences.packed for batch in batches])
        with self.run.timed("train"):
            done, metrics = update(self.policy, batches, self.loss, step=step)
        return {**metrics, "skipped_updates": float(not done.applied), **self.stream.metrics()}

    def evaluate(self, step: int) -> Sequence[Row]:
        """Loss, accuracy and margin on what is held out of each set, if anything is; by prompts."""
        sets = self.held_out if self.cfg.eval.every else {}
        return [self._measured(step, name, held_out) for name, held_out in sets.items()]

    def _measured(self, step: int, name: str, held_out: reference_cache.Source) -> Row:
        drawn: list[Any] = [held_out[i] for i in range(len(held_out))]
        seen = measure(self.policy, packed(self.cfg, drawn), self.loss)
        row: Row = {"step": step, "data": name, "num_examples": len(drawn)}
        prompts = held_out.prompts.tolist()
        columns = {"loss": seen.values, "accuracy": seen.agrees, "margin": seen.margins}
        for column, values in columns.items():
            if values is not None:
                row |= interval(column, values, prompts)
        return row | {column: value for column, value in seen.metrics.items() if column not in row}

    def tell_evaluation(self, row: Mapping[str, Any]) -> str:
        """See offline.Task."""
        return (
            f"{row['data']} accuracy {_shown(row, 'accuracy')}, loss {row['loss']:.4f}, margin "
            f"{row['margin']:.3f} on {row['num_examples']} examples"
        )

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


def load(cfg: Config, run: OfflineRun, encoder: Encoder) -> Mixture[Any]:
    """The examples of the loss's kind, those held out apart; what was left out is noted."""
    form_of = pair_form if PREFERENCES[cfg.prefer.loss].paired else single_form
    open_rows = sources(cfg, opening=encoder.prompter.opening, tell=run.note)
    dataset: Mixture[Any] = mixture.load(cfg.data, form_of(encoder, open_rows), seed=cfg.train.seed)
    for note in dataset.notes():
        run.note(note)
    return dataset


def packed(cfg: Config, examples: Sequence[Any]) -> list[Any]:
    """Examples of one kind as batches within the token budget."""
    most, share = cfg.policy.tokens_per_batch, cfg.policy.share_prefixes
    return batches_of(examples, most, share_prefixes=share)


def completed(cfg: Config, source: Any, *, max_length: int) -> reference_cache.Source:
    """Examples with all that the loss needs of each but what the reference says."""
    return source if PREFERENCES[cfg.prefer.loss].paired else WithTwins(source, max_length=max_length)


# Reference -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class Reference:
    """The starting model, of which nothing but log-probabilities stays once this is let go."""

    cfg: Config
    run: OfflineRun
    screen: Screen
    policy: Policy
    model: ModelFiles
    template_hash: str
    start: Policy | None = None  # loaded only where the policy has moved and the cache was emptied

    def attached(self, source: reference_cache.Source, *, of: str) -> reference_cache.Source:
        """Examples with the reference's log-probabilities of each, from the cache where they are there."""
        words = reference_cache.tokenizer_key(self.model.folder)
        key = [self.model.fingerprint, words, self.template_hash, self.cfg.policy.dtype]
        with self.run.timed("reference"):
            found, num = reference_cache.attach(
                source, self._sums, of=of, key=key, progress=self.screen.progress
            )
        whence = f"computed for {num}" if num else "taken from the cache"
        self.run.note(f"log-probabilities of the reference for {len(found)} examples of {of}: {whence}")
        return found

    def _sums(self, drawn: Sequence[Any]) -> Sequence[tuple[float, float]]:
        """Two log-probabilities of each example under the starting model."""
        batches = packed(self.cfg, drawn)
        if self.policy.adapted:
            with lora.switched_off(self.policy.model):
                return reference_sums(self.policy, batches)
        if self.run.resume_from is None:  # no step was taken: the policy is the starting model
            return reference_sums(self.policy, batches)
        if self.start is None:
            folder, tokenizer = self.model.folder, self.model.tokenizer
            self.start = Policy(self.cfg, folder, tokenizer=tokenizer, start_folder=folder)
        return reference_sums(self.start, batches)


# Screen ----------------------------------------------------------------------------------------------------


def interval(name: str, values: Tensor, prompts: Sequence[int]) -> Row:
    """Mean of a column [E] with its 95% interval; `prompts` [E] tells the prompts, which are the units."""
    by_prompt: dict[int, list[float]] = {}
    for value, prompt in zip(values.tolist(), prompts, strict=True):
        by_prompt.setdefault(prompt, []).append(value)
    units = list(by_prompt.values())
    if name == "accuracy":
        mean, low, high = mean_interval(units)
    else:
        mean, low, high = ratio_interval([sum(unit) for unit in units], [len(unit) for unit in units])
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def summary(evals: Sequence[Row], metrics: Sequence[Row]) -> list[tuple[str, str]]:
    """The table at the end."""
    rows: list[tuple[str, str]] = []
    for data in dict.fromkeys(row["data"] for row in evals):
        of_set = [row for row in evals if row["data"] == data]
        before, after = of_set[0], of_set[-1]
        for name in ("accuracy", "loss"):
            title = f"{data} {name}"
            if before["step"] != after["step"]:
                rows.append((f"{title} before", _shown(before, name)))
            rows.append((f"{title} after", f"{_shown(after, name)}  on {after['num_examples']} examples"))
        if after.get("margin") is not None:
            rows.append((f"{data} margin", " -> ".join(_number(row["margin"]) for row in of_steps(of_set))))
    if metrics:
        for name in ("loss", "accuracy"):
            first, last = (_number(metrics[place][name]) for place in (0, -1))
            rows.append((f"training {name}", f"{first} -> {last}"))
    return rows


def of_steps(rows: Sequence[Row]) -> Sequence[Row]:
    """The first and the last evaluation, which may be one."""
    return [rows[0], rows[-1]] if rows[0]["step"] != rows[-1]["step"] else [rows[-1]]


def _shown(row: Mapping[str, Any], name: str) -> str:
    return f"{_number(row[name])}  [{_number(row[f'{name}_low'])}, {_number(row[f'{name}_high'])}]"


def _number(value: float | None) -> str:
    """A number that may not have been finite, which is null on disk."""
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.4f}"
