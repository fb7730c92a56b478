"""Which steps to measure: batches by contexts, chunks by what lies before them, and both together."""

from __future__ import annotations

from dataclasses import dataclass

ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)
CHUNKS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096)
CONTEXTS = (32, 128, 512, 2048, 8192, 32768)
LONGEST_FRAC = 0.9  # of the model's context: the last point on that axis
MIXED_ROWS, MIXED_CHUNKS = 3, 3  # of each axis, spread over it


@dataclass(frozen=True, slots=True)
class Point:
    """A step to measure: rows that decode behind `context` tokens each, and a chunk behind `before` tokens."""

    rows: int = 0
    context: int = 0
    chunk: int = 0
    before: int = 0


def grid(max_rows: int, max_tokens: int, largest_chunk: int) -> tuple[Point, ...]:
    """Every size of a batch and of a chunk with every context that fits it."""
    longest = max_tokens - 1
    last = min(CONTEXTS[-1], int(LONGEST_FRAC * longest))
    contexts = [*(n for n in CONTEXTS if n < last), last]
    rows = [*(n for n in ROWS if n < max_rows), max_rows]
    most = min(largest_chunk, longest - 1)
    chunks = [*(n for n in CHUNKS if n < most), most]
    points = [Point(rows=n, context=c) for n in rows for c in contexts]
    points += [Point(chunk=n, before=b) for n in chunks for b in (0, *contexts) if b + n < longest]
    points += [
        Point(rows=n, context=c, chunk=k)
        for n in spread(rows, MIXED_ROWS)
        for c in contexts[1:3] or contexts
        for k in spread(chunks[1:], MIXED_CHUNKS)
    ]
    return tuple(points)


def spread(values: list[int], n: int) -> list[int]:
    """`n` of them, the last one included."""
    if len(values) <= n:
        return values
    return [values[-1 - k * (len(values) - 1) // n] for k in reversed(range(n))]
