"""A completion -> how much of it says again what it said before."""

from collections.abc import Sequence

from verigrad.verifiers.base import Verdict, verifier
from verigrad.verifiers.options import number, one_of, whole, with_options
from verigrad.verifiers.text_units import symbols, words


@verifier(
    "repetition",
    version="1",
    shaping=True,
    deadline_s=5.0,
    canary={"response": "Nothing of this is said twice.", "answer": None},
)
@with_options(n=whole(2, 100), threshold=number(0, 0.99), mode=one_of("gate", "penalty"))
def repetition(response: str, n: int = 20, threshold: float = 0.2, mode: str = "gate") -> Verdict:
    """Right while at most `threshold` of the completion's n-grams of words repeat an earlier one.

    Above it `gate` pays 0; `penalty` falls linearly from 1 at the threshold to 0 where all is repeated.
    Thinking counts. Meant as a part of `combine`: an empty text repeats nothing.

    Source: the n-gram repetition penalty of arXiv 2502.03373, which subtracts from the reward of each token
    of a repeated n-gram (n = 40); ours is the share of such n-grams, one number for the whole completion.
    """
    repeated = max(repeated_frac(words(response), n), repeated_frac(symbols(response), n))
    reason = f"{repeated:.3f} of its {n}-grams are repeated"
    if repeated <= threshold:
        return Verdict.right(reason)
    reward = 1 - (repeated - threshold) / (1 - threshold) if mode == "penalty" else 0.0
    return Verdict(reward, "partial" if reward > 0 else "wrong", reason=reason)


def repeated_frac(units: Sequence[str], n: int) -> float:
    """The share of n-grams that equal an earlier one, 0 for fewer than n + 1 units."""
    # Each unit becomes a small number first, so that an n-gram is cheap to hash.
    codes: dict[str, int] = {}
    numbers = [codes.setdefault(unit, len(codes)) for unit in units]
    count = len(numbers) - n + 1
    if count < 2:
        return 0.0
    return 1 - len({tuple(numbers[at : at + n]) for at in range(count)}) / count
