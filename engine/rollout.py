"""Problems to groups of rollouts, each yielded as soon as its last sample ends."""

import hashlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from verigrad.engine.failures import WorkError
from verigrad.engine.schema import FinishReason, Rollout, RolloutGroup
from verigrad.verifiers.base import Problem


class SamplerError(WorkError):
    """The sampler itself failed or refused; says nothing about what was sampled."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample; everything that shapes the distribution is here."""

    temperature: float  # 0 is greedy
    max_tokens: int
    stop: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One sample wanted."""

    prompt_ids: Sequence[int]
    seed: int


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One sample made."""

    index: int  # of its request
    token_ids: Sequence[int]  # [L] as emitted, the end-of-sequence token included
    logprobs: Sequence[float]  # [L] of the tempered, untruncated distribution sampled from
    finish_reason: FinishReason
    versions: Sequence[int] = ()  # [L] Engine.version when each was sampled; empty: the one there is now


class Codec(Protocol):
    """Problems to token ids, and sampled ids to what the verifier reads; see prompts.Prompter."""

    def token_ids(self, problem: Problem) -> list[int]:
        """The prompt."""
        ...

    def text_of(self, completion_ids: Sequence[int]) -> str:
        """The completion as text."""
        ...


class Stream(Protocol):
    """Samples being made, to which more can be added; see Engine.stream."""

    in_batches: bool  # `step` decodes what was added to its end, so it is best given much at once

    @property
    def busy(self) -> bool:
        """Whether anything that was added is not finished."""
        ...

    def add(self, index: int, request: TokenRequest, params: SamplingParams) -> None:
        """Ask for one more sample; `index` comes back with it, and belongs to one sample at a time."""
        ...

    def step(self) -> Sequence[TokenOutput]:
        """Decode for a while; what has finished meanwhile."""
        ...


class Engine(Protocol):
    """Tokens in, tokens out: `rollout_vllm.py`, `rollout_transformers.py`, or one of them elsewhere.

    That is `engine_process.py`, which has one of the two in a process of its own.
    """

    version: int  # of the weights, set by their owner after loading them; sampled tokens are tagged with it

    def stream(self, *, lasting: bool = False) -> AbstractContextManager[Stream]:
        """Open a stream; when it is left, what is unfinished is dropped.

        Temperature and stop strings are the same for all that is added to one stream. One at a time; but
        beside a `lasting` one others may be opened, and served first, and weights may be loaded between two
        of its steps: what it has begun goes on under the new ones, with activations computed anew.
        """
        ...

    def generate(self, requests: Sequence[TokenRequest], params: SamplingParams) -> Iterator[TokenOutput]:
        """Sample every request; outputs come in the order in which they finish.

        The same request gives the same tokens whenever the same requests are made together.
        """
        ...

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights in place and forget every cached activation.

        Refused while sampling, but for lasting streams.
        """
        ...

    def load_adapter(self, folder: Path) -> None:
        """Use the adapter in the folder (LoRA, as peft writes it) on the weights the engine started with.

        Forgets every cached activation; the folder may be gone afterwards. Refused while sampling.
        """
        ...

    def release(self) -> None:
        """Give device memory to the trainer until `reclaim`."""
        ...

    def reclaim(self) -> None:
        """Take device memory back; `load_weights` must follow before sampling."""
        ...

    def close(self) -> None:
        """End for good."""
        ...


OnRollout = Callable[[int, Problem, int, int, Rollout], None]
"""Called with: position of a group, its problem, index of a rollout, rollouts in the group, the rollout."""


class Arriving:
    """Groups as they finish; before that each rollout by itself, for whoever sets `on_rollout` in time."""

    def __init__(self) -> None:
        self.on_rollout: OnRollout | None = None
        self.groups: Generator[tuple[int, RolloutGroup]]

    def tell(self, position: int, problem: Problem, index: int, size: int, rollout: Rollout) -> None:
        """One rollout has finished."""
        if self.on_rollout is not None:
            self.on_rollout(position, problem, index, size, rollout)

    def __iter__(self) -> Iterator[tuple[int, RolloutGroup]]:
        return self.groups

    def __next__(self) -> tuple[int, RolloutGroup]:
        return next(self.groups)

    def close(self) -> None:
        """Give up; what is unfinished is dropped."""
        self.groups.close()


class Sampler:
    """Groups of rollouts from an engine, tagged with the version of the weights that made them."""

    def __init__(self, engine: Engine, codec: Codec) -> None:
        self.engine, self.codec = engine, codec
        self.codec_lock = threading.Lock()  # tokenizers are not made for several threads
        self.policy_version = -1

    @property
    def policy_version(self) -> int:
        """Of the weights that the engine was last given."""
        return self._policy_version

    @policy_version.setter
    def policy_version(self, version: int) -> None:
        self._policy_version = self.engine.version = version

    def sample(
        self,
        problems: Sequence[Problem],
        params: SamplingParams,
        *,
        group_size: int,
        seed: tuple[object, ...],
        names: Sequence[str] | None = None,
    ) -> Iterator[tuple[int, RolloutGroup]]:
        """Attempts at the problems, see `complete`; in episodes of several turns, see engine/episode.py."""
        return self.complete(problems, params, group_size=group_size, seed=seed, names=names)

    def complete(
        self,
        problems: Sequence[Problem],
        params: SamplingParams,
        *,
        group_size: int,
        seed: tuple[object, ...],
        names: Sequence[str] | None = None,
    ) -> "Arriving":
        """One completion per rollout: (position in `problems`, group) as groups finish.

        Each sample's seed is a hash of `seed`, its problem's position (or its name in `names` [P]) and its
        own index, so it does not depend on when or with what else it was sampled.
        """
        arriving = Arriving()
        arriving.groups = self._completed(
            problems, params, group_size=group_size, seed=seed, names=names, tell=arriving.tell
        )
        return arriving

    def _completed(
        self,
        problems: Sequence[Problem],
        params: SamplingParams,
        *,
        group_size: int,
        seed: tuple[object, ...],
        names: Sequence[str] | None,
        tell: "OnRollout",
    ) -> Generator[tuple[int, RolloutGroup]]:
        keys: Sequence[object] = range(len(problems)) if names is None else names
        requests = [
            request
            for key, problem in zip(keys, problems, strict=True)
            for request in self.requests(problem, group_size=group_size, seed=(*seed, key))
        ]
        waiting: dict[int, dict[int, Rollout]] = {position: {} for position in range(len(problems))}
        for output in self.engine.generate(requests, params):
            position, index = divmod(output.index, group_size)
            group = waiting[position]
            group[index] = self.rollout(requests[output.index], output)
            tell(position, problems[position], index, group_size, group[index])
            if len(group) == group_size:
                done = waiting.pop(position)
                yield position, RolloutGroup(problems[position], [done[i] for i in range(group_size)])
        if waiting:
            raise SamplerError(f"the engine stopped with {len(waiting)} of {len(problems)} groups unfinished")

    def requests(
        self, problem: Problem, *, group_size: int, seed: tuple[object, ...]
    ) -> list[TokenRequest]:  # [G]
        """What to ask the engine for a group; each sample's seed is a hash of `seed` and its index."""
        with self.codec_lock:
            prompt = self.codec.token_ids(problem)
        return [TokenRequest(prompt, derive_seed(*seed, index)) for index in range(group_size)]

    def rollout(self, request: TokenRequest, output: TokenOutput) -> Rollout:
        """One sample as what training reads."""
        num_prompt, num_sampled = len(request.prompt_ids), len(output.token_ids)
        with self.codec_lock:
            text = self.codec.text_of(output.token_ids)
        return Rollout(
            token_ids=[*request.prompt_ids, *output.token_ids],
            loss_mask=[False] * num_prompt + [True] * num_sampled,
            logprobs=[0.0] * num_prompt + list(output.logprobs),
            policy_versions=[-1] * num_prompt + list(output.versions or [self.policy_version] * num_sampled),
            text=text,
            finish_reason=output.finish_reason,
            seed=request.seed,
        )


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from anything with a stable repr."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()) >> 1
