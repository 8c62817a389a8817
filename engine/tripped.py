"""A tripped limit of [monitor] -> the guilty rollouts and the reason in RUN/tripped; why a run stands still.

tripped/step_000012.parquet   the rollouts most responsible, with the columns sign, why and second_reward
tripped/step_000012.json      what tripped, written by action = "warn" or once the run went on
tripped/trip.json             the same of a run that was paused or rolled back and has not gone on
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verigrad.engine.checkpoint import name_of, sync_to_disk
from verigrad.engine.failures import WorkError
from verigrad.engine.settings import ConfigError, MonitorConfig

FOLDER, STANDING = "tripped", "trip.json"
CHANGES = ("action", "patience", "enabled")  # besides the limit itself: with another one the run goes on


class Tripped(WorkError):
    """A sign of reward hacking stayed beyond its limit."""


@dataclass(frozen=True, slots=True)
class Guilty:
    """One of the rollouts that a sign comes from most."""

    group: int
    index: int
    why: str
    second_reward: float | None = None  # what monitor.verifier paid, where it was asked


@dataclass(frozen=True, slots=True)
class Trip:
    """What tripped, and what stood in [monitor]."""

    step: int
    since: int  # the first of the steps in a row beyond the limit
    sign: str
    value: float
    limit: float
    setting: str  # of [monitor]
    others: Sequence[str]  # further signs that tripped at the same step
    patience: int
    action: str
    num_guilty: int
    monitor: Mapping[str, Any]  # the whole section, as it was

    @property
    def said(self) -> str:
        """Sign, value, limit and since when, in a few words."""
        beyond = "below" if self.setting.startswith("min_") else "above"
        others = f" (and {', '.join(self.others)})" if self.others else ""
        since = f"since step {self.since}" if self.since < self.step else f"at step {self.step}"
        limit = f"monitor.{self.setting} = {self.limit:g}"
        return f"{self.sign} {self.value:.3g} is {beyond} {limit}{others}, {since}"

    def file_in(self, run_folder: Path) -> Path:
        """The guilty rollouts."""
        return run_folder / FOLDER / f"{name_of(self.step)}.parquet"

    @property
    def remedy(self) -> str:
        """How the run goes on."""
        return (
            "mend the reward and start a new run; or, if they are honest, start the same command again with "
            f"another monitor.{self.setting}, or with monitor.action=warn"
        )


def save(trip: Trip, guilty: Sequence[Guilty], run_folder: Path, *, standing: bool) -> None:
    """Write both files; the rollouts are those of the step's own file, with all their columns.

    `standing`: the run does not go on until a setting is changed. Tripped says when the disk refuses.
    """
    table = pq.read_table(run_folder / "rollouts" / f"{name_of(trip.step)}.parquet")
    places = zip(table["group"].to_pylist(), table["index"].to_pylist(), strict=True)
    row_of = {place: row for row, place in reversed(list(enumerate(places)))}
    table = table.take([row_of[one.group, one.index] for one in guilty])
    table = table.append_column("sign", pa.array([trip.sign] * len(guilty), pa.string()))
    table = table.append_column("why", pa.array([one.why for one in guilty], pa.string()))
    seconds = pa.array([one.second_reward for one in guilty], pa.float64())
    table = table.append_column("second_reward", seconds)
    target = trip.file_in(run_folder)
    record = target.with_name(STANDING) if standing else target.with_suffix(".json")
    try:
        target.parent.mkdir(exist_ok=True)
        half = target.with_name(f"{target.name}.half")
        pq.write_table(table, half, compression="zstd")
        sync_to_disk(half)
        half.rename(target)
        half = record.with_name(f"{record.name}.half")
        half.write_text(json.dumps(asdict(trip), indent=1) + "\n")
        sync_to_disk(half)
        half.rename(record)
    except OSError as error:
        raise Tripped(
            f"{trip.said}, and {target} could not be written ({error.strerror or error}); free some space"
        ) from error


def standing(run_folder: Path) -> Trip | None:
    """The trip that a run has not gone on from."""
    path = run_folder / FOLDER / STANDING
    try:
        return Trip(**json.loads(path.read_text())) if path.exists() else None
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is not what this version writes ({error}); it says why the run was tripped: read it, "
            "then remove it to go on"
        ) from error


def recorded(run_folder: Path) -> list[Trip]:
    """Every trip of a run, in the order of their steps; what cannot be read is standing()'s to tell."""
    found = []
    for path in (run_folder / FOLDER).glob("*.json"):
        try:
            found.append(Trip(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue
    return sorted(found, key=lambda trip: trip.step)


def require_change(trip: Trip, monitor: MonitorConfig, run_folder: Path) -> None:
    """ConfigError, unless a setting is another one now that has a say in this trip."""
    now = monitor.model_dump(mode="json")
    names = [trip.setting, *CHANGES]
    if trip.setting in OF_SECOND:
        names += ["verifier", "verifier_options"]
    if any(now[name] != trip.monitor.get(name, now[name]) for name in names):
        return
    done = "rolled back to before that" if trip.action == "rollback" else "paused"
    raise ConfigError(
        f"{run_folder} was {done} at step {trip.step} for a sign of reward hacking: {trip.said}. Look at "
        f"{trip.file_in(run_folder)}; {trip.remedy}"
    )


OF_SECOND = ("max_proxy_gap", "max_second_drop")
"""Limits of signs that come from monitor.verifier."""


def go_on(trip: Trip, run_folder: Path) -> None:
    """Keep the record under its step; the run stands still no more."""
    path = run_folder / FOLDER / STANDING
    path.rename(trip.file_in(run_folder).with_suffix(".json"))


def forget(run_folder: Path) -> None:
    """Drop the record of a trip whose step is about to happen again."""
    (run_folder / FOLDER / STANDING).unlink()
