"""Ctrl-C and termination requests: the step is finished and saved first; a second one ends at once."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """While open, the first SIGINT or SIGTERM only sets `asked`; the second raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        except ValueError:  # not the main thread: whoever runs us there handles signals itself
            pass
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        # Not print: a signal may come in the middle of one, and Python refuses to enter it twice.
        os.write(2, b"\nverigrad: finishing this step, then saving; once more to stop at once\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
