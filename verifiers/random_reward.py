"""The control: a reward that knows nothing, to show what training on noise looks like."""

import hashlib

from verigrad.verifiers.base import Verdict, verifier


@verifier("random", version="1", runs="inline", control=True)
def random_reward(problem_id: str, response: str, index: int, seed: int, p: float = 0.5) -> Verdict:
    """Right with probability p, whatever the attempt says.

    The draw depends on the seed, the problem's id, the attempt's text and its place in the group, and on
    nothing else, so a resumed run draws the same rewards.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"random: p = {p}; expected a probability between 0 and 1")
    key = "\0".join((str(seed), problem_id, str(index), response))
    draw = int.from_bytes(hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest()) / 2**64
    return Verdict.right("drawn") if draw < p else Verdict.wrong("not drawn")
