"""Each step's groups -> monitor/... metrics, and a run that ends where a sign of reward hacking stays.

The signs are measured in monitor_signs.py; here they are held against the first steps, against a second
reward and against the limits of [monitor]. docs/monitor.md says how to read them.
"""

import dataclasses
import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verigrad.engine import monitor_signs, tripped
from verigrad.engine.algorithm_settings import holds_reference
from verigrad.engine.config import Config
from verigrad.engine.monitor_signs import Seen
from verigrad.engine.run import Run
from verigrad.engine.schema import Metrics, RolloutGroup, VerifiedGroup
from verigrad.engine.scoring import Pending, Scorer
from verigrad.engine.tripped import Guilty, Trip, Tripped

FIRST = 3  # steps, or looks of the second reward, that later ones are held against
MAX_GUILTY = 32  # rollouts saved when a limit trips
LIMITS: Mapping[str, str] = {
    "proxy_gap": "max_proxy_gap",
    "second_drop": "max_second_drop",
    "tamper_frac": "max_tamper_frac",
    "answer_share": "max_answer_share",
    "repetition": "max_repetition",
    "length_corr": "max_length_corr",
    "disagreement_ratio": "max_disagreement_ratio",
    "kl_ref": "max_kl",
    "entropy_frac": "min_entropy_frac",
}
"""Sign -> its setting in [monitor]; where several trip at once, the first of these is named."""


@dataclass(frozen=True, slots=True)
class Row:
    """How long a sign has been beyond its limit: times it was measured in a row, and the first step."""

    num: int = 0
    since: int = 0


@dataclass(slots=True)
class Look:
    """One step as the monitor sees it."""

    step: int
    seen: list[Seen]
    answer: monitor_signs.Answer = ""  # the most common one
    second: dict[tuple[int, int], float] = dataclasses.field(default_factory=dict)  # by group and index


class Monitor:
    """Watches one run; `trip` is what ends it."""

    def __init__(self, cfg: Config, run: Run, *, runs_code: bool, second: Scorer | None) -> None:
        """`runs_code`: whether the verifier that pays runs the attempts; `second` is monitor.verifier's."""
        self.limits, self.seed, self.run, self.second = cfg.monitor, cfg.train.seed, run, second
        self.runs_code = runs_code
        self.has_reference = holds_reference(cfg.algorithm)
        self.trip: Trip | None = None
        self._drawn: dict[int, list[int]] = {}
        self._pending: list[Pending] | None = None
        self._blind = False  # whether the second reward could not be had at the last look
        self._rows: dict[str, Row] = {}
        self._first: dict[str, list[float]] = {"entropy": [], "disagreement": [], "gap": []}
        self._latest: list[tuple[float, float]] = []  # (reward, second reward) of the last looks
        self._best: tuple[float, float] | None = None  # the same as means of looks, where the second was best

    # -- one step ------------------------------------------------------------------------------------

    def look(self, step: int, groups: Sequence[VerifiedGroup]) -> None:
        """Hand a seeded subset of the step to the second verifier, which judges it during training."""
        self._pending = None
        if self.second is None or step % self.limits.every:
            return
        self._drawn = self._draw(step, groups)
        asked = {at: [groups[at].rollouts[index] for index in indices] for at, indices in self._drawn.items()}
        self._pending = self.second.submit(
            (at, RolloutGroup(groups[at].problem, rollouts)) for at, rollouts in asked.items()
        )

    def _draw(self, step: int, groups: Sequence[VerifiedGroup]) -> dict[int, list[int]]:
        """Position -> indices of rollouts to judge again; whole groups where the second judges groups."""
        assert self.second is not None
        draw = random.Random(f"monitor {self.seed} {step}")
        whole = self.second.pool.verifier.group
        able = {
            position: [
                index
                for index, (rollout, verdict) in enumerate(zip(group.rollouts, group.verdicts, strict=True))
                if rollout.settled is None and (whole or verdict.decided)
            ]
            for position, group in enumerate(groups)
        }
        chosen: dict[int, list[int]] = {}
        if whole:
            for position in draw.sample(list(able), len(able)):
                if sum(map(len, chosen.values())) < self.limits.num_rollouts:
                    chosen[position] = able[position]
        else:
            places = [(position, index) for position, indices in able.items() for index in indices]
            for position, index in draw.sample(places, min(len(places), self.limits.num_rollouts)):
                chosen.setdefault(position, []).append(index)
        return {position: sorted(indices) for position, indices in sorted(chosen.items()) if indices}

    def observe(self, step: int, groups: Sequence[VerifiedGroup], metrics: Mapping[str, float]) -> Metrics:
        """monitor/... of a step that was trained on, whose own metrics are given; sets `trip`."""
        if not self.limits.enabled:
            return {}
        with self.run.timed("monitor"):
            look = Look(step, monitor_signs.look_at(groups, runs_code=self.runs_code))
            values = self._signs(look, metrics) | self._second_look(look)
            self._compare(look, values)
        return {f"monitor/{name}": value for name, value in values.items()}

    def _signs(self, look: Look, metrics: Mapping[str, float]) -> Metrics:
        seen = look.seen
        share, look.answer = monitor_signs.answer_share(seen)
        tampering, rewarded = monitor_signs.tamper_fracs(seen)
        values = {
            "length_corr": monitor_signs.length_corr(seen),
            "repetition": monitor_signs.repetition(seen),
            "answer_share": share,
            "opening_share": monitor_signs.opening_share(seen),
            "tamper_frac": tampering,
            "tamper_paid_frac": rewarded,
            "entropy_frac": self._relative("entropy", metrics.get("entropy", math.nan)),
        }
        if self.has_reference:
            values["kl_ref"] = metrics.get("kl_ref", math.nan)
        if math.isfinite(disagreement := monitor_signs.disagreement(seen)):
            values["disagreement"] = disagreement
            values["disagreement_ratio"] = self._relative("disagreement", disagreement)
        return values

    def _relative(self, name: str, value: float) -> float:
        """A value as a multiple of its mean over the first steps that had one."""
        first = self._first[name]
        if math.isfinite(value) and len(first) < FIRST:
            first.append(value)
        base = statistics.fmean(first) if first else 0.0
        return value / base if base > 0 else math.nan

    # -- the second reward ---------------------------------------------------------------------------

    def _second_look(self, look: Look) -> Metrics:
        """What the second verifier says of the drawn rollouts, against what was paid for the same ones."""
        if self.second is None or self._pending is None:
            return {}
        judged = self.second.wait(self._pending)
        self._pending = None
        self.second.take_health()  # of these checks, so that an evaluation by the same judge counts its own
        paid = {(row.group, row.index): row.reward for row in look.seen if row.reward is not None}
        verdicts = [
            ((position, index), verdict)
            for (position, indices), group in zip(self._drawn.items(), judged, strict=True)
            for index, verdict in zip(indices, group.verdicts, strict=True)
            if (position, index) in paid
        ]
        look.second = {place: verdict.reward for place, verdict in verdicts if verdict.reward is not None}
        undecided = [verdict for _, verdict in verdicts if not verdict.decided]
        values = {"second_undecided_frac": len(undecided) / len(verdicts) if verdicts else 0.0}
        if 2 * len(look.second) < len(verdicts) or not look.second:
            why = (
                f"the first reason was: {undecided[0].reason or 'none given'}" if undecided else "none drawn"
            )
            self._tell_blind(f"{len(undecided)} of {len(verdicts)} undecided; {why}")
            return values
        self._blind = False
        first = statistics.fmean(paid[place] for place in look.second)
        second = statistics.fmean(look.second.values())
        return values | self._against(first, second)

    def _tell_blind(self, why: str) -> None:
        """A second reward that cannot be had is worth a line, once."""
        if not self._blind:
            who = f"monitor.verifier = {self.limits.verifier!r}"
            self.run.note(f"{who} cannot judge ({why}); its signs are not watched until it can")
        self._blind = True

    def _against(self, first: float, second: float) -> Metrics:
        """Both means over the same rollouts -> how far they have come apart since the first looks."""
        gaps = self._first["gap"]
        if len(gaps) < FIRST:
            gaps.append(first - second)
        gap = first - second - statistics.fmean(gaps) if len(gaps) == FIRST else math.nan
        self._latest = [*self._latest, (first, second)][-FIRST:]
        drop = math.nan
        if len(self._latest) == FIRST:
            lately = tuple(statistics.fmean(values) for values in zip(*self._latest, strict=True))
            if self._best is None or lately[1] > self._best[1]:
                self._best = (lately[0], lately[1])
            drop = self._best[1] - lately[1] if lately[0] >= self._best[0] else 0.0
        return {"first_reward": first, "second_reward": second, "proxy_gap": gap, "second_drop": drop}

    # -- limits --------------------------------------------------------------------------------------

    def _compare(self, look: Look, values: Metrics) -> None:
        """Count the signs beyond their limits, and trip on one that has been for `patience` in a row."""
        for sign, setting in LIMITS.items():
            limit, value = getattr(self.limits, setting), values.get(sign, math.nan)
            if limit is None:
                self._rows.pop(sign, None)
            elif math.isfinite(value):
                beyond = value < limit if setting.startswith("min_") else value > limit
                before = self._rows.pop(sign, Row())
                if beyond:
                    self._rows[sign] = Row(before.num + 1, before.since or look.step)
        measured = [sign for sign in LIMITS if math.isfinite(values.get(sign, math.nan))]
        over = [sign for sign in measured if sign in self._rows and self._is_over(sign)]
        if over:
            self._trip(look, values, over)
        good_before = min((row.since for row in self._rows.values()), default=None)
        self.run.keep_before = good_before if self.limits.action == "rollback" else None

    def _is_over(self, sign: str) -> bool:
        num, patience = self._rows[sign].num, self.limits.patience
        return num == patience if self.limits.action == "warn" else num >= patience  # one warning a row

    def _trip(self, look: Look, values: Metrics, over: Sequence[str]) -> None:
        sign, setting = over[0], LIMITS[over[0]]
        guilty = guilty_of(sign, look)
        trip = Trip(
            step=look.step,
            since=min(self._rows[name].since for name in over),
            sign=sign,
            value=values[sign],
            limit=getattr(self.limits, setting),
            setting=setting,
            others=list(over[1:]),
            patience=self.limits.patience,
            action=self.limits.action,
            num_guilty=len(guilty),
            monitor=self.limits.model_dump(mode="json"),
        )
        warns = trip.action == "warn"
        tripped.save(trip, guilty, self.run.folder, standing=not warns)
        if warns:
            where = trip.file_in(self.run.folder)
            self.run.note(
                f"sign of reward hacking: {trip.said}; look at the {len(guilty)} rollouts in {where}"
            )
        else:
            self.trip = trip

    def ended(self, *, saved: bool) -> Tripped:
        """The error that ends a run after its trip; rolls back where monitor.action says so."""
        trip = self.trip
        assert trip is not None
        look = f"Look at the {trip.num_guilty} rollouts in {trip.file_in(self.run.folder)}"
        if trip.action == "rollback":
            good = self.run.roll_back(trip.since)
            kept = (
                f"the newest checkpoint is that of step {good}" if good else "no checkpoint is from before it"
            )
            return Tripped(f"rolled back: {trip.said}; {kept}, later ones put aside. {look}; {trip.remedy}")
        state = "saved" if saved else "NOT saved, see above,"
        return Tripped(
            f"paused: {trip.said}. {look}. The run is {state} after step {trip.step}; {trip.remedy}"
        )

    # -- checkpoints ---------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: baselines and counts."""
        return {
            "rows": {sign: (row.num, row.since) for sign, row in self._rows.items()},
            "first": {name: list(values) for name, values in self._first.items()},
            "latest": list(self._latest),
            "best": self._best,
            "second": self._second_name(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up `state`; {} is that of a run from before there was a monitor."""
        if not state:
            return
        self._rows = {sign: Row(*row) for sign, row in state["rows"].items()}
        self._first = {name: list(values) for name, values in state["first"].items()}
        self._latest, self._best = [(first, second) for first, second in state["latest"]], state["best"]
        if state["second"] != self._second_name():
            self._first["gap"], self._latest, self._best = [], [], None
            for sign, setting in LIMITS.items():
                if setting in tripped.OF_SECOND:
                    self._rows.pop(sign, None)
            self.run.note("monitor.verifier is another one now; its first looks are taken anew")

    def _second_name(self) -> str:
        if self.second is None:
            return ""
        options = sorted(self.limits.verifier_options.items())
        return f"{self.limits.verifier} {options}" if options else self.limits.verifier


# Who it was ------------------------------------------------------------------------------------------------


def guilty_of(sign: str, look: Look) -> list[Guilty]:
    """The rollouts that a sign comes from most, the worst first, at most MAX_GUILTY."""
    seconds = look.second
    chosen = sorted(SUSPECTS[sign](look), key=lambda found: (found[0], -found[1].group, -found[1].index))
    return [
        Guilty(row.group, row.index, why, seconds.get((row.group, row.index)))
        for _, row, why in reversed(chosen[-MAX_GUILTY:])
    ]


Suspects = list[tuple[float, Seen, str]]  # how much it speaks for the sign, the rollout, and why in words


def _overpaid(look: Look) -> Suspects:
    asked = [(row, row.reward, look.second.get((row.group, row.index))) for row in look.seen]
    found = [
        (paid - second, row, f"paid {paid:g}, second reward {second:g}")
        for row, paid, second in asked
        if paid is not None and second is not None
    ]
    return [one for one in found if one[0] > 0] or found


def _tampering(look: Look) -> Suspects:
    return [
        (-math.inf if row.reward is None else row.reward, row, row.tampers)
        for row in look.seen
        if row.tampers
    ]


def _same_answer(look: Look) -> Suspects:
    read = isinstance(look.answer, str)
    what = f"answers {look.answer!r:.60}" if read else "word for word the same completion"
    return [
        (row.reward or 0.0, row, f"{what}, as most paid rollouts do")
        for row in monitor_signs.paid(look.seen)
        if monitor_signs.answer_of(row, read=read) == look.answer
    ]


def _repeating(look: Look) -> Suspects:
    rows = [row for row in look.seen if math.isfinite(row.repetition)]
    return [(row.repetition, row, f"{row.repetition:.0%} of its 4-grams repeat") for row in rows]


def _longest(look: Look) -> Suspects:
    return [
        (row.length, row, f"{row.length} tokens, paid {row.reward:g}")
        for row in monitor_signs.paid(look.seen)
    ]


def _disputed(look: Look) -> Suspects:
    rows = [row for row in look.seen if math.isfinite(row.disagreement)]
    return [(row.disagreement, row, f"members disagree by {row.disagreement:.3g}") for row in rows]


def _best_paid(look: Look) -> Suspects:
    """Signs of the whole policy have no rollout to blame: what the reward drives at."""
    rows = [(row, row.reward) for row in look.seen if row.reward is not None]
    return [(reward, row, f"paid {reward:g}, among the most of the step") for row, reward in rows]


SUSPECTS: Mapping[str, Callable[[Look], Suspects]] = {
    "proxy_gap": _overpaid,
    "second_drop": _overpaid,
    "tamper_frac": _tampering,
    "answer_share": _same_answer,
    "repetition": _repeating,
    "length_corr": _longest,
    "disagreement_ratio": _disputed,
    "kl_ref": _best_paid,
    "entropy_frac": _best_paid,
}
