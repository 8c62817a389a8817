"""data.path and the sets of data.mix -> examples drawn by weight, those held out of each set apart.

Every set is read and split as if alone (examples.py); then what any of them holds out is taken from all. Sets
are drawn by turns, not by chance, so that any stretch of a run has the shares that the weights ask for.
"""

import bisect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Generic, TypeVar, overload

import numpy as np

from verigrad.engine import examples
from verigrad.engine.config import ConfigError, DataConfig
from verigrad.engine.data import digest
from verigrad.engine.examples import Examples, ExampleStream, Fingerprinted, Form, Split

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)
FIRST = "path"  # what the set of data.path is called beside those of data.mix


@dataclass(frozen=True, slots=True)
class Part:
    """One set within the examples of all."""

    name: str
    start: int  # its first example
    stop: int  # one past its last
    weight: float


class Joined(Sequence[E]):
    """The examples of several sets, one set after another."""

    def __init__(self, sets: Mapping[str, Examples[E]]) -> None:
        self._sets = list(sets.values())
        self._starts = [0, *itertools.accumulate(map(len, self._sets))]
        self.prompts = np.concatenate([one.prompts for one in self._sets])  # [N] uint64
        prints = [[name, one.fingerprint] for name, one in sets.items()]
        self.fingerprint = self._sets[0].fingerprint if len(sets) == 1 else f"{digest(prints):016x}"

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> E: ...
    @overload
    def __getitem__(self, index: slice) -> list[E]: ...
    def __getitem__(self, index: int | slice) -> E | list[E]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        which = bisect.bisect_right(self._starts, place) - 1
        return self._sets[which][place - self._starts[which]]


@dataclass(frozen=True, slots=True)
class Mixture(Generic[E]):
    """What a run learns from, in parts, and what it is measured on."""

    train: Joined[E]
    parts: Sequence[Part]  # of `train`, data.path first
    held_out: Mapping[str, Examples[E]]  # by the name it is recorded under; only what has examples
    left_out: Sequence[str]  # sentences for the log
    longest: int  # tokens of the longest sequence
    fingerprint: str  # of every example on both sides, in order

    def notes(self) -> list[str]:
        """What was left out, for the log."""
        return list(self.left_out)


def load(cfg: DataConfig, form: Form[E], *, seed: int) -> Mixture[E]:
    """Read, check, tokenise and split every set; no prompt is held out of one and learned from in another."""
    splits = {FIRST: examples.load(cfg, form, seed=seed)}
    for name, one in cfg.mix.items():
        own = DataConfig(
            path=one.path,
            split=one.split,
            options=one.options,
            columns=one.columns,
            num_eval=one.num_eval,
            on_bad_row=cfg.on_bad_row,
        )
        splits[name] = examples.load(own, form, seed=seed, setting=f"data.mix.{name}")
    return joined(splits, {FIRST: cfg.weight, **{name: one.weight for name, one in cfg.mix.items()}})


def joined(splits: Mapping[str, Split[E]], weights: Mapping[str, float]) -> Mixture[E]:
    """One mixture of sets that were split each by itself; data.path's is the first."""
    reserved = np.concatenate([one.reserved for one in splits.values()])
    train = {name: one.train.without(reserved) for name, one in splits.items()}
    held_out: dict[str, Examples[E]] = {}
    left_out: list[str] = []
    for name, one in splits.items():
        if not len(train[name]):
            raise ConfigError(
                f"data.mix: of the set {name!r} every prompt is held out of another set, so that nothing "
                "of it is left to learn from. Set a smaller num_eval there, or leave the set out."
            )
        of_set = f"{name}: " if len(splits) > 1 else ""
        left_out += [f"{of_set}{note}" for note in one.notes()]
        if num := len(one.train) - len(train[name]):
            left_out.append(f"{of_set}{num} rows left out: their prompt is held out of another set")
        if one.held_out is not None:
            recorded = one.held_out_name if name == FIRST else name
            if recorded in held_out:
                raise ConfigError(f"data.mix.{recorded} has the name of data.eval_path's set; rename it")
            held_out[recorded] = one.held_out
    bounds = itertools.pairwise([0, *itertools.accumulate(len(one) for one in train.values())])
    prints = [one.fingerprint for one in splits.values()]
    return Mixture(
        train=Joined(train),
        parts=[Part(name, a, b, weights[name]) for name, (a, b) in zip(train, bounds, strict=True)],
        held_out=held_out,
        left_out=left_out,
        longest=max(one.longest for one in splits.values()),
        fingerprint=prints[0] if len(splits) == 1 else f"{digest(prints):016x}",
    )


# Drawing ---------------------------------------------------------------------------------------------------


class Stretch(Generic[E_co]):
    """One part of some examples, as if it were all there is."""

    def __init__(self, all_of_them: Fingerprinted[E_co], part: Part) -> None:
        self._all, self._part = all_of_them, part
        self.fingerprint = f"{all_of_them.fingerprint}:{part.start}-{part.stop}"

    def __len__(self) -> int:
        return self._part.stop - self._part.start

    def __getitem__(self, index: int) -> E_co:
        return self._all[self._part.start + range(len(self))[index]]


class MixtureStream(Generic[E]):
    """Examples without end, of each part by its weight; every part has epochs of its own."""

    def __init__(self, train: Fingerprinted[E], parts: Sequence[Part], *, seed: int, shuffle: bool) -> None:
        """`train` are the examples that `parts` divide: a mixture's own, or what stands for each of them."""
        if len(train) != parts[-1].stop:
            raise ValueError(f"{len(train)} examples, and parts that divide {parts[-1].stop}")
        self._sizes = [part.stop - part.start for part in parts]
        self._turns = Turns({part.name: part.weight for part in parts})
        self._streams: dict[str, ExampleStream[E]] = {}
        for part in parts:
            alone = len(parts) == 1
            own = train if alone else Stretch(train, part)
            # sets of one size are not to be in one order
            of_set = seed if part.name == FIRST else digest([seed, part.name])
            self._streams[part.name] = ExampleStream(own, seed=of_set, shuffle=shuffle)

    @property
    def epoch(self) -> float:
        """Times that an example was drawn, over all examples of all sets."""
        drawn = [one.epoch * size for one, size in zip(self._streams.values(), self._sizes, strict=True)]
        return sum(drawn) / sum(self._sizes)

    def metrics(self) -> dict[str, float]:
        """`epoch`, and with several sets `epoch/NAME` of each."""
        each = {f"epoch/{name}": one.epoch for name, one in self._streams.items()}
        return {"epoch": self.epoch, **(each if len(each) > 1 else {})}

    def next_batch(self, num: int) -> list[E]:
        """The next examples, those of all sets in the order of their turns."""
        return [self._streams[next(self._turns)].next_batch(1)[0] for _ in range(num)]

    def state(self) -> dict[str, Any]:
        """Where the stream stands, for JSON; of one set, the state of an ExampleStream."""
        if len(self._streams) == 1:
            return self._only().state()
        sets = {name: one.state() for name, one in self._streams.items()}
        return {"sets": sets, "turns": self._turns.state()}

    def _only(self) -> ExampleStream[E]:
        return next(iter(self._streams.values()))

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; refused if it belongs to other data, weights or another order."""
        if len(self._streams) == 1 and "sets" not in state:
            self._only().load_state(state)
            return
        if list(state.get("sets", {FIRST: {}})) != list(self._streams):
            was, now = (", ".join(names) for names in (state.get("sets", {FIRST: {}}), self._streams))
            raise ConfigError(
                f"the checkpoint's place in the data does not fit: the sets were {was}, are {now}. "
                "Restore the run's data, or start a new run."
            )
        self._turns.load_state(state["turns"])
        for name, one in self._streams.items():
            one.load_state(state["sets"][name])


class Turns:
    """Names without end, each so often that after any number of turns it had its share of them to within one.

    Tijdeman, The chairman assignment problem (Discrete Mathematics 32, 1980): of those whose turn would not
    put them too far ahead, the one that would fall behind soonest. Exact, in fractions.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        exact = {name: Fraction(weight) for name, weight in weights.items()}
        self._weights = dict(weights)
        self._shares = {name: weight / sum(exact.values()) for name, weight in exact.items()}
        self._counts = dict.fromkeys(weights, 0)
        self._ahead = Fraction(1, max(1, 2 * len(weights) - 2))

    def __next__(self) -> str:
        turn = sum(self._counts.values()) + 1
        owed = {name: share * turn - self._counts[name] for name, share in self._shares.items()}
        ready = [name for name in owed if owed[name] >= self._ahead] or [max(owed, key=owed.__getitem__)]
        name = min(ready, key=lambda name: (1 - self._ahead - owed[name]) / self._shares[name])
        self._counts[name] += 1
        return name

    def state(self) -> dict[str, Any]:
        """Turns so far of each, for JSON."""
        return {"weights": self._weights, "counts": dict(self._counts)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; refused with other weights."""
        if state["weights"] != self._weights:
            raise ConfigError(
                f"the checkpoint's place in the data does not fit: the weights were {state['weights']}, are "
                f"{self._weights}. Restore them, or start a new run."
            )
        self._counts = {name: int(count) for name, count in state["counts"].items()}
