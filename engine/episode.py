"""Problems to groups of episodes: the model's turns, tools in between, many episodes at once.

    prompt -> turn -> calls? -> tools, in the episode's sandbox -> results -> turn -> ... -> final state

An episode takes a sandbox at its first call, first come first served, and keeps it to its end; the turns of
others are decoded meanwhile. One without a call leaves what its row set up, made once for its whole group.

Tokens in, tokens out: a turn is sampled from exactly the ids that came before, the prompt's, those that were
sampled and those that results were encoded to, and nothing is ever encoded twice. While one episode's tools
run in a thread, the engine decodes others.

Not promised: the same bits twice. A sample depends on its own seed alone, but the last bits of its
log-probabilities depend on what is decoded beside it, hence on how long tools take. With rollout.backend =
"transformers" all tools are waited for before decoding goes on, and a run can be repeated.
"""

import dataclasses
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from verigrad.engine.episode_box import EpisodeBox, SetupFailed, TooLarge, untouched
from verigrad.engine.rollout import (
    Engine,
    Sampler,
    SamplingParams,
    Stream,
    TokenOutput,
    TokenRequest,
    derive_seed,
)
from verigrad.engine.schema import Episode, FinishReason, Rollout, RolloutGroup, StopReason
from verigrad.engine.settings import AgentConfig
from verigrad.engine.tool_prompts import ToolPrompter
from verigrad.engine.tools import Call, Observation, Tool
from verigrad.sandboxes.base import SandboxError
from verigrad.sandboxes.pool import SandboxPool
from verigrad.verifiers.base import Message, Problem

FINISH: Mapping[StopReason, FinishReason] = {
    "answered": "stop",
    "too_large": "stop",
    "max_turns": "length",
    "max_tokens": "length",
    "max_seconds": "length",
    "sandbox_lost": "abort",
    "setup_failed": "abort",
}
"""How a single completion would have ended."""


@dataclass(slots=True)
class _Running:
    """One episode on its way."""

    number: int  # position * group_size + index
    position: int  # of its problem
    problem: Problem
    seed: tuple[object, ...]
    box: EpisodeBox
    tools: Mapping[str, Tool]
    max_turns: int
    num_prompt: int
    token_ids: list[int]  # prompt and everything since
    loss_mask: list[bool]
    logprobs: list[float]
    transcript: list[Message] = field(default_factory=list)
    opening: str = ""  # what the next turn begins with, besides what is sampled
    text: str = ""  # of the last turn
    started: float = 0.0  # by the clock, moved on by what it waited for its sandbox
    asked: float = 0.0  # by the clock, for its sandbox
    has_place: bool = False  # among those that may have a sandbox
    num_turns: int = 0
    num_calls: int = 0
    num_errors: int = 0
    stop_reason: StopReason | None = None
    detail: str = ""
    snapshot: bytes | None = None

    def stop(self, reason: StopReason, detail: str = "") -> None:
        """It is over."""
        self.stop_reason, self.detail = reason, detail

    @property
    def seconds(self) -> float:
        """How long it has taken, the wait for its sandbox aside."""
        return time.monotonic() - self.started

    def append(self, ids: Sequence[int], logprobs: Sequence[float] | None) -> None:
        """More tokens: sampled ones with their log-probabilities, or a tool's without."""
        self.token_ids += ids
        self.loss_mask += [logprobs is not None] * len(ids)
        self.logprobs += [0.0] * len(ids) if logprobs is None else logprobs


class EpisodeSampler(Sampler):
    """Groups of episodes instead of single completions; otherwise a Sampler."""

    def __init__(
        self,
        engine: Engine,
        prompter: ToolPrompter,
        cfg: AgentConfig,
        pool: SandboxPool,
        *,
        max_seqs: int = 256,
    ) -> None:
        """`max_seqs` is how many turns the engine decodes at once; none waits in the engine's own queue."""
        super().__init__(engine, prompter)
        self.prompter, self.cfg, self.pool, self.max_seqs = prompter, cfg, pool, max_seqs

    def sample(
        self,
        problems: Sequence[Problem],
        params: SamplingParams,
        *,
        group_size: int,
        seed: tuple[object, ...],
        names: Sequence[str] | None = None,
    ) -> Iterator[tuple[int, RolloutGroup]]:
        """See Sampler.sample. The seed of a turn is a hash of the episode's and the turn's number."""
        keys: Sequence[object] = range(len(problems)) if names is None else names
        episodes = [
            self._episode(position, index, group_size, problem, (*seed, key, index))
            for position, (key, problem) in enumerate(zip(keys, problems, strict=True))
            for index in range(group_size)
        ]
        waiting: dict[int, dict[int, Rollout]] = {position: {} for position in range(len(problems))}
        params = dataclasses.replace(params, stop=(*params.stop, *self.prompter.protocol.stop))
        for episode in _Interleaved(self, params).run(episodes):
            position, index = divmod(episode.number, group_size)
            waiting[position][index] = self._episode_rollout(episode)
            if len(waiting[position]) == group_size:
                done = waiting.pop(position)
                yield position, RolloutGroup(problems[position], [done[i] for i in range(group_size)])

    def _episode(
        self, position: int, index: int, group_size: int, problem: Problem, seed: tuple[object, ...]
    ) -> _Running:
        prompt, setup = self.prompter.token_ids(problem), self.prompter.setup_of(problem)
        return _Running(
            number=position * group_size + index,
            position=position,
            problem=problem,
            seed=seed,
            box=EpisodeBox(self.pool, self.cfg),
            tools=self.prompter.tools_of(problem),
            max_turns=min(self.cfg.max_turns, setup.max_turns or self.cfg.max_turns),
            num_prompt=len(prompt),
            token_ids=list(prompt),
            loss_mask=[False] * len(prompt),
            logprobs=[0.0] * len(prompt),
            opening=self.prompter.opening,
        )

    def _episode_rollout(self, episode: _Running) -> Rollout:
        reason = episode.stop_reason
        assert reason is not None, "only finished episodes become rollouts"
        return Rollout(
            token_ids=episode.token_ids,
            loss_mask=episode.loss_mask,
            logprobs=episode.logprobs,
            policy_versions=[self.policy_version if sampled else -1 for sampled in episode.loss_mask],
            text=episode.text,
            finish_reason=FINISH[reason],
            seed=derive_seed(*episode.seed),
            episode=Episode(
                stop_reason=reason,
                transcript=episode.transcript,
                snapshot=episode.snapshot,
                num_turns=episode.num_turns,
                num_calls=episode.num_calls,
                num_errors=episode.num_errors,
                detail=episode.detail,
            ),
        )


Job = Callable[[], Any]
Then = Callable[[_Running, Any], None]


class _Interleaved:
    """Episodes run to their end, each as far as it gets without waiting for another.

    At any time an episode is decoded, or has a job in a thread, or waits for a sandbox. Those with a sandbox
    wait for nothing that others hold, so every wait ends.
    """

    def __init__(self, sampler: EpisodeSampler, params: SamplingParams) -> None:
        self.sampler, self.prompter, self.cfg, self.params = sampler, sampler.prompter, sampler.cfg, params
        self.done: queue.SimpleQueue[tuple[_Running, Then, Any]] = queue.SimpleQueue()
        self.num_jobs = 0  # in threads, or done and not looked at
        self.num_decoding = 0
        self.num_places = sampler.pool.size  # that are free
        self.for_a_place: deque[tuple[_Running, Job, Then]] = deque()
        self.untouched: dict[int, list[_Running] | Any] = {}  # by position: who waits for it, or the result
        self.finished: list[_Running] = []
        self.running: dict[int, _Running] = {}

    def run(self, episodes: Sequence[_Running]) -> Iterator[_Running]:
        """The episodes as they end."""
        waiting = deque(episodes)
        with ThreadPoolExecutor(self.num_places, "verigrad-tool") as self.threads:
            try:
                with self.sampler.engine.stream() as self.stream:
                    while waiting or self.running:
                        while waiting and self.num_decoding < self.sampler.max_seqs:
                            self._admit(waiting.popleft())
                        self._advance(self.stream)
                        ended, self.finished = self.finished, []
                        yield from ended
            finally:
                self.threads.shutdown(cancel_futures=True)  # waits for the tools that run
                for episode in self.running.values():
                    episode.box.close()

    def _advance(self, stream: Stream) -> None:
        """Take up what threads have done, decode for a while; wait only when there is nothing else to do."""
        assert stream.busy or self.num_jobs, "episodes wait for each other"
        must_wait = not stream.busy or stream.in_batches
        ready = []
        while self.num_jobs and (must_wait or not self.done.empty()):
            ready.append(self.done.get())
            self.num_jobs -= 1
            if not stream.in_batches:
                must_wait = False
        for episode, then, result in sorted(ready, key=lambda item: item[0].number):
            then(episode, result)
        if stream.busy:
            for output in stream.step():
                self.num_decoding -= 1
                self._after_turn(self.running[output.index], output)

    def _start(self, episode: _Running, job: Job, then: Then) -> None:
        """Do the job in a thread, then go on with its result, or with the SandboxError it raised."""

        def work() -> None:
            try:
                result = job()
            except Exception as error:  # raised where the result is looked at
                result = error
            self.done.put((episode, then, result))

        self.num_jobs += 1
        self.threads.submit(work)

    def _start_with_place(self, episode: _Running, job: Job, then: Then) -> None:
        """As `_start`, once fewer episodes than there are sandboxes have one; the first come first."""
        self.for_a_place.append((episode, job, then))
        self._give_places()

    def _give_places(self) -> None:
        while self.num_places and self.for_a_place:
            episode, job, then = self.for_a_place.popleft()
            self.num_places -= 1
            episode.has_place = True
            self._start(episode, job, then)

    def _admit(self, episode: _Running) -> None:
        self.running[episode.number] = episode
        episode.started = time.monotonic()
        self._next_turn(episode)

    def _next_turn(self, episode: _Running) -> None:
        room = self.params.max_tokens - (len(episode.token_ids) - episode.num_prompt)
        if room < 1:
            self._finish(episode, "max_tokens")
            return
        max_tokens = min(room, self.cfg.max_turn_tokens or room)
        request = TokenRequest(tuple(episode.token_ids), derive_seed(*episode.seed, episode.num_turns))
        self.stream.add(episode.number, request, dataclasses.replace(self.params, max_tokens=max_tokens))
        self.num_decoding += 1

    def _after_turn(self, episode: _Running, output: TokenOutput) -> None:
        episode.append(output.token_ids, output.logprobs)
        episode.num_turns += 1
        episode.text = f"{episode.opening}{self.prompter.decoded(output.token_ids)}"
        calls: list[Call] = []
        if output.finish_reason == "stop":
            calls = self.prompter.protocol.calls(episode.text, episode.tools)
        episode.transcript.append(_said(episode.text, calls))
        left = self.cfg.max_seconds - episode.seconds
        if output.finish_reason != "stop":
            self._finish(episode, "max_tokens")
        elif not calls:
            self._finish(episode, "answered")
        elif left <= 0:
            self._finish(episode, "max_seconds")
        else:
            self._call(episode, calls, seconds_left=left)

    def _call(self, episode: _Running, calls: Sequence[Call], *, seconds_left: float) -> None:
        episode.num_calls += len(calls)
        setup = self.prompter.setup_of(episode.problem)

        def act() -> list[Observation]:
            if not episode.box.is_open:
                episode.box.open(setup)
                episode.started += time.monotonic() - episode.asked
            return episode.box.act(calls, episode.tools, seconds_left=seconds_left)

        def then(one: _Running, result: Any) -> None:
            self._after_calls(one, calls, result)

        if episode.has_place:
            self._start(episode, act, then)
        else:
            episode.asked = time.monotonic()
            self._start_with_place(episode, act, then)

    def _after_calls(self, episode: _Running, calls: Sequence[Call], result: Any) -> None:
        if not self._alive(episode, result):
            return
        observations: list[Observation] = result
        episode.num_errors += sum(one.failed for one in observations)
        for call, one in zip(calls, observations, strict=True):
            episode.transcript.append({"role": "tool", "name": call.name, "content": one.text})
        if episode.num_turns >= episode.max_turns:
            self._finish(episode, "max_turns")
        elif episode.seconds >= self.cfg.max_seconds:
            self._finish(episode, "max_seconds")
        else:
            self._observe(episode, observations)

    def _observe(self, episode: _Running, observations: Sequence[Observation]) -> None:
        """Show the model what its calls gave, unless no token would be left to say anything about it."""
        protocol, sampled = self.prompter.protocol, len(episode.token_ids)
        ids = protocol.result_ids([one.text for one in observations], last_id=episode.token_ids[-1])
        if sampled + len(ids) - episode.num_prompt >= self.params.max_tokens:
            self._finish(episode, "max_tokens")
            return
        episode.append(ids, None)
        episode.opening = protocol.opening
        self._next_turn(episode)

    def _finish(self, episode: _Running, reason: StopReason) -> None:
        """Take out the final state: its sandbox's, or what its row sets up where it never had one."""
        episode.stop(reason)
        if episode.box.is_open:
            self._start(episode, episode.box.finish, self._after_finish)
            return
        state = self.untouched.get(episode.position)
        if state is None:
            self.untouched[episode.position] = [episode]
            pool, setup = self.sampler.pool, self.prompter.setup_of(episode.problem)
            self._start_with_place(episode, lambda: untouched(pool, self.cfg, setup), self._after_untouched)
        elif isinstance(state, list):
            state.append(episode)
        else:
            self._after_finish(episode, state)

    def _after_untouched(self, episode: _Running, result: Any) -> None:
        waiting = self.untouched.pop(episode.position)
        if not isinstance(result, SandboxError):  # a later one may have more luck
            self.untouched[episode.position] = result
        for one in waiting:
            self._after_finish(one, result)

    def _after_finish(self, episode: _Running, result: Any) -> None:
        if isinstance(result, TooLarge):
            self._end(episode, "too_large", str(result))
        elif self._alive(episode, result):
            episode.snapshot = result
            assert episode.stop_reason is not None
            self._end(episode, episode.stop_reason)

    def _alive(self, episode: _Running, result: Any) -> bool:
        """Whether a job went well; ends the episode if not, raises what is nobody's fault but ours."""
        if isinstance(result, SetupFailed):
            self._end(episode, "setup_failed", str(result))
        elif isinstance(result, SandboxError):
            self._end(episode, "sandbox_lost", str(result) or type(result).__name__)
        elif isinstance(result, Exception):
            raise result
        else:
            return True
        return False

    def _end(self, episode: _Running, reason: StopReason, detail: str = "") -> None:
        """It is done, and its sandbox is given back: the next one's turn."""
        episode.stop(reason, detail)
        del self.running[episode.number]
        self.finished.append(episode)
        if episode.has_place:
            self.num_places += 1
            self._give_places()


def _said(text: str, calls: Sequence[Call]) -> Message:
    """The model's turn as a message; calls as it made them, readable or not."""
    if not calls:
        return {"role": "assistant", "content": text}
    made = [
        {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
        for call in calls
    ]
    return {"role": "assistant", "content": text, "tool_calls": made}
