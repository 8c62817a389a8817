"""`verigrad sample RECIPE`: rejection sampling; what the verifier accepts becomes rows for `verigrad sft`.

    problem -> prompt -> rollouts -> verdicts -> the accepted, as text that gives the same tokens again

Problems are sampled in chunks of `rollout.groups_per_step`. A chunk is done when its row of metrics.jsonl is
on disk, after its rollouts and its samples; killed at any moment, the same command goes on after it.
"""

import json
import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from verigrad.engine import data, model_files
from verigrad.engine.assembly import open_sampler
from verigrad.engine.checkpoint import name_of, sync_to_disk
from verigrad.engine.config import Config, ConfigError
from verigrad.engine.data import Problems
from verigrad.engine.interrupt import Interrupt
from verigrad.engine.policy import find_device
from verigrad.engine.prompts import Prompter
from verigrad.engine.rollout import Sampler, SamplingParams
from verigrad.engine.run import Run, RunError
from verigrad.engine.schema import Metrics, Rollout, VerifiedGroup
from verigrad.engine.scoring import Scorer
from verigrad.engine.screen import Screen, relative
from verigrad.engine.sft_rows import Encoder
from verigrad.verifiers.base import Problem

INTERRUPTED = 130
SAMPLES = "samples.jsonl"
PARTS = "samples"  # the rows of each chunk, until all are there
COUNTED = {
    "accepted": "",
    "solved": "",
    "truncated": "cut off by rollout.max_tokens",
    "retokenised": "whose text gives other tokens than were sampled",
    "duplicate": "equal to one that is kept",
}
"""What is counted in a chunk -> what it means where an accepted rollout is left out."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What is kept of one chunk, and what was seen on the way."""

    rows: Sequence[Mapping[str, Any]]  # of samples.jsonl
    counts: Mapping[str, int]


class SampleRun(Run):
    """A run folder whose steps are chunks; a chunk that is done needs no checkpoint."""

    def __enter__(self) -> "SampleRun":
        return self

    def _newest_whole(self) -> tuple[int, Path] | None:
        done = 0
        for row in self.metrics():
            part = self._part(done + 1)
            if row["step"] != done + 1 or not (part.is_file() or self.samples.is_file()):
                break
            done += 1
        return (done, self.folder) if done else None

    @property
    def samples(self) -> Path:
        """The rows of all chunks."""
        return self.folder / SAMPLES

    def _part(self, step: int) -> Path:
        return self.folder / PARTS / f"{name_of(step)}.jsonl"

    def write_part(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record the rows of a chunk; they are on disk before this returns."""
        (self.folder / PARTS).mkdir(exist_ok=True)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with self._writing(f"{PARTS}/{name_of(step)}.jsonl") as path:
            half = path.with_suffix(".half")
            half.write_text(text)
            sync_to_disk(half)
            half.rename(path)

    def join_parts(self, num_chunks: int) -> None:
        """All chunks' rows as samples.jsonl, which is there whole or not at all."""
        text = "".join(self._part(k).read_text() for k in range(1, num_chunks + 1))
        if not text:
            raise RunError(
                f"nothing was kept: of all that was sampled, see {self.folder}/rollouts, the verifier "
                f"accepted no completion that can be learned from; remove {self.folder} and try a better "
                "model, more sample.num_samples, longer rollout.max_tokens or a lower sample.min_reward"
            )
        self._write(SAMPLES, text)
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Parts:
    """What samples, judges and keeps."""

    sampler: Sampler
    scorer: Scorer
    encoder: Encoder
    problems: Problems
    order: Sequence[int]  # positions of the problems to sample


def sample(cfg: Config, screen: Screen) -> int:
    """Sample every problem asked for, going on where an earlier start ended; returns the exit status."""
    torch.manual_seed(cfg.train.seed)
    with SampleRun(cfg) as run:
        tell(run, screen)
        if run.samples.is_file():
            screen.say(f"{relative(run.samples)} is already there; nothing left to do")
            return show(run, screen)
        size = cfg.rollout.groups_per_step
        with open_parts(cfg, run, screen) as parts, Interrupt() as interrupt:
            tell(run, screen)
            num_chunks = -(-len(parts.order) // size)
            if run.first_step > 1:
                screen.say(f"resuming after chunk {run.first_step - 1} of {num_chunks}")
            for step in range(run.first_step, num_chunks + 1):
                chunk = [parts.problems[k] for k in parts.order[(step - 1) * size : step * size]]
                with run.timed("total"):
                    metrics = sample_chunk(parts, run, cfg, chunk, step)
                show_chunk(run.log_step(step, metrics), screen, num_chunks)
                tell(run, screen)
                if interrupt.asked and step < num_chunks:
                    screen.say(f"stopped after chunk {step}; run the same command again to go on")
                    return INTERRUPTED
        run.join_parts(num_chunks)
        return show(run, screen)


@contextmanager
def open_parts(cfg: Config, run: Run, screen: Screen) -> Iterator[Parts]:
    """Build every part; what is cheap to get wrong is looked at before a model is made or fetched."""
    find_device(cfg)
    with Scorer(cfg, cfg.verifier.name, cfg.verifier.options, setting="verifier.name") as scorer:
        with run.timed("start"):
            scorer.require_fit(data.first_problem(cfg.data, seed=cfg.train.seed))
            model = model_files.fetch(cfg, progress=screen.progress)
            prompter = Prompter(model.tokenizer, cfg.prompts)
            problems = problems_of(cfg, run, prompter)
        with open_sampler(cfg, model.folder, model, prompter, run) as sampler:
            sampler.policy_version = 0
            run.judged_by = {"": scorer.identity}
            run.record_environment(
                data=problems.fingerprint, model=model.fingerprint, prompts=prompter.template_hash
            )
            encoder = Encoder(prompter, eos_ids=model.eos_ids, max_length=sys.maxsize)
            yield Parts(sampler, scorer, encoder, problems, chosen(cfg, problems))
        run.note(f"verifier health: {json.dumps(scorer.health())}")


def problems_of(cfg: Config, run: Run, prompter: Prompter) -> Problems:
    """The problems that are not held out."""
    accept = prompter.refusal_above(cfg.rollout.max_prompt_tokens)
    dataset = data.load(cfg.data, seed=cfg.train.seed, accept=accept)
    if dataset.num_skipped:
        run.note(f"{dataset.num_skipped} malformed rows skipped, the first: {dataset.first_skipped}")
    if num_held_out := sum(len(problems) for problems in dataset.evals.values()):
        run.note(f"{num_held_out} held-out problems (data.num_eval, data.eval_path) are not sampled")
    wanted = cfg.sample.num_problems
    if wanted > len(dataset.train):
        raise ConfigError(
            f"sample.num_problems = {wanted}, but {cfg.data.path} has {len(dataset.train)} problems that are "
            "not held out; lower it, or 0 for all"
        )
    return dataset.train


def chosen(cfg: Config, problems: Problems) -> list[int]:
    """Positions of the problems to sample, in the order in which training would draw them."""
    stream = np.arange(len(problems))
    if cfg.data.shuffle:
        stream = np.random.default_rng([cfg.train.seed, 0]).permutation(stream)
    return [int(position) for position in stream[: cfg.sample.num_problems or len(problems)]]


def sample_chunk(
    parts: Parts, run: SampleRun, cfg: Config, problems: Sequence[Problem], step: int
) -> Metrics:
    """Sample, judge and record one chunk, and what was measured. Its rollouts are on disk before its rows."""
    params = SamplingParams(cfg.rollout.temperature, cfg.rollout.max_tokens, tuple(cfg.rollout.stop))
    seed = (cfg.train.seed, "sample", step)
    with run.timed("rollout"):
        arriving = parts.sampler.sample(problems, params, group_size=cfg.sample.num_samples, seed=seed)
        pending = parts.scorer.submit(arriving)
    with run.timed("verify"):
        groups = parts.scorer.wait(pending)
    run.log_rollouts(step, groups, {})
    parts.scorer.require_decided(groups)
    kept = keep(cfg, parts.encoder, groups)
    run.write_part(step, kept.rows)
    return measured(groups, kept) | parts.scorer.take_health()


def keep(cfg: Config, encoder: Encoder, groups: Sequence[VerifiedGroup]) -> Chunk:
    """The rows of a chunk's accepted rollouts, at most `sample.keep_per_problem` of each problem.

    Rollouts are looked at in the order of their seeds, which knows nothing of their length or of which was
    done first; with sample.pick = "best" by their reward, equal ones in that order. Left out, and counted: a
    truncated one, which has no end to learn; one whose text gives other tokens than were sampled, special
    tokens in its middle included; one like another that is kept.
    """
    rows = []
    counts = Counter[str]()
    if cfg.sample.keep == "all":
        return keep_all(cfg, encoder, groups)
    for group in groups:
        texts: list[str] = []
        judged = list(zip(group.rollouts, group.verdicts, strict=True))
        if cfg.sample.pick == "best":
            judged.sort(key=lambda one: -math.inf if one[1].reward is None else one[1].reward, reverse=True)
        for rollout, verdict in judged:
            if verdict.reward is None or verdict.reward < cfg.sample.min_reward:
                continue
            counts["accepted"] += 1
            text = None if rollout.truncated else completion_of(rollout, encoder)
            if text is None:
                counts["truncated" if rollout.truncated else "retokenised"] += 1
            elif text in texts:
                counts["duplicate"] += 1
            elif len(texts) < cfg.sample.keep_per_problem:
                texts.append(text)
                rows.append(row_of(group.problem, text, verdict.reward))
        counts["solved"] += bool(texts)
    return Chunk(rows, counts)


def keep_all(cfg: Config, encoder: Encoder, groups: Sequence[VerifiedGroup]) -> Chunk:
    """A row for every different answer that says anything, whatever the verifier made of it, cut off or not.

    For labels and rewards, which read text; `verigrad sft` should not learn from rows that are `truncated`.
    """
    rows = []
    counts = Counter[str]()
    for group in groups:
        texts: list[str] = []
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            counts["accepted"] += verdict.reward is not None and verdict.reward >= cfg.sample.min_reward
            text = text_of(rollout, encoder)
            if not text.strip() or text in texts:
                continue
            texts.append(text)
            rows.append({**row_of(group.problem, text, verdict.reward), "truncated": rollout.truncated})
        counts["solved"] += bool(texts)
    return Chunk(rows, counts)


def text_of(rollout: Rollout, encoder: Encoder) -> str:
    """A rollout's completion as text without its end-of-sequence token."""
    sampled = [token for token, own in zip(rollout.token_ids, rollout.loss_mask, strict=True) if own]
    body = sampled[:-1] if sampled and sampled[-1] in encoder.eos_ids else sampled
    return encoder.prompter.text_of(body).removeprefix(encoder.prompter.opening)


def completion_of(rollout: Rollout, encoder: Encoder) -> str | None:
    """A rollout's completion as text without its end-of-sequence token; None where that text, as
    `verigrad sft` encodes it, gives other tokens than were sampled."""
    sampled = [token for token, own in zip(rollout.token_ids, rollout.loss_mask, strict=True) if own]
    body = sampled[:-1] if sampled and sampled[-1] in encoder.eos_ids else sampled
    text = encoder.prompter.text_of(body).removeprefix(encoder.prompter.opening)
    if not text.strip() or encoder.completion_ids(text) != [*body, encoder.eos_id]:
        return None
    return text


def row_of(problem: Problem, text: str, reward: float | None) -> dict[str, Any]:
    """A row of samples.jsonl; template, system message and prefill are put around its prompt by [prompts]."""
    prompt = problem.prompt if isinstance(problem.prompt, str) else [dict(m) for m in problem.prompt]
    return {"prompt": prompt, "completion": text, "problem_id": problem.id, "reward": reward}


def measured(groups: Sequence[VerifiedGroup], chunk: Chunk) -> Metrics:
    """A row of metrics.jsonl; `reward` and `accepted_frac` are over decided verdicts."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [reward for group in groups for reward in group.correctness]
    counts = {name: float(chunk.counts.get(name, 0)) for name in COUNTED}
    return {
        "reward": sum(rewards) / len(rewards) if rewards else math.nan,
        "num_problems": float(len(groups)),
        "num_sampled": float(len(rollouts)),
        "num_decided": float(len(rewards)),
        "num_accepted": counts["accepted"],
        "num_kept": float(len(chunk.rows)),
        "num_problems_kept": counts["solved"],
        "num_accepted_truncated": counts["truncated"],
        "num_accepted_retokenised": counts["retokenised"],
        "num_accepted_duplicate": counts["duplicate"],
        "accepted_frac": counts["accepted"] / len(rewards) if rewards else math.nan,
        "undecided_frac": 1 - len(rewards) / len(rollouts),
        "truncated_frac": sum(rollout.truncated for rollout in rollouts) / len(rollouts),
        "completion_tokens_mean": sum(r.num_completion_tokens for r in rollouts) / len(rollouts),
    }


# Screen ----------------------------------------------------------------------------------------------------


def tell(run: Run, screen: Screen) -> None:
    """Show what the run has noted since the last look."""
    for note in run.take_notes():
        screen.say(f"note: {note}")


def show_chunk(row: Mapping[str, Any], screen: Screen, num_chunks: int) -> None:
    """One chunk on the bar."""
    accepted = f"accepted {row['num_accepted']:.0f} of {row['num_sampled']:.0f}"
    undecided = f"  UNDECIDED {row['undecided_frac']:.0%}" if row["undecided_frac"] else ""
    facts = f"{accepted}  kept {row['num_kept']:.0f}{undecided}  {row['tokens_per_s']:,.0f} tok/s"
    screen.progress(f"chunk {row['step']}/{num_chunks}  {facts}", row["step"] / num_chunks)


def show(run: SampleRun, screen: Screen) -> int:
    """Print the table at the end, and return exit status 0."""
    metrics = run.metrics()

    def total(name: str) -> int:
        return int(sum(row[name] for row in metrics))

    sampled, decided, accepted = total("num_sampled"), total("num_decided"), total("num_accepted")
    rows = [
        ("completions sampled", f"{sampled:,} for {total('num_problems'):,} problems"),
        (
            "accepted",
            f"{accepted:,} of {decided:,} decided ({accepted / max(1, decided):.1%})",
        ),
    ]
    if sampled > decided:
        rows.append(
            ("undecided verdicts", f"{(sampled - decided) / sampled:.1%} of all; see `reason` in rollouts/")
        )
    for name, means in COUNTED.items():
        if means and (num := total(f"num_accepted_{name}")):
            rows.append(("accepted, left out", f"{num:,} {means}"))
    rows += [
        ("kept", f"{total('num_kept'):,} for {total('num_problems_kept'):,} problems"),
        ("samples", relative(run.samples)),
    ]
    screen.summary(rows, title=f"{run.folder.name}: {len(metrics)} chunks")
    return 0
