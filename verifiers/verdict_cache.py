"""A problem and an attempt -> the verdict it got before: right, wrong and partial ones, the latest used.

Kept in memory by a pool of workers and never shared with another one, so whatever is found here was said by
the same verifier, with the same options, about the same problem and the same text.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from verigrad.verifiers.base import Attempt, Verdict
from verigrad.verifiers.binding import LoadedVerifier

MAX_ENTRIES = 50_000  # verdicts; each holds its reason and the answer as read, a few hundred bytes
MAX_CHARS = 20_000  # of reason and answer; a longer verdict is not kept
KEPT = ("right", "wrong", "partial")
PER_ATTEMPT = {"index", "seed"}  # who asks for these may judge two equal texts differently


def repeatable(verifier: LoadedVerifier) -> bool:
    """Whether its verdict follows from problem and text alone, as far as it can be told.

    Not of a control, of one that sees siblings, the seed or the attempt's place, nor where its policy says
    `cache = False`.
    """
    policy = verifier.policy
    if policy.control or verifier.group or policy.cache is False:
        return False
    return bool(policy.cache) or not PER_ATTEMPT & {parameter.name for parameter in verifier.wanted}


def cacheable(verifier: LoadedVerifier) -> bool:
    """Whether its verdicts are worth keeping: one that runs inline is as cheap as looking them up."""
    return verifier.policy.runs != "inline" and repeatable(verifier)


class VerdictCache:
    """The latest verdicts by digest; its owner's lock guards it."""

    def __init__(
        self,
        verifier: LoadedVerifier,
        options: Mapping[str, Any],
        *,
        seed: int,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        policy = verifier.policy
        self._base = _digest([verifier.source, verifier.name, policy.version, dict(options), seed])
        self._max_entries = max_entries
        self._verdicts: OrderedDict[bytes, Verdict] = OrderedDict()

    def keys(self, problem: Mapping[str, Any], attempts: Sequence[Attempt]) -> list[bytes | None]:
        """What the attempts at a problem (its JSON form) are found by; None for those of agents.

        The order of a row's columns counts: nothing that a verifier could see is left out.
        """
        of_problem = _digest(problem)
        return [
            None
            if one.transcript or one.snapshot is not None
            else hashlib.sha256(
                self._base + of_problem + (b"cut" if one.truncated else b"end") + _encoded(one.text)
            ).digest()
            for one in attempts
        ]

    def get(self, key: bytes) -> Verdict | None:
        """The verdict of before, which took no time now; None where there is none."""
        if key not in self._verdicts:
            return None
        self._verdicts.move_to_end(key)
        return replace(self._verdicts[key], seconds=0.0)

    def put(self, key: bytes, verdict: Verdict) -> bool:
        """Keep a verdict; False for one that is never kept: undecided, timeout, unparseable."""
        if verdict.outcome not in KEPT or len(verdict.reason) + len(verdict.extracted) > MAX_CHARS:
            return False
        self._verdicts[key] = verdict
        self._verdicts.move_to_end(key)
        if len(self._verdicts) > self._max_entries:
            self._verdicts.popitem(last=False)
        return True

    def __len__(self) -> int:
        return len(self._verdicts)


def _digest(value: Any) -> bytes:
    return hashlib.sha256(json.dumps(value).encode()).digest()


def _encoded(text: str) -> bytes:
    """As bytes of which no other text has the same, half surrogate pairs included."""
    return text.encode("utf-8", "surrogatepass")
