"""Lengths of grouped rows -> which share a micro-batch, within a token budget; costs -> which rank takes it.

What a group's rows begin with alike counts once in each bin that holds two or more of them. No bin is ever
padded: one that is not full costs a further pass, and a group divided between two costs its beginning again.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from verigrad.engine.prefixes import pays

Row = int
"""A row by its index into the lengths."""

EVEN = 1.02  # a rank's largest cost over the mean that is even enough
BUDGETS = (1.0, 0.98, 0.96, 0.94, 0.92, 0.9, 0.86, 0.82)  # shares of the budget, tried in this order


@dataclass(frozen=True, slots=True)
class Rows:
    """What is to be packed."""

    lengths: Sequence[int]  # tokens of each row
    groups: Sequence[int]  # of each row
    common: Sequence[int]  # of each row: tokens that all rows of its group begin with; 0 shares nothing
    max_tokens: int  # of a bin
    pair_cost: float = 0.0  # of a query attending to a key, in tokens; see `pair_cost`

    def by_group(self) -> list[list[Row]]:
        """The rows of each group, longest first; groups in the order in which they come."""
        members: dict[int, list[Row]] = {}
        for row, group in enumerate(self.groups):
            members.setdefault(group, []).append(row)
        return [sorted(rows, key=lambda row: -self.lengths[row]) for rows in members.values()]

    def size(self, rows: Sequence[Row]) -> int:
        """Tokens computed where rows of one group share a bin."""
        total = sum(self.lengths[row] for row in rows)
        common = self.common[rows[0]] if rows else 0
        return total - common * (len(rows) - 1) if pays(common, len(rows)) else total

    def cost(self, rows: Sequence[Row]) -> float:
        """What rows of one group cost together, in tokens: linear layers, and attention by pairs."""
        common = self.common[rows[0]] if rows and pays(self.common[rows[0]], len(rows)) else 0
        pairs = sum(self.lengths[row] ** 2 - common**2 for row in rows) + common**2
        return self.size(rows) + self.pair_cost * pairs / 2


@dataclass(slots=True)
class Bin:
    """Rows of one micro-batch, by group."""

    rows: Rows
    held: dict[int, list[Row]] = field(default_factory=dict)
    used: int = 0  # tokens
    cost: float = 0.0

    def growth(self, rows: Sequence[Row]) -> int:
        """Tokens that rows of one group would add."""
        held = self.held.get(self.rows.groups[rows[0]], [])
        return self.rows.size([*held, *rows]) - (self.rows.size(held) if held else 0)

    def fits(self, rows: Sequence[Row]) -> bool:
        """Whether rows of one group have room."""
        return self.used + self.growth(rows) <= self.rows.max_tokens

    def add(self, rows: Sequence[Row]) -> None:
        """Put rows of one group in."""
        held = self.held.setdefault(self.rows.groups[rows[0]], [])
        self.used += self.growth(rows)
        self.cost -= self.rows.cost(held)
        held += rows
        self.cost += self.rows.cost(held)

    def members(self) -> list[Row]:
        """Its rows, longest first."""
        found = [row for rows in self.held.values() for row in rows]
        return sorted(found, key=lambda row: (-self.rows.lengths[row], row))


def pair_cost(*, hidden_size: int, num_layers: int, num_parameters: int) -> float:
    """What a query that attends to a key costs, in tokens through all weights.

    Forward and backward a token takes 6 operations per weight, a pair 12 per layer and hidden unit.
    """
    return 2 * hidden_size * num_layers / num_parameters


def pack_rows(rows: Rows) -> list[list[Row]]:
    """Rows in as few bins as six greedy ways find, then with as few tokens; none may exceed the budget.

    Whole groups, divided only where too large; groups that also fill what room others left; rows one by one,
    longest first. Each into the first bin with room, and into the fullest; bins that hold a row's group
    come before others.
    """
    groups = sorted(rows.by_group(), key=lambda group: -rows.size(group))
    one_by_one = sorted(([row] for group in groups for row in group), key=lambda one: -rows.lengths[one[0]])
    whole = [group if rows.size(group) <= rows.max_tokens else None for group in groups]
    ways = [
        _filled(rows, units, parts, fullest=fullest)
        for units, parts in ((whole, groups), ([None] * len(groups), groups), (one_by_one, one_by_one))
        for fullest in (False, True)
    ]
    best = min(ways, key=lambda bins: (len(bins), sum(one.used for one in bins)))
    return [one.members() for one in best]


def _filled(
    rows: Rows, units: Sequence[list[Row] | None], groups: Sequence[list[Row]], *, fullest: bool
) -> list[Bin]:
    """Units in bins in their order; None: the group goes whole where it fits, else divided."""
    bins: list[Bin] = []
    holding: dict[int, list[Bin]] = {}  # group -> bins with rows of it

    def chosen_of(some: Sequence[Bin], unit: list[Row]) -> Bin | None:
        fitting = (one for one in some if one.fits(unit))
        return max(fitting, key=lambda one: one.used, default=None) if fullest else next(fitting, None)

    def place(unit: list[Row], *, open_new: bool = True) -> bool:
        group = rows.groups[unit[0]]
        near = holding.setdefault(group, [])
        chosen = chosen_of(near, unit) or chosen_of(bins, unit)
        if chosen is None and open_new:
            bins.append(chosen := Bin(rows))
        if chosen is None:
            return False
        chosen.add(unit)
        if not any(one is chosen for one in near):
            near.append(chosen)
        return True

    for unit, group in zip(units, groups, strict=True):
        if unit is not None:
            place(unit)
        elif not place(group, open_new=False):
            for row in group:
                place([row])
    return bins


def pack_evenly(rows: Rows, *, num_ranks: int) -> list[list[Row]]:
    """Rows in as many bins for each rank, so that `balance` finds ranks of nearly equal cost.

    As pack_rows where that is even, with a few bins cut in two, or with a somewhat smaller budget; else
    groups are cut into as many parts as evenness asks for. A cut computes a group's beginning once more.
    Raises ValueError for fewer rows than ranks, and where single rows fill bins that do not divide.
    """
    if len(rows.lengths) < num_ranks:
        raise ValueError(
            f"{len(rows.lengths)} rollouts cannot be divided among {num_ranks} ranks; raise "
            "rollout.groups_per_step or rollout.group_size, or use fewer ranks"
        )
    longest, num = max(rows.lengths), num_ranks
    for share in BUDGETS:
        bins = pack_rows(replace(rows, max_tokens=max(longest, int(share * rows.max_tokens))))
        if share == 1:
            bins = _cut(rows, bins, num_ranks)
            num = len(bins)
        if len(bins) % num_ranks == 0 and _uneven([_cost(rows, one) for one in bins], num_ranks) < EVEN:
            return bins
    while True:
        best: tuple[float, list[Bin]] | None = None
        for parts in (1, 2, 4, 8, 16, 32, len(rows.lengths)):
            found = _even(rows, num, parts=parts)
            if found is None or not all(one.held for one in found):
                continue
            uneven = _uneven([one.cost for one in found], num_ranks)
            if best is None or uneven < best[0]:
                best = uneven, found
            if uneven < EVEN:
                break
        if best is not None:
            return [one.members() for one in best[1]]
        num += num_ranks


def _cut(rows: Rows, bins: Sequence[list[Row]], num_ranks: int) -> list[list[Row]]:
    """The bins with the costliest cut in two, group after group, until the ranks can have as many each."""
    done = list(bins)
    while len(done) % num_ranks:
        index = max(range(len(done)), key=lambda i: (len(done[i]) > 1, _cost(rows, done[i])))
        if len(done[index]) < 2:
            raise ValueError(
                f"{len(rows.lengths)} rollouts that fill a micro-batch each do not divide among {num_ranks} "
                "ranks; raise policy.tokens_per_batch, or make rollouts a multiple of the ranks"
            )
        members = sorted(done.pop(index), key=lambda row: (rows.groups[row], -rows.lengths[row], row))
        middle = min(
            range(1, len(members)),
            key=lambda at: max(_cost(rows, members[:at]), _cost(rows, members[at:])),
        )
        done += [members[:middle], members[middle:]]
    return [sorted(some, key=lambda row: (-rows.lengths[row], row)) for some in done]


def _cost(rows: Rows, members: Sequence[Row]) -> float:
    of_group: dict[int, list[Row]] = {}
    for row in members:
        of_group.setdefault(rows.groups[row], []).append(row)
    return sum(rows.cost(some) for some in of_group.values())


def _uneven(costs: Sequence[float], num_ranks: int) -> float:
    """The costliest rank's cost over the mean."""
    loads = [sum(costs[i] for i in indices) for indices in balance(costs, num_ranks)]
    return max(loads) * num_ranks / max(1e-9, sum(loads))


def _even(rows: Rows, num: int, *, parts: int) -> list[Bin] | None:
    """`num` bins, groups in at most `parts` parts, the costliest first into the cheapest; None: no room."""
    units: list[list[Row]] = []
    for group in rows.by_group():
        cuts = min(parts, len(group))
        while any(rows.size(group[i::cuts]) > rows.max_tokens for i in range(cuts)):
            cuts += 1  # a row by itself always fits
        units += [group[i::cuts] for i in range(cuts)]
    bins = [Bin(rows) for _ in range(num)]
    for unit in sorted(units, key=lambda unit: -rows.cost(unit)):
        open_bins = [one for one in bins if one.fits(unit)]
        if not open_bins:
            return None
        min(open_bins, key=lambda one: one.cost).add(unit)
    return bins


def balance(costs: Sequence[float], num_ranks: int) -> list[list[int]]:
    """For each rank the micro-batches it takes: as many as every other, their costs as equal as found.

    Ranks meet at every micro-batch, so all need the same number; ValueError where that cannot be. Greedy,
    longest processing time first, then exchanges between the costliest rank and the others while they help.
    """
    if num_ranks < 1 or len(costs) % num_ranks:
        raise ValueError(f"{len(costs)} micro-batches do not divide among {num_ranks} ranks")
    each = len(costs) // num_ranks
    taken: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [(0.0, rank) for rank in range(num_ranks)]
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        load, rank = heapq.heappop(loads)
        taken[rank].append(index)
        if len(taken[rank]) < each:
            heapq.heappush(loads, (load + costs[index], rank))
    while _exchange(taken, costs):
        pass
    return [sorted(indices) for indices in taken]


def _exchange(taken: list[list[int]], costs: Sequence[float]) -> bool:
    """Swap two micro-batches so that the costliest rank's load falls and no other exceeds it; False: none."""
    loads = [sum(costs[i] for i in indices) for indices in taken]
    most = max(range(len(taken)), key=loads.__getitem__)
    best = (1e-9 * max(1.0, abs(loads[most])), -1, -1, -1)
    for rank, indices in enumerate(taken):
        gap = loads[most] - loads[rank]
        for a, mine in enumerate(taken[most]):
            for b, theirs in enumerate(indices):
                moved = costs[mine] - costs[theirs]
                gain = min(moved, gap - moved)  # by how much the larger of both falls
                if rank != most and gain > best[0]:
                    best = gain, rank, a, b
    _, rank, a, b = best
    if rank < 0:
        return False
    taken[most][a], taken[rank][b] = taken[rank][b], taken[most][a]
    return True


def waste(sizes: Sequence[int], max_tokens: int) -> float:
    """Share of the budget that full micro-batches leave unused, in [0, 1); 0.0 where none could be spared.

    `sizes` are the tokens computed in each. The emptiest is not counted: it holds what is left over. Nothing
    is padded: waste is passes that are less full than they could be, not tokens computed for nothing.
    """
    if len(sizes) <= -(-sum(sizes) // max_tokens):
        return 0.0
    return 1 - (sum(sizes) - min(sizes)) / (max_tokens * (len(sizes) - 1))
