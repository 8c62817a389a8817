"""Items -> a stream of them without end: every epoch visits each once, in a seeded order of its own."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from verigrad.engine.config import ConfigError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Numbered(Protocol[T_co]):
    """Items by number."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> T_co: ...


class Epochs(Generic[T]):
    """The stream; `fingerprint` is of all items in order, by which a checkpoint knows its data again."""

    def __init__(
        self, items: Numbered[T] | Sequence[T], *, seed: int, shuffle: bool, fingerprint: str
    ) -> None:
        self._items, self._seed, self._shuffle = items, seed, shuffle
        self._identity = {"seed": seed, "shuffle": shuffle, "fingerprint": fingerprint}
        self._start(epoch=0, position=0)

    def _start(self, *, epoch: int, position: int) -> None:
        self._epoch, self._position = epoch, position
        self._order = np.arange(len(self._items))  # [N]
        if self._shuffle:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self._order)

    @property
    def epoch(self) -> float:
        """Times all items were drawn, the running one as its share."""
        return self._epoch + self._position / len(self._order)

    def draw(self) -> T:
        """The next item."""
        if self._position == len(self._order):
            self._start(epoch=self._epoch + 1, position=0)
        item = self._items[int(self._order[self._position])]
        self._position += 1
        return item

    def next_batch(self, num: int) -> list[T]:
        """The next items; a batch may run from one epoch into the next."""
        return [self.draw() for _ in range(num)]

    def state(self) -> dict[str, Any]:
        """Where the stream stands, for JSON."""
        return {**self._identity, "epoch": self._epoch, "position": self._position}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; refused if it belongs to other data or another order."""
        changed = [name for name, value in self._identity.items() if state.get(name) != value]
        if changed:
            raise ConfigError(
                f"the checkpoint's place in the data does not fit: {changed[0]} was "
                f"{state.get(changed[0])!r}, is {self._identity[changed[0]]!r}. "
                "Restore the run's data, or start a new run."
            )
        self._start(epoch=int(state["epoch"]), position=int(state["position"]))
