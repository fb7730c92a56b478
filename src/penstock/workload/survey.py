"""What a trace holds, gathered in one pass and in bounded memory, however long the file is.

Token counts are kept exactly, as a count of each value; gaps too, rounded to four digits. Sessions, clients and block
hashes have as many values as a file likes: of each kind at most `MOST_KEYS` are followed, and when there are more, a
share of them that is chosen by hash (spatial sampling as in SHARDS, Waldspurger et al., FAST 2015).
"""

from __future__ import annotations

import itertools
import zlib
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from penstock.workload.lengths import Counts, Floats
from penstock.workload.trace import Trace, TraceError, TraceHeader, TraceRequest

CHUNK_ROWS = 16_384
GAP_DIGITS = 4
MOST_KEYS = 250_000
N_BINS = 2048
FIRST_BIN_S = 2.0**-10
SCRAMBLE = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: neighbours come to lie far apart
KeyT = TypeVar("KeyT", int, str)


@dataclass(slots=True)
class Distribution:
    """How often each value was seen, in order of the values; sums for the moments."""

    values: Floats = field(default_factory=lambda: np.zeros(0))
    counts: Counts = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    total: float = 0.0
    squares: float = 0.0

    def add(self, values: Floats, *, digits: int | None = None) -> None:
        """digits: keep the values to so many."""
        self.total += float(values.sum())
        self.squares += float(np.square(values).sum())
        kept = values if digits is None else _rounded(values, digits)
        self.values, places = np.unique(np.concatenate([self.values, kept]), return_inverse=True)
        weights = np.concatenate([self.counts, np.ones(kept.size, dtype=np.int64)])
        self.counts = np.bincount(places, weights=weights, minlength=self.values.size).astype(np.int64)

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        return self.total / self.n

    @property
    def cv(self) -> float:
        return float(np.sqrt(max(0.0, self.squares / self.n - self.mean**2))) / self.mean

    def quantiles(self, fracs: Floats) -> Floats:
        """Linear between neighbours, as numpy does it."""
        ends = np.cumsum(self.counts)
        ranks = fracs * (ends[-1] - 1)
        low, high = (self.values[np.searchsorted(ends, at, side="right")] for at in (np.floor(ranks), np.ceil(ranks)))
        between: Floats = low + (high - low) * (ranks - np.floor(ranks))
        return between

    def shares(self) -> tuple[Floats, Floats]:
        """(values, share of what is at most as large)."""
        return self.values, np.cumsum(self.counts) / self.n


def _rounded(values: Floats, digits: int) -> Floats:
    with np.errstate(divide="ignore"):
        powers = np.floor(np.log10(np.abs(values)))
    scales = 10.0 ** np.where(np.isfinite(powers), digits - 1 - powers, 0.0)
    rounded: Floats = np.round(values * scales) / scales
    return rounded


@dataclass(slots=True)
class Followed(Generic[KeyT]):
    """A count for each key; above the limit for a share of the keys, half as many each time."""

    limit: int = MOST_KEYS
    halvings: int = 0
    counts: dict[KeyT, int] = field(default_factory=dict)

    def follows(self, key: KeyT) -> bool:
        code = key if isinstance(key, int) else zlib.crc32(key.encode())
        return self.halvings == 0 or (code * SCRAMBLE & 0xFFFF_FFFF_FFFF_FFFF) >> (64 - self.halvings) == 0

    def add(self, key: KeyT) -> None:
        self.counts[key] = self.counts.get(key, 0) + 1
        while len(self.counts) > self.limit:
            self.halvings += 1
            self.counts = {kept: count for kept, count in self.counts.items() if self.follows(kept)}

    @property
    def scale(self) -> int:
        """How many keys each of the followed ones stands for."""
        return 1 << self.halvings

    @property
    def n(self) -> str:
        """How many keys there are, for a person to read."""
        return f"about {len(self.counts) * self.scale}" if self.halvings else str(len(self.counts))


@dataclass(slots=True)
class Rates:
    """Arrivals by time in `N_BINS` bins at most; they double their width when time goes beyond."""

    width_s: float = FIRST_BIN_S
    counts: Counts = field(default_factory=lambda: np.zeros(N_BINS, dtype=np.int64))

    def add(self, times_s: Floats) -> None:
        while times_s[-1] >= self.width_s * N_BINS:
            halves = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([halves, np.zeros(N_BINS - halves.size, dtype=np.int64)])
            self.width_s *= 2
        self.counts += np.bincount((times_s / self.width_s).astype(np.int64), minlength=N_BINS)

    def per_s(self, stop_s: float, n_bins: int) -> tuple[Floats, Floats]:
        """(starts of at most about n_bins equal stretches up to stop_s, arrivals per second in each)."""
        n_used = max(1, int(np.ceil(stop_s / self.width_s)))
        joined = max(1, n_used // n_bins)
        starts = np.arange(0, n_used, joined)
        counts = np.add.reduceat(self.counts[:n_used], starts)
        lengths_s = np.diff(np.minimum(np.append(starts, n_used) * self.width_s, stop_s))
        per_s: Floats = counts / np.where(lengths_s > 0, lengths_s, self.width_s)
        return np.asarray(starts * self.width_s, dtype=float), per_s


@dataclass(slots=True, kw_only=True)
class Survey:
    """What a trace holds. together: gaps of 0. n_blocks, n_shared: block hashes, and those of a prefix seen before.
    wrong_totals: rows whose total is not the sum of their parts, None where the format has no totals."""

    header: TraceHeader
    first_s: float = 0.0
    last_s: float = 0.0
    failed: int = 0
    together: int = 0
    gaps_s: Distribution = field(default_factory=Distribution)
    inputs: Distribution = field(default_factory=Distribution)
    outputs: Distribution = field(default_factory=Distribution)
    rates: Rates = field(default_factory=Rates)
    turns: Followed[str] = field(default_factory=Followed)
    clients: Followed[str] = field(default_factory=Followed)
    categories: Followed[str] = field(default_factory=Followed)
    blocks: Followed[int] = field(default_factory=Followed)
    n_blocks: int = 0
    n_shared: int = 0
    wrong_totals: int | None = None

    @property
    def requests(self) -> int:
        return self.inputs.n

    def take(self, rows: list[TraceRequest]) -> None:
        times_s = np.array([row.arrival_s for row in rows])
        outputs = np.array([row.output_tokens for row in rows], dtype=float)
        if self.requests == 0:
            self.first_s = float(times_s[0])
            gaps_s = np.diff(times_s)
        else:
            gaps_s = np.diff(times_s, prepend=self.last_s)
        self.last_s = float(times_s[-1])
        self.rates.add(times_s)
        self.together += int((gaps_s == 0).sum())
        self.gaps_s.add(gaps_s, digits=GAP_DIGITS)
        self.inputs.add(np.array([row.input_tokens for row in rows], dtype=float))
        self.outputs.add(outputs)
        self.failed += int((outputs == 0).sum())
        for row in rows:
            self._follow(row)

    def _follow(self, row: TraceRequest) -> None:
        if self.clients.follows(row.client):
            self.clients.add(row.client)
        if self.categories.follows(row.category):
            self.categories.add(row.category)
        if row.session is not None and self.turns.follows(row.session):
            self.turns.add(row.session)
        if not row.block_hashes:
            return
        followed = [one for one in row.block_hashes if self.blocks.follows(one)]
        known = itertools.takewhile(self.blocks.counts.__contains__, followed)
        self.n_shared += sum(1 for _ in known) * self.blocks.scale
        self.n_blocks += len(followed) * self.blocks.scale
        for one in followed:
            self.blocks.add(one)


def survey(trace: Trace) -> Survey:
    """Walk a trace once. Raises TraceError if it has no request."""
    found, rows = Survey(header=trace.header), iter(trace)
    while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
        found.take(chunk)
    if found.requests == 0:
        raise TraceError(f"{trace.header.name}: no request is left")
    found.wrong_totals = None if trace.tally is None else trace.tally.wrong_totals
    return found
