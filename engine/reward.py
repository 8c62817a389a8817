"""`verigrad reward RECIPE`: reward models of answers or steps, ensembles of them, measured and audited.

rows -> comparisons or labelled steps -> packed batch -> rewards -> Bradley-Terry and kin -> optimizer step
"""

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verigrad.engine import config_verbs, model_files, reward_audit, reward_data
from verigrad.engine.config import Config
from verigrad.engine.mixture import MixtureStream
from verigrad.engine.model_files import ModelFiles
from verigrad.engine.offline import OfflineRun, Row, run_task
from verigrad.engine.policy import find_device
from verigrad.engine.reward_card import AUDIT, Card
from verigrad.engine.reward_data import Comparison
from verigrad.engine.reward_measure import Judged, comparison_row, steps_row
from verigrad.engine.reward_member import Member
from verigrad.engine.reward_model import AnyRewardModel, Ensemble, aggregated, of_steps, spread, standardised
from verigrad.engine.reward_sets import RewardData, read_sets
from verigrad.engine.reward_setup import (
    MOST_LOOKED_AT,
    agreement_of,
    card_of,
    folds_of,
    length_scale,
    member_folder,
    require_source,
    tell_agreement,
    with_scale,
)
from verigrad.engine.schema import Metrics
from verigrad.engine.screen import Screen
from verigrad.engine.sft import require_positions

OUT_OF_FOLD = "out_of_fold"
SEEDS_APART = 1_000_003  # between members' seeds


def reward(cfg: Config, screen: Screen) -> int:
    """Train to `train.num_steps`, resuming by itself; returns the exit status. See offline.run_task."""
    return run_task(cfg, screen, RewardTask.open, summary)


@dataclasses.dataclass(slots=True)
class RewardTask:
    """One reward model or several side by side; see offline.Task."""

    cfg: Config
    run: OfflineRun
    data: RewardData[Any]
    members: list[Member]
    streams: list[MixtureStream[Any]]
    folds: list[NDArray[np.int64]]  # by member: positions in data.train that it does not learn from
    card: Card
    agreement: Mapping[str, Any] | None
    fingerprints: Mapping[str, str]  # of model and prompts

    @classmethod
    def open(cls, cfg: Config, run: OfflineRun, screen: Screen) -> "RewardTask":
        """Build every part."""
        find_device(cfg)
        require_source(cfg)
        model = model_files.fetch(config_verbs.neutral(cfg), progress=screen.progress)  # its length is ours
        eos = model.tokenizer.eos_token_id
        card = card_of(cfg, eos_id=int(model.eos_ids[0] if eos is None else eos))
        members = open_members(cfg, run, model, card)
        encoder, steps = members[0].reader.encoder, cfg.reward.kind == "steps"
        form: Any = (reward_data.labelled_steps if steps else reward_data.comparisons)(cfg, encoder)
        data: RewardData[Any] = read_sets(cfg, form)
        agreement = agreement_of(cfg)
        for note in [*data.notes, *tell_agreement(agreement)]:
            run.note(note)
        folds = folds_of(cfg, data)
        if cfg.reward.length_control:
            for member in members:
                member.length_scale = length_scale(data)
        require_positions(members[0].model.config, data.longest, setting="reward.max_length")
        streams = [
            data.stream(
                np.setdiff1d(data.kept, fold),
                seed=cfg.train.seed + SEEDS_APART * number,
                shuffle=cfg.data.shuffle,
            )
            for number, fold in enumerate(folds)
        ]
        prints = {"model": model.fingerprint, "prompts": encoder.prompter.template_hash}
        return cls(cfg, run, data, members, streams, folds, card, agreement, prints)

    def facts(self) -> Mapping[str, Any]:
        """See offline.Task."""
        return {"data": self.data.fingerprint, **self.fingerprints}

    def train_step(self, step: int) -> Metrics:
        """One optimizer step of every member on `reward.batch_size` rows of its own; means over members."""
        with self.run.timed("data"):
            drawn = [stream.next_batch(self.cfg.reward.batch_size) for stream in self.streams]
            pairs = zip(self.members, drawn, strict=True)
            packed = [member.batches_of(examples) for member, examples in pairs]
            self.run.count_tokens([batch for batches in packed for batch in batches])
        with self.run.timed("train"):
            seen = [
                member.step(examples, batches, step=step)
                for member, examples, batches in zip(self.members, drawn, packed, strict=True)
            ]
        mean = {name: statistics.fmean(one[name] for one in seen) for name in seen[0]}
        skipped = max(one["skipped_updates"] for one in seen)
        extra = {"length_coef": length_coef(self.members)} if self.cfg.reward.length_control else {}
        if len(seen) > 1:
            extra |= {f"loss/member_{k}": one["loss"] for k, one in enumerate(seen, 1)}
        return {**mean, "skipped_updates": skipped, **extra, **self.streams[0].metrics()}

    # -- measuring -----------------------------------------------------------------------------------

    def evaluate(self, step: int) -> Sequence[Row]:
        """A row for each held-out set, and of members that are trained on folds one for these."""
        if not self.cfg.eval.every:
            return []
        self.calibrate()
        rows = []
        for name, examples in self.data.evals.items():
            drawn, prompts = [examples[i] for i in range(len(examples))], examples.prompts.tolist()
            rows.append({"step": step, "data": name, **self.measure(drawn, prompts, by=self.cfg.eval.by)})
        if any(len(fold) for fold in self.folds):
            rows.append({"step": step, "data": OUT_OF_FOLD, **self.measure_folds()})
        return rows

    def measure(self, examples: Sequence[Any], prompts: Sequence[int], *, by: str = "") -> Row:
        """What is said of some examples; of an ensemble by all members together, and of each its accuracy."""
        seen = [member.read(examples) for member in self.members]
        if self.cfg.reward.kind == "steps":
            scores = [each.tolist() for each in seen[0]]
            solutions = [of_steps(steps, self.cfg.reward.solution) for steps in scores]
            return steps_row(examples, scores, solutions, prompts, by=by)
        rewards = [[each.double().numpy() for each in one] for one in seen]  # [members][N][K]
        judged = list(self._judged(examples, prompts, rewards))
        row = comparison_row(judged, by=by)
        if len(self.members) > 1:
            for k, one in enumerate(rewards, 1):
                alone = [
                    dataclasses.replace(j, rewards=mine.tolist()) for j, mine in zip(judged, one, strict=True)
                ]
                row[f"accuracy_member_{k}"] = comparison_row(alone)["accuracy"]
            row["disagreement"] = statistics.fmean(
                spread(self._standardised(rewards, n, k))
                for n, example in enumerate(examples)
                for k in range(len(example.texts))
            )
        return row

    def _judged(
        self,
        examples: Sequence[Comparison],
        prompts: Sequence[int],
        rewards: Sequence[Sequence[Any]],
        members: Sequence[Member] = (),
    ) -> Iterator[Judged]:
        """What `members` (all, unless named) say together; of an ensemble each in its own scale.

        rewards [members][N][K]. Probabilities are of the rewards as they are, which is what was trained.
        """
        for n, (example, prompt) in enumerate(zip(examples, prompts, strict=True)):
            together = [
                rewards[0][n][k]
                if len(self.members) == 1
                else self._aggregated(self._standardised(rewards, n, k, members))
                for k in range(len(example.texts))
            ]
            probs = [
                statistics.fmean(1 / (1 + math.exp(min(700.0, one[n][j] - one[n][i]))) for one in rewards)
                for i, j in example.pairs
            ]
            yield Judged(example, prompt, [float(value) for value in together], probs)

    def _standardised(
        self, rewards: Sequence[Sequence[Any]], n: int, k: int, members: Sequence[Member] = ()
    ) -> list[float]:
        """Every member's reward of one answer, in its own standard deviations."""
        pairs = zip(rewards, members or self.members, strict=True)
        return [standardised(float(one[n][k]), member.reader.card) for one, member in pairs]

    def _aggregated(self, rewards: Sequence[float]) -> float:
        return aggregated(rewards, self.cfg.reward.aggregate, std_coef=self.cfg.reward.std_coef)

    def measure_folds(self) -> Row:
        """Every member on the fold it does not learn from, its rewards in its own standard deviations."""
        judged: list[Judged] = []
        for member, fold in zip(self.members, self.folds, strict=True):
            some, _ = self.data.subset(fold[:MOST_LOOKED_AT])
            drawn = [some[i] for i in range(len(some))]
            rewards = [[each.double().numpy() for each in member.read(drawn)]]
            judged += self._judged(drawn, some.prompts.tolist(), rewards, [member])
        return comparison_row(judged)

    def calibrate(self) -> None:
        """Take the mean and standard deviation of rewards as they are now, of each member and of all."""
        examples, _ = self.looked_at()
        seen = [member.read(examples) for member in self.members]
        for member, one in zip(self.members, seen, strict=True):
            card = member.reader.card
            if card.kind == "steps":
                values = [of_steps(each.tolist(), card.solution) for each in one]
            else:
                values = [reward for each in one for reward in each.tolist()]
            member.reader.card = with_scale(card, values)
        if len(self.members) > 1:
            together = [
                self._aggregated(self._standardised(seen, n, k))
                for n in range(len(examples))
                for k in range(len(examples[n].texts))
            ]
            self.card = with_scale(self.card, together)
        else:
            self.card = self.members[0].reader.card

    def looked_at(self) -> tuple[list[Any], list[int]]:
        """Examples of the first held-out set (without one, of those learned from), and their prompts."""
        source: Any = next(iter(self.data.evals.values()), None)
        if source is None:
            source, _ = self.data.subset(self.data.kept)
        num = min(len(source), MOST_LOOKED_AT)
        return [source[i] for i in range(num)], source.prompts[:num].tolist()

    def model(self) -> AnyRewardModel:
        """What is trained, as reward_model.load would give it."""
        if len(self.members) == 1:
            return self.members[0].reader
        return Ensemble([member.reader for member in self.members], self.card)  # type: ignore[misc]

    def audit(self) -> dict[str, Any]:
        """What audit.json says; see reward_audit.report."""
        examples, prompts = self.looked_at()
        for member in self.members:
            member.model.eval()
        asked, answers = reward_audit.best_answers(examples, separator=self.card.separator)
        separator = self.card.separator if self.cfg.reward.kind == "steps" else " "
        probes = reward_audit.probe(self.model(), asked, answers, separator=separator)
        for member in self.members:
            member.model.train()
        return reward_audit.report(
            self.measure(examples, prompts),
            probes,
            max_length_corr=self.cfg.reward.max_length_corr,
            agreement=self.agreement,
        )

    # -- screen and disk -----------------------------------------------------------------------------

    def tell_evaluation(self, row: Mapping[str, Any]) -> str:
        """See offline.Task."""
        return f"{row['data']} accuracy {_interval(row)} on {row['num_rows']} rows, {_lean(row)}"

    def state(self) -> dict[str, Any]:
        """See offline.Task."""
        return {
            "members": [member.state() for member in self.members],
            "examples": [stream.state() for stream in self.streams],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See offline.Task."""
        for member, theirs in zip(self.members, state["members"], strict=True):
            member.load_state(theirs)
        for stream, theirs in zip(self.streams, state["examples"], strict=True):
            stream.load_state(theirs)

    def save_model(self, folder: Path) -> None:
        """Weights, reward.json and audit.json; of an ensemble a folder for each member."""
        self.calibrate()
        for number, member in enumerate(self.members):
            member.save(member_folder(folder, self.cfg, number), member.reader.card)
        self.card.save(folder)
        found = self.audit()
        reward_audit.save(found, folder)
        if found["refused"]:
            self.run.note(f"audit: REFUSED, {found['reason']}; see {AUDIT} beside the weights")
        for finding in found["findings"]:
            self.run.note(f"audit: {finding}")


def length_coef(members: Sequence[Member]) -> float:
    """What a token more adds to the logit of being preferred, by length alone; a mean over members."""
    return statistics.fmean(float(one.length.detach()) / one.length_scale for one in members)


def open_members(cfg: Config, run: OfflineRun, model: ModelFiles, card: Card) -> list[Member]:
    """Every member with its weights, new or resumed; their heads come from seeds of their own."""
    members = []
    one = card if card.kind == "steps" else dataclasses.replace(card, kind="pairs", members=1)
    for number in range(cfg.reward.members):
        resumed = None if run.resume_from is None else member_folder(run.resume_from[1], cfg, number)
        seed = cfg.train.seed + SEEDS_APART * number
        members.append(Member(cfg, model.folder, resumed, tokenizer=model.tokenizer, card=one, seed=seed))
    return members


# Screen ----------------------------------------------------------------------------------------------------


def summary(evals: Sequence[Row], metrics: Sequence[Row]) -> list[tuple[str, str]]:
    """The table at the end."""
    rows: list[tuple[str, str]] = []
    for name in dict.fromkeys(row["data"] for row in evals):
        of_set = [row for row in evals if row["data"] == name]
        before, after = of_set[0], of_set[-1]
        if before["step"] != after["step"]:
            rows.append((f"{name} accuracy before", _interval(before)))
        rows.append((f"{name} accuracy after", f"{_interval(after)}  on {after['num_rows']} rows"))
        rows.append((f"{name} calibration", f"ECE {_number(after['ece'])}, loss {_number(after['loss'])}"))
        rows.append((f"{name} length", _lean(after)))
        for category, one in after.get("by", {}).items():
            rows.append((f"  {category}", f"{_interval(one)}  on {one['num_rows']} rows"))
    if metrics:
        rows.append(("training loss", f"{_number(metrics[0]['loss'])} -> {_number(metrics[-1]['loss'])}"))
    return rows


def _interval(row: Mapping[str, Any]) -> str:
    ends = f"[{_number(row['accuracy_low'])}, {_number(row['accuracy_high'])}]"
    return f"{_number(row['accuracy'])}  {ends}"


def _lean(row: Mapping[str, Any]) -> str:
    """The correlation with length that the audit goes by, for people."""
    known = {name: value for name, value in row.items() if value is not None}
    corr, where = reward_audit.leaning({"length_corr_equal": math.nan, **known})
    return f"reward against length {corr:+.2f} {where}" if where else "reward against length unknown"


def _number(value: float | None) -> str:
    """A number that may not have been finite, which is null on disk."""
    return "undefined" if value is None or not math.isfinite(value) else f"{value:.4f}"
