"""Which shared prefixes of a batch are read once for all their rows, and which are not (Hydragen, arXiv 2402.05099).

Attention over a concatenation of keys is a weighted mean of attentions over its parts, so keys that several decoding
rows share may be read once, by all their queries together: a matrix product instead of as many products of a matrix
and a vector. That costs something besides, so each node of the prefix tree is weighed: bytes and arithmetic of both
forms at the rates of the device. What is not worth it is read by each row as ever. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from penstock.runtime.prefix_tree import Node, PrefixTree

MOST_LEVELS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a device does in a second, and what the shared form costs besides.

    read_bytes_per_s: of keys and values when each row reads its own. flop_per_s: of the matrix product over a shared
    run. step_s: of each layer in which anything is shared; run_s: of each run in it.
    """

    read_bytes_per_s: float
    flop_per_s: float
    step_s: float
    run_s: float


# By implementation of `penstock.ops.shared_attention`. Those of the CPU: what both forms took on a core of Zen 4, by
# layers of 16 query and 8 KV heads of 128 and of 4 and 2 of 64, bfloat16. CUDA: from the data sheet of an H200, a third
# of its peak, and two kernels more; with them the figures in docs/benchmarks.md were measured.
RATES: Mapping[str, Rates] = {
    "cpu": Rates(read_bytes_per_s=4e9, flop_per_s=50e9, step_s=20e-6, run_s=250e-6),
    "native": Rates(read_bytes_per_s=22e9, flop_per_s=100e9, step_s=2e-6, run_s=5e-6),
    "cuda": Rates(read_bytes_per_s=4.8e12, flop_per_s=330e12, step_s=6e-6, run_s=0.5e-6),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingRule:
    """Weighs both forms for one layer.

    key_bytes: key and value of one token. key_flop: of one query token (all its heads) and one key. row_bytes: what a
    partial result of one row takes to write and to read again.
    """

    rates: Rates
    key_bytes: int
    key_flop: int
    row_bytes: int
    most_levels: int = MOST_LEVELS

    def __post_init__(self) -> None:
        assert self.most_levels > 0

    def flat_s(self, n_rows: int, tokens: int) -> float:
        """Every row reads these tokens by itself."""
        reading_s = n_rows * tokens * self.key_bytes / self.rates.read_bytes_per_s
        return max(reading_s, n_rows * tokens * self.key_flop / self.rates.flop_per_s)

    def shared_s(self, n_rows: int, tokens: int) -> float:
        """They are read once for all rows, and the parts are joined."""
        n_bytes = tokens * self.key_bytes + n_rows * self.row_bytes
        arithmetic_s = n_rows * tokens * self.key_flop / self.rates.flop_per_s
        return max(n_bytes / self.rates.read_bytes_per_s, arithmetic_s) + self.rates.run_s

    def saved_s(self, n_rows: int, tokens: int) -> float:
        """What sharing saves; negative: it costs. Nothing is shared by fewer than two rows."""
        return self.flat_s(n_rows, tokens) - self.shared_s(n_rows, tokens) if n_rows > 1 else -self.rates.run_s


@dataclass(frozen=True, slots=True)
class Run:
    """Entries [first, stop) of the tables of these rows, equal in all of them. level: runs before it on each row."""

    rows: tuple[int, ...]
    first: int
    stop: int
    level: int


def choose_runs(tree: PrefixTree, rule: SharingRule, block_tokens: int) -> tuple[Run, ...]:
    """The runs to share, from the root on; none if all of them together do not save what sharing costs a layer.

    A node that is not worth a run of its own becomes the beginning of what its children are weighed with. Every entry
    of a row's table is in one of its runs, without a gap, or behind all of them.
    """
    runs, saved_s = [], 0.0
    for node, first, level in _worth_it(tree, rule, block_tokens):
        runs.append(Run(tuple(node.all_rows()), first, node.stop, level))
        saved_s += rule.saved_s(node.n_rows, (node.stop - first) * block_tokens)
    return tuple(runs) if saved_s > rule.rates.step_s else ()


def _worth_it(tree: PrefixTree, rule: SharingRule, block_tokens: int) -> Iterator[tuple[Node, int, int]]:
    """(node, its first entry that no run above covers, its level)."""
    stack = [(tree.root, 0, 0)]
    while stack:
        node, first, level = stack.pop()
        if rule.saved_s(node.n_rows, (node.stop - first) * block_tokens) > 0:
            yield node, first, level
            first, level = node.stop, level + 1
        if level < rule.most_levels:
            stack += [(child, first, level) for child in node.children.values() if child.n_rows > 1]


def saved_tokens(runs: Sequence[Run], block_tokens: int) -> int:
    """Keys of one layer that a step does not read again."""
    return sum((len(run.rows) - 1) * (run.stop - run.first) * block_tokens for run in runs)
