"""Several annotators' rows about the same two answers -> one row each, and how far the annotators agree."""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from verigrad.engine.data import digest
from verigrad.engine.rows import BadRow, Rows

ANNOTATOR = "annotator"
NUM_DRAWS = 1000  # of the bootstrap


@dataclass(frozen=True, slots=True)
class Vote:
    """What one annotator said of one pair of answers."""

    pair: int  # the same for the same prompt and the same two answers, whichever was preferred
    annotator: str
    choice: Literal["first", "second", "tie"]  # first and second by the answers' own order, not the vote's


def read_vote(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[int, bool, float] | None:
    """(pair, whether `chosen` is the first of the two, share of the vote it has); None for other rows."""

    def value(name: str) -> Any:
        return row.get(columns.get(name, name))

    chosen, rejected = value("chosen"), value("rejected")
    if chosen is None or rejected is None:
        return None
    keys = [digest(chosen), digest(rejected)]
    share = value("p_chosen")
    try:
        share = 1.0 if share is None else float(share)
    except (TypeError, ValueError):
        return None
    if not 0 <= share <= 1:  # nor NaN: whoever reads the row says so
        return None
    return digest([value("prompt"), sorted(keys)]), keys[0] <= keys[1], share


class VotedRows:
    """Rows of which those about the same two answers are one, with `p_chosen` as the votes have it.

    `majority` makes p_chosen 1, 0 or (a draw) 0.5; `share` the mean of the votes. The row that stands for all
    is the first of them. Margins are the mean of those given, counted against where the vote was.
    """

    def __init__(
        self, rows: Rows, columns: Mapping[str, str], *, how: Literal["majority", "share"], margin_column: str
    ) -> None:
        self._rows, self._columns, self._how, self._margin = rows, columns, how, margin_column
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for index in range(len(rows)):
            try:
                vote = read_vote(rows.row(index), columns)
            except BadRow:
                vote = None
            groups[("row", index) if vote is None else vote[0]].append(index)
        self._groups = list(groups.values())

    def __len__(self) -> int:
        return len(self._groups)

    def place(self, index: int) -> str:
        """Where the first of the rows is."""
        return self._rows.place(self._groups[index][0])

    def row(self, index: int) -> Mapping[str, Any]:
        """The first of the rows, with what all together say."""
        members = [self._rows.row(number) for number in self._groups[index]]
        first = members[0]
        votes = [read_vote(row, self._columns) for row in members]
        if votes[0] is None:
            return first
        share, margins = 0.0, []
        for row, vote in zip(members, votes, strict=True):
            assert vote is not None
            same = vote[1] == votes[0][1]
            share += (vote[2] if same else 1 - vote[2]) / len(members)
            if self._margin and isinstance(given := row.get(self._margin), int | float):
                margins.append(given if same else -given)
        if self._how == "majority":
            share = 0.5 if math.isclose(share, 0.5) else float(share > 0.5)
        merged = {**first, self._columns.get("p_chosen", "p_chosen"): min(1.0, max(0.0, share))}
        if margins:
            merged[self._margin] = sum(margins) / len(margins)
        return merged


def votes_of(rows: Rows, columns: Mapping[str, str]) -> list[Vote]:
    """The votes of all rows that name their annotator; malformed rows give none."""
    name = columns.get(ANNOTATOR, ANNOTATOR)
    votes = []
    for index in range(len(rows)):
        try:
            row = rows.row(index)
        except BadRow:
            continue
        read = read_vote(row, columns)
        if read is None or row.get(name) is None:
            continue
        pair, in_order, share = read
        wins = share > 0.5
        choice: Literal["first", "second", "tie"] = "first" if wins == in_order else "second"
        votes.append(Vote(pair, str(row[name]), "tie" if share == 0.5 else choice))
    return votes


# Agreement --------------------------------------------------------------------------------------------------


def agreement(votes: Sequence[Vote], *, seed: int = 0) -> dict[str, Any] | None:
    """How far annotators agree on the pairs that several judged; None where there are none.

    "alpha": Krippendorff's (nominal) with its 95% interval, a bootstrap over pairs; "by_annotator": for each
    the share of its votes that are those of the majority of the others, and how many votes that is of.
    """
    units: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes:
        units[vote.pair].append(vote)
    shared = [unit for unit in units.values() if len({vote.annotator for vote in unit}) > 1]
    if not shared:
        return None
    choices = ("first", "second", "tie")
    counts = np.array([[sum(v.choice == c for v in unit) for c in choices] for unit in shared], np.float64)
    draws = np.random.default_rng([seed, len(shared)]).integers(len(shared), size=(NUM_DRAWS, len(shared)))
    alphas = np.array([krippendorff_alpha(counts[draw]) for draw in draws])
    alphas = alphas[np.isfinite(alphas)]
    low, high = np.quantile(alphas, [0.025, 0.975]) if len(alphas) else (math.nan, math.nan)
    found: dict[str, list[float]] = defaultdict(list)
    for unit in shared:
        for vote in unit:
            others = Counter(v.choice for v in unit if v.annotator != vote.annotator).most_common()
            if others and (len(others) == 1 or others[0][1] > others[1][1]):
                found[vote.annotator].append(float(others[0][0] == vote.choice))
    return {
        "alpha": krippendorff_alpha(counts),
        "alpha_low": float(low),
        "alpha_high": float(high),
        "num_pairs": len(shared),
        "num_votes": int(counts.sum()),
        "by_annotator": {
            name: {"agrees": sum(each) / len(each), "num_votes": len(each)}
            for name, each in sorted(found.items())
        },
    }


def krippendorff_alpha(counts: NDArray[np.float64]) -> float:
    """Agreement beyond chance: 1 - observed / expected disagreement (Krippendorff 2004, ch. 11, nominal).

    counts [U, C]: votes of each unit for each category; units with fewer than two votes do not count. NaN
    where all votes are alike, which shows nothing.
    """
    votes = counts.sum(1)
    counts = counts[votes > 1]
    votes = votes[votes > 1]
    total = counts.sum()
    if not total:
        return math.nan
    same = (counts * (counts - 1)).sum(1) / (votes - 1)  # [U] coincidences within units
    observed = total - same.sum()
    marginal = counts.sum(0)
    expected = (total**2 - (marginal**2).sum()) / (total - 1)
    return float(1 - observed / expected) if expected else math.nan
