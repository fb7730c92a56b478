"""A trace as arrays, for what must look at all requests at once: 72 bytes a request, kept."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from penstock.workload.lengths import Counts, Floats
from penstock.workload.trace import Trace, TraceRequest

CHUNK_ROWS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """One element per request, in order of arrival. sessions, clients, categories: numbers of their names, in order of
    appearance; a session of -1 is none. pauses_s, elapsed_s: NaN where unknown."""

    arrivals_s: Floats
    inputs: Counts
    outputs: Counts
    sessions: Counts
    turns: Counts
    pauses_s: Floats
    elapsed_s: Floats
    clients: Counts
    categories: Counts
    category_names: tuple[str, ...]

    def of(self, places: Counts) -> Columns:
        """Some of the requests, by mask or place."""
        names = [name for name in self.__dataclass_fields__ if name != "category_names"]
        return Columns(**{name: getattr(self, name)[places] for name in names}, category_names=self.category_names)

    @property
    def has_turns(self) -> bool:
        return bool(((self.sessions >= 0) & (self.turns > 0)).any())


def columns_of(trace: Trace) -> Columns:
    sessions: dict[str, int] = {}
    clients: dict[str, int] = {}
    categories: dict[str, int] = {}

    def numbers(row: TraceRequest) -> tuple[float, ...]:
        return (
            row.arrival_s,
            row.input_tokens,
            row.output_tokens,
            -1 if row.session is None else sessions.setdefault(row.session, len(sessions)),
            row.turn,
            np.nan if row.pause_s is None else row.pause_s,
            np.nan if row.elapsed_s is None else row.elapsed_s,
            clients.setdefault(row.client, len(clients)),
            categories.setdefault(row.category, len(categories)),
        )

    rows, chunks = iter(trace), [np.zeros((0, 9))]
    while chunk := [numbers(row) for row in itertools.islice(rows, CHUNK_ROWS)]:
        chunks.append(np.array(chunk))
    table = np.concatenate(chunks).T
    arrivals_s, inputs, outputs, session, turns, pauses_s, elapsed_s, client, category = table
    return Columns(
        arrivals_s=arrivals_s,
        inputs=inputs.astype(np.int64),
        outputs=outputs.astype(np.int64),
        sessions=session.astype(np.int64),
        turns=turns.astype(np.int64),
        pauses_s=pauses_s,
        elapsed_s=elapsed_s,
        clients=client.astype(np.int64),
        categories=category.astype(np.int64),
        category_names=tuple(categories),
    )
