"""Trained weights into the sampler, and the proof that they arrived."""

import itertools
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from verigrad.engine.config import Config
from verigrad.engine.failures import WorkError
from verigrad.engine.pack import lay_out
from verigrad.engine.policy import Policy
from verigrad.engine.rollout import Sampler, SamplingParams, TokenRequest, derive_seed
from verigrad.engine.schema import Metrics, Rollout
from verigrad.engine.trace_file import span
from verigrad.engine.weight_sharing import Reached, connect
from verigrad.verifiers.base import Problem

CANARY_DEPTHS = range(0, 16, 2)  # tokens that follow a canary's prompt before sampling begins
CANARY_TOKENS = 2  # sampled of each: one by the step that reads the prompt, one by a step of decoding
NOTICEABLE = 2e-5  # a move of a float32 log-probability that is no rounding
MAX_UNKNOWN_FRAC = 1e-3


class WeightSyncError(WorkError):
    """Trainer and sampler do not hold the same policy."""


class WeightSync:
    """Pushes weights and compares both sides' log-probabilities of the same freshly sampled tokens.

    Catches partial loads, packed copies and tied heads left behind, caches not reset, and any other way in
    which the policy that samples is not the policy that trains.
    """

    def __init__(self, policy: Policy, sampler: Sampler, canaries: Sequence[Problem], *, cfg: Config) -> None:
        self.policy, self.sampler, self.wanted = policy, sampler, cfg.sync.route
        self.params = SamplingParams(cfg.rollout.temperature, min(CANARY_TOKENS, cfg.rollout.max_tokens))
        room = cfg.rollout.max_tokens - self.params.max_tokens  # an engine holds no more
        self.requests = _canary_requests([sampler.codec.token_ids(one) for one in canaries], room=room)
        self.requests *= -(-getattr(sampler.engine, "num_engines", 1) // len(self.requests))  # one for each
        assert cfg.sync.max_canary_gap is not None, "config.load resolves it"
        assert cfg.sync.max_mismatch_kl is not None, "config.load resolves it"
        self.max_gap, self.max_mismatch_kl = cfg.sync.max_canary_gap, cfg.sync.max_mismatch_kl
        self.adapters_alone = cfg.lora.rank > 0 and cfg.lora.load == "adapter"
        self.exact = cfg.policy.dtype == "float32"
        self.last: tuple[list[Rollout], Tensor] | None = None  # canaries of the last proof, and our logprobs

    def connect(self) -> Reached:
        """Find the cheapest way for the weights; both sides must hold the same ones when this is called."""
        if self.adapters_alone:
            return Reached("reload", "adapters are loaded by themselves")
        return connect(self.policy, self.sampler.engine, self.wanted)

    def push(self, version: int) -> Metrics:
        """Load the policy's weights into the running engine as `version`, and prove it."""
        if self.adapters_alone:
            with tempfile.TemporaryDirectory(prefix="verigrad-adapter-") as folder:
                self.policy.save_adapter(Path(folder))
                self.sampler.engine.load_adapter(Path(folder))
        else:
            with span("load weights"):
                self.sampler.engine.load_weights(self.policy.weights())
        self.sampler.policy_version = version
        with span("canary"):
            return self.prove()

    def prove(self) -> Metrics:
        """Largest gap on the canaries; raises WeightSyncError above the limit.

        The same token sequences every time, of many lengths at once: a prefix that the weights before left in
        a cache would be used, and two steps of the engine prove reading and decoding. Also raises where the
        trainer's log-probabilities have moved and the sampler repeats its last ones to the bit: a single step
        at a small learning rate stays below any limit that rounding respects.
        """
        rollouts = self._sampled()
        batch = lay_out(rollouts)
        ours = self.policy.logprobs(batch, temperature=self.params.temperature)
        gap = float((ours - batch.rollout_logprobs)[batch.loss_mask].abs().max())
        if not (math.isfinite(gap) and gap <= self.max_gap):
            raise WeightSyncError(
                f"trainer and sampler disagree after weight sync {self.sampler.policy_version}: "
                f"log-probabilities of the same tokens differ by up to {gap:.2g}, more than "
                f"sync.max_canary_gap = {self.max_gap:g}. The sampler does not hold the trained weights, so "
                "nothing sampled from it can be trusted. Resume from the last checkpoint; if it comes again, "
                "report it with the model's config.json"
            )
        self._refuse_repetition(rollouts, ours)
        self.last = rollouts, ours
        return {"canary_gap": gap}

    def _sampled(self) -> list[Rollout]:
        outputs = self.sampler.engine.generate(self.requests, self.params)
        rollouts = []
        for output in sorted(outputs, key=lambda output: output.index):
            request = self.requests[output.index]
            prompt, num = list(request.prompt_ids), len(output.token_ids)
            rollouts.append(
                Rollout(
                    token_ids=[*prompt, *output.token_ids],
                    loss_mask=[False] * len(prompt) + [True] * num,
                    logprobs=[0.0] * len(prompt) + list(output.logprobs),
                    policy_versions=[-1] * len(prompt) + [self.sampler.policy_version] * num,
                    text="",
                    finish_reason=output.finish_reason,
                    seed=request.seed,
                )
            )
        return rollouts

    def _refuse_repetition(self, rollouts: list[Rollout], ours: Tensor) -> None:
        if self.last is None or not self.exact:  # in bfloat16 a small step may round to nothing
            return
        before, our_before = self.last
        if any(now.token_ids != then.token_ids for now, then in zip(rollouts, before, strict=True)):
            return
        repeated = all(now.logprobs == then.logprobs for now, then in zip(rollouts, before, strict=True))
        moved = float((ours - our_before).abs().max())
        if repeated and moved > NOTICEABLE:
            raise WeightSyncError(
                f"weight sync {self.sampler.policy_version} did not reach the sampler: the trainer's "
                f"log-probabilities moved by {moved:.2g}, the sampler's not at all. Resume from the last "
                "checkpoint; if it comes again, report it with the model's config.json"
            )

    def require_match(self, metrics: Metrics) -> None:
        """Raise WeightSyncError when a step's rollouts were not sampled from the policy that trained on them.

        A non-finite mismatch of a skipped step is that step's own trouble, and counted as such.
        """
        unknown = metrics.get("nan_logprob_frac", 0.0)
        if unknown > MAX_UNKNOWN_FRAC:
            raise WeightSyncError(
                f"the sampler gave no log-probability for {unknown:.1%} of the tokens; ratios would be taken "
                "for 1 there. Report it with the model's config.json"
            )
        mismatch = metrics.get("mismatch_kl", 0.0)
        if metrics.get("skipped_updates") and not math.isfinite(mismatch):
            return
        if not mismatch <= self.max_mismatch_kl:
            raise WeightSyncError(
                f"mismatch_kl = {mismatch:.2g} between sampler and trainer is more than "
                f"sync.max_mismatch_kl = {self.max_mismatch_kl:g}: the policy that samples is not the policy "
                "that trains. Start another run with policy.dtype = 'float32' and policy.update_dtype = "
                "'same', or with a higher limit if you know why"
            )


def _canary_requests(prompts: Sequence[Sequence[int]], *, room: int) -> list[TokenRequest]:
    """Each prompt, continued by 0 to 14 tokens of all prompts in turn, as far as there is room."""
    following = list(itertools.islice(itertools.cycle(itertools.chain(*prompts)), max(CANARY_DEPTHS)))
    return [
        TokenRequest([*prompt, *following[:depth]], derive_seed("canary", position, depth))
        for position, prompt in enumerate(prompts)
        for depth in CANARY_DEPTHS
        if depth <= room
    ]
