"""Trained weights into the sampler, and the proof that they arrived."""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from verigrad.engine.config import Config
from verigrad.engine.failures import WorkError
from verigrad.engine.pack import lay_out
from verigrad.engine.policy import Policy
from verigrad.engine.rollout import Sampler, SamplingParams
from verigrad.engine.schema import Metrics, Rollout
from verigrad.verifiers.base import Problem

CANARY_TOKENS = 16
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
        self.policy, self.sampler, self.canaries = policy, sampler, canaries
        self.params = SamplingParams(cfg.rollout.temperature, CANARY_TOKENS)
        assert cfg.sync.max_canary_gap is not None, "config.load resolves it"
        assert cfg.sync.max_mismatch_kl is not None, "config.load resolves it"
        self.max_gap, self.max_mismatch_kl = cfg.sync.max_canary_gap, cfg.sync.max_mismatch_kl
        self.adapters_alone = cfg.lora.rank > 0 and cfg.lora.load == "adapter"
        self.exact = cfg.policy.dtype == "float32"
        self.last: tuple[list[Rollout], Tensor] | None = None  # canaries of the last proof, and our logprobs

    def push(self, version: int) -> Metrics:
        """Load the policy's weights into the running engine as `version`, and prove it."""
        if self.adapters_alone:
            with tempfile.TemporaryDirectory(prefix="verigrad-adapter-") as folder:
                self.policy.save_adapter(Path(folder))
                self.sampler.engine.load_adapter(Path(folder))
        else:
            self.sampler.engine.load_weights(self.policy.weights())
        self.sampler.policy_version = version
        return self.prove()

    def prove(self) -> Metrics:
        """Largest gap on the canary prompts; raises WeightSyncError above the limit.

        Also where the trainer's log-probabilities have moved and the sampler repeats its last ones to the
        bit: a single step at a small learning rate stays below any limit that rounding respects.
        """
        arriving = self.sampler.complete(self.canaries, self.params, group_size=1, seed=("canary",))
        rollouts = [group.rollouts[0] for _, group in sorted(arriving, key=lambda pair: pair[0])]
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
                "that trains. Start another run with policy.dtype = 'float32', or with a higher limit if you "
                "know why"
            )
