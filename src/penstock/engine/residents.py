"""The sequences that hold a row: how they come, rest, yield and go.

A resident sequence has known tokens to compute (`prefilling`), decodes, rests (paused), waits until what it starts from
has arrived from the host (`arriving`), or has all its outputs planned and waits for the last ones to be collected.
"""

from __future__ import annotations

from penstock.cache.memory import Change, Memory
from penstock.core.sequence import SeqState, Sequence
from penstock.core.view import Yield
from penstock.engine.decoding import Decoding
from penstock.engine.draft import Draft
from penstock.engine.queue import WaitQueue


class Residents:
    """Rows, and what the next plan must tell the device of them. Those who yield go back to the queue."""

    def __init__(self, memory: Memory, queue: WaitQueue, max_rows: int) -> None:
        self.max_rows = max_rows
        self.by_row: dict[int, Sequence] = {}  # in the order of admission
        self.prefilling: dict[int, Sequence] = {}
        self.decoding = Decoding()
        self.draft = Draft()
        self.preemptions = 0
        self._places: dict[int, int] = {}  # by row: who comes first among those who compute, if all else is equal
        self._n_places = 0
        self._memory = memory
        self._queue = queue
        self._paused: dict[int, bool] = {}  # by row; True: it was decoding
        self._arriving: dict[int, int | None] = {}  # by row: the plan that moves its state; None: the next one
        self._free_rows = list(range(max_rows - 1, -1, -1))

    @property
    def n_free_rows(self) -> int:
        return len(self._free_rows)

    @property
    def has_free_row(self) -> bool:
        return bool(self._free_rows)

    @property
    def has_paused(self) -> bool:
        return bool(self._paused)

    @property
    def is_changing(self) -> bool:
        """Somebody rests or waits for what it starts from, or the next plan has something to tell but who has ended."""
        return bool(self._paused or self._arriving) or not self.draft.has_only_ends

    @property
    def somebody_runs(self) -> bool:
        """Otherwise memory lies with paused sequences, and only one of these can give it back."""
        return any(seq.state is SeqState.RUNNING for seq in self.by_row.values())

    # --- coming ---------------------------------------------------------------------------------------------------
    def draw_place(self) -> int:
        """Among those who compute: the last one by now."""
        self._n_places += 1
        return self._n_places

    def enter(self, seq: Sequence, computed_tokens: int, place: int | None, *, is_arriving: bool) -> int:
        """A queued sequence, whose memory is there, gets a row: the answer. `is_arriving`: its state is on its way.

        place: of those who compute; None: the last.
        """
        row = self._free_rows.pop()
        self._places[row] = self.draw_place() if place is None else place
        self._queue.remove(seq)
        seq.row = row
        seq.move(SeqState.RUNNING)
        seq.plan_to(computed_tokens)
        self.by_row[row] = seq
        if is_arriving:
            self._arriving[row] = None
        else:
            self.prefilling[row] = seq
            if place is not None:
                self._let_pass([other for other in self.prefilling if self._places[other] > place])
        return row

    def _let_pass(self, rows: list[int]) -> None:
        """These come behind all others of those who compute, in the order in which they are."""
        for row in rows:
            self.prefilling[row] = self.prefilling.pop(row)

    def note_change(self, seq: Sequence, change: Change) -> None:
        """A resident sequence was given memory."""
        assert seq.row is not None
        self.draft.grows.extend(change.grows)
        self.draft.copies.extend((seq.row, copy) for copy in change.copies)

    def finish_prompt(self, seq: Sequence) -> None:
        """All known tokens are planned: it decodes from the next step on."""
        assert seq.row is not None
        del self.prefilling[seq.row]
        if seq.planned_outputs < seq.output_limit_tokens:
            self._decode(seq)

    def _decode(self, seq: Sequence) -> None:
        self.decoding.join(seq, self._memory.capacity_tokens(seq))

    # --- arriving -------------------------------------------------------------------------------------------------
    def note_departed(self, plan_id: int) -> None:
        """The moves that arriving sequences wait for go out with this plan."""
        if self._arriving:
            self._arriving = {
                row: plan_id if waits_for is None else waits_for for row, waits_for in self._arriving.items()
            }

    def note_landed(self, plan_id: int) -> None:
        self._let_in([row for row, waits_for in self._arriving.items() if waits_for == plan_id])

    def hurry(self) -> bool:
        """If nobody else has anything to compute, waiting gains nothing: the device itself then waits for the bytes.

        Whether that is so.
        """
        is_idle = bool(self._arriving) and not self.prefilling and not len(self.decoding)
        if is_idle:
            self._let_in(list(self._arriving))
        return is_idle

    def _let_in(self, rows: list[int]) -> None:
        for row in rows:
            del self._arriving[row]
            self.prefilling[row] = self.by_row[row]

    # --- resting and yielding -------------------------------------------------------------------------------------
    def pause(self, seq: Sequence) -> None:
        """A running sequence keeps row and memory, and is not planned until it wakes."""
        assert seq.row is not None
        seq.move(SeqState.PAUSED)
        self._paused[seq.row] = seq.is_decoding
        self._rest(seq, seq.row)
        self._queue.add(seq)

    def wake(self, seq: Sequence) -> None:
        assert seq.row is not None
        seq.move(SeqState.RUNNING)
        self._queue.remove(seq)
        if self._paused.pop(seq.row):
            self._decode(seq)
        elif seq.prefill_left_tokens > 0:
            self.prefilling[seq.row] = seq

    def preempt(self, seq: Sequence, how: Yield, now_s: float) -> None:
        """A resident sequence gives its memory up, and computes everything again or is copied back later."""
        self.preemptions += 1
        was_queued = seq.state is SeqState.PAUSED
        self._leave_row(seq)
        if how is Yield.SWAP:
            self._memory.swap_out(seq)
            seq.swaps += 1
            seq.move(SeqState.SWAPPED)
        else:
            self._memory.release(seq, now_s, is_over=False)
            seq.rewind()
            seq.move(SeqState.WAITING)
        if not was_queued:
            self._queue.add(seq)

    def vacate(self, seq: Sequence, now_s: float) -> None:
        """A resident sequence is over."""
        self._leave_row(seq)
        self._memory.release(seq, now_s, is_over=True)

    def _leave_row(self, seq: Sequence) -> None:
        """Plans already out still run on its blocks, in order."""
        row = seq.row
        assert row is not None
        self._rest(seq, row)
        self._paused.pop(row, None)
        del self.by_row[row], self._places[row]
        self.draft.end(row)
        self._free_rows.append(row)
        seq.row = None

    def _rest(self, seq: Sequence, row: int) -> None:
        if seq.is_decoding:
            self.decoding.leave(seq)
        self.prefilling.pop(row, None)
        self._arriving.pop(row, None)

    def audit(self) -> None:
        """Check that every row and its sequence agree; raises AssertionError."""
        assert len(self._free_rows) + len(self.by_row) == self.max_rows, "a row leaked"
        for row, seq in self.by_row.items():
            assert seq.row == row, f"{seq} sits in row {row}"
            assert seq.state in (SeqState.RUNNING, SeqState.PAUSED), f"{seq} holds row {row}"
        assert set(self._arriving) <= set(self.by_row), "somebody without a row waits for his state"
