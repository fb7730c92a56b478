"""Which rows read the same blocks: a radix tree over the block tables of the rows that decode. Needs no torch.

A block has one number wherever it is shared, so equal beginnings of two tables are equal keys, and nothing else has to
be known: prefix hits, forks and samples look alike, and prefixes with different salts have no block in common.

A row's shared blocks are fixed when it joins: those before its next input token, all full. What it adds later is its
own. So the tree changes with the members of the group only: a row costs one walk along its table when it joins, and
one towards the root when it leaves.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Blocks = npt.NDArray[np.int32]


class Node:
    """Entries [first, stop) of the tables of all rows below; `rows` end here, the others go on in `children`."""

    __slots__ = ("blocks", "children", "first", "n_rows", "parent", "rows")

    def __init__(self, parent: Node | None, first: int, blocks: Blocks, n_rows: int) -> None:
        self.parent = parent
        self.first = first
        self.blocks = blocks
        self.n_rows = n_rows  # here and below
        self.rows: list[int] = []
        self.children: dict[int, Node] = {}  # by their first block

    @property
    def stop(self) -> int:
        return self.first + len(self.blocks)

    def all_rows(self) -> list[int]:
        """Rows here and below, in a fixed order."""
        found, stack = [], [self]
        while stack:
            node = stack.pop()
            found += node.rows
            stack += node.children.values()
        return found


class PrefixTree:
    """Rows with the blocks that each could share."""

    def __init__(self) -> None:
        self.root = Node(None, 0, np.empty(0, np.int32), 0)
        self._at: dict[int, Node] = {}  # where each row ends

    def __contains__(self, row: int) -> bool:
        return row in self._at

    def __len__(self) -> int:
        return len(self._at)

    def __iter__(self) -> Iterator[int]:
        return iter(self._at)

    def add(self, row: int, blocks: Blocks) -> None:
        """A row joins. blocks: those of its table that are full and before its next input token; kept, not copied."""
        assert row not in self._at, f"row {row} is in the tree already"
        node = self.root
        while True:
            node.n_rows += 1
            rest = blocks[node.stop :]
            child = node.children.get(int(rest[0])) if len(rest) else None
            if child is None:
                break
            n_equal = _equal_blocks(child.blocks, rest)
            node = child if n_equal == len(child.blocks) else _split(child, n_equal)
        if len(rest):
            leaf = Node(node, node.stop, rest, 1)
            node.children[int(rest[0])] = leaf
            node = leaf
        node.rows.append(row)
        self._at[row] = node

    def remove(self, row: int) -> None:
        """A row leaves."""
        node: Node | None = self._at.pop(row)
        assert node is not None
        node.rows.remove(row)
        while node is not None:
            node.n_rows -= 1
            parent = node.parent
            if parent is not None and not node.n_rows:
                del parent.children[int(node.blocks[0])]
            elif parent is not None and not node.rows and len(node.children) == 1:
                self._join(node)
            node = parent

    def _join(self, node: Node) -> None:
        """A node that nobody ends in, and its only child become one."""
        (child,) = node.children.values()
        node.blocks = np.concatenate((node.blocks, child.blocks))
        node.children, node.rows = child.children, child.rows
        for grandchild in node.children.values():
            grandchild.parent = node
        for row in node.rows:
            self._at[row] = node


def _equal_blocks(a: Blocks, b: Blocks) -> int:
    """Length of the common beginning."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n


def _split(node: Node, n_blocks: int) -> Node:
    """Cut a node behind its first `n_blocks`; returns the new upper part."""
    parent = node.parent
    assert parent is not None
    upper = Node(parent, node.first, node.blocks[:n_blocks], node.n_rows)
    parent.children[int(upper.blocks[0])] = upper
    node.parent, node.first, node.blocks = upper, upper.stop, node.blocks[n_blocks:]
    upper.children[int(node.blocks[0])] = node
    return upper
