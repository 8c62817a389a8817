"""Samples wanted -> several engines that share them: one in this process and the others in their own.

vLLM spends much of its time in Python, which uses one core whatever the number of threads. Engines beside
each other use as many cores as there are engines. Which one makes a sample is settled when it is asked for,
never by who is free first: so a run that is repeated is the same to the bit.
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verigrad.engine import trace_file
from verigrad.engine.engine_process import RemoteStream, Wanted
from verigrad.engine.rollout import Engine, SamplingParams, Stream, TokenOutput, TokenRequest
from verigrad.engine.weight_sharing import NoLayout

MANY_PROMPTS = 4  # to an engine: from here on what shares a prompt stays together
LOOK_S = 0.01  # between two looks at engines that are elsewhere


def shares(requests: Sequence[TokenRequest], num: int) -> list[int]:
    """Which of `num` engines makes each sample.

    Neighbours with the same prompt stay together, for whom it is read once; but of few prompts each engine
    gets a part, or some would have nothing to do.
    """
    prompts = itertools.groupby(requests, key=lambda request: list(request.prompt_ids))
    sizes = [len(list(same)) for _, same in prompts]
    if len(sizes) < MANY_PROMPTS * num:
        return [place % num for place in range(len(requests))]
    return [run % num for run, size in enumerate(sizes) for _ in range(size)]


class EngineFleet:
    """See rollout.Engine: engines with the same weights, at most the first of them in this process."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = list(engines)
        self.apart = all(getattr(engine, "apart", False) for engine in engines)
        self._threads = max(1, torch.get_num_threads() // len(self.engines))

    @property
    def num_engines(self) -> int:
        """How many there are."""
        return len(self.engines)

    @property
    def busy_s(self) -> float:
        """Seconds that the engines have decoded, on average."""
        return sum(getattr(engine, "busy_s", 0.0) for engine in self.engines) / len(self.engines)

    @property
    def version(self) -> int:
        """See Engine.version."""
        return self.engines[0].version

    @version.setter
    def version(self, version: int) -> None:
        for engine in self.engines:
            engine.version = version

    @contextmanager
    def stream(self, *, lasting: bool = False) -> Iterator["FleetStream"]:
        """See Engine.stream. Sample `index` is the work of engine `index % len(engines)`."""
        with ExitStack() as stack:
            stack.enter_context(nullcontext() if self.apart else _threads(self._threads))
            yield FleetStream(
                [stack.enter_context(engine.stream(lasting=lasting)) for engine in self.engines]
            )

    def generate(self, requests: Sequence[TokenRequest], params: SamplingParams) -> Iterator[TokenOutput]:
        """See Engine.generate."""
        with self.stream() as stream:
            placed = zip(requests, shares(requests, len(self.engines)), strict=True)
            stream.add_all(
                [(place, (index, request, params)) for index, (request, place) in enumerate(placed)]
            )
            while stream.busy:
                yield from stream.step()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """See Engine.load_weights."""
        held = list(weights)
        for engine in self.engines:
            engine.load_weights(held)

    def load_adapter(self, folder: Path) -> None:
        """See Engine.load_adapter."""
        for engine in self.engines:
            engine.load_adapter(folder)

    def lay_out(self, shapes: Any) -> "FleetLayout | None":
        """See VllmEngine.lay_out."""
        layouts = []
        for engine in self.engines:
            lay_out = getattr(engine, "lay_out", None)
            if lay_out is None and shapes is not None:
                raise NoLayout("the sampler is no vLLM engine")
            layouts.append(lay_out(shapes) if lay_out is not None else None)
        return None if shapes is None else FleetLayout(layouts)

    def release(self) -> None:
        """See Engine.release."""
        for engine in self.engines:
            engine.release()

    def reclaim(self) -> None:
        """See Engine.reclaim."""
        for engine in self.engines:
            engine.reclaim()

    def close(self) -> None:
        """See Engine.close. All of them, whatever one of them says."""
        with ExitStack() as stack:
            for engine in self.engines:
                stack.callback(engine.close)


class FleetLayout:
    """See weight_sharing.Layout: of models of which only one could share the trainer's memory."""

    shared = False

    def __init__(self, layouts: Sequence[Any]) -> None:
        self.layouts = layouts

    def holds(self, weights: Iterable[tuple[str, Tensor]]) -> bool:
        """Whether every engine computes with these weights."""
        held = list(weights)
        return all(layout.holds(held) for layout in self.layouts)

    def share(self, model: torch.nn.Module) -> None:
        """Never: NoLayout."""
        raise NoLayout("several engines sample, each with weights of its own")


class FleetStream:
    """See Stream: those of all engines as one."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.streams = streams
        self.in_batches = streams[0].in_batches
        self._here = [stream for stream in streams if not isinstance(stream, RemoteStream)]
        self._elsewhere = [stream for stream in streams if isinstance(stream, RemoteStream)]
        self._began: dict[int, float] = {}  # when an engine elsewhere was given something to do

    @property
    def busy(self) -> bool:
        """See Stream."""
        return any(stream.busy for stream in self.streams)

    def add(self, index: int, request: TokenRequest, params: SamplingParams) -> None:
        """See Stream."""
        self.add_all([(index % len(self.streams), (index, request, params))])

    def add_all(self, wanted: Sequence[tuple[int, Wanted]]) -> None:
        """Several at once, each with its engine's place."""
        for place, stream in enumerate(self.streams):
            own = [one for engine, one in wanted if engine == place]
            if isinstance(stream, RemoteStream) and own:
                stream.add_all(own)
                self._began.setdefault(stream.number, time.perf_counter())
            else:
                for one in own:
                    stream.add(*one)

    def step(self) -> list[TokenOutput]:
        """See Stream: what the engine here decodes at once, and what came from the others meanwhile."""
        outputs: list[TokenOutput] = []
        for stream in self._here:
            if stream.busy:
                outputs += stream.step()
        here = any(stream.busy for stream in self._here)
        for place, stream in enumerate(self._elsewhere, start=len(self._here) + 1):
            if stream.busy:
                outputs += stream.step(0.0 if here or outputs else LOOK_S)
            if not stream.busy and (began := self._began.pop(stream.number, None)) is not None:
                trace_file.record("sampling", f"{trace_file.ENGINE} {place}", began)
        return outputs


@contextmanager
def _threads(num: int) -> Iterator[None]:
    """This thread's share of the cores while others compute beside it."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)
