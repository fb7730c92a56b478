"""Ranks of one model in processes of their own, as the first rank sees them.

Theory. All ranks carry out the same plans in the same order, and each makes the same decisions from them: which kernels
run, which graph is captured, what is drawn (every rank has the whole logits, bit for bit, and the streams of chance
depend on seed and place alone). So a plan is all that is sent, nothing comes back, and the first rank answers for all.
What could go wrong silently, ranks that draw different tokens, is watched: each keeps a checksum of what it drew.

A rank that is gone takes the others with it: their sums would wait for ever. The first rank sees the end of its pipe,
stops what waits, and every call from then on says which rank ended how. The other way round, a rank ends when its pipe
from the first one does.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.core.errors import EngineDied, PenstockError, UserError
from penstock.core.plan import Plan
from penstock.models.spec import Shard
from penstock.runtime.rank_messages import (
    Checksum,
    Drew,
    Failed,
    Fits,
    FromRank,
    Setup,
    Submit,
    ToRank,
    frame,
    read_from_rank,
)

if TYPE_CHECKING:
    import torch

    from penstock.runtime.peers import ProcessPeers

log = logging.getLogger(__name__)
OnLost = Callable[[PenstockError], None]
Result = TypeVar("Result")
POLL_S = 0.05
LAST_WORDS_S = 2.0  # a rank's end is seen at its pipe and at its sockets, in either order
PATIENCE_S = 1.0  # a rank has nothing to put in order


class _Rank:
    """One process. `fits` is what it had to say after it planned its memory."""

    def __init__(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        self.rank = rank
        self.process = process
        self.fits: Future[Fits] = Future()

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def end_input(self) -> None:
        """It ends with its input."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            log.debug("rank %d had ended", self.rank)

    def wait(self) -> None:
        """For its end; then insist."""
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Crew:
    """The other ranks: started together, ended together. See `Ranks` for how the first one meets them."""

    def __init__(self, command: Sequence[str], options: bytes, size: int, on_lost: OnLost) -> None:
        """command: starts a rank that reads its `Setup`. on_lost: told once, from a thread, why the crew is lost."""
        self.shard = Shard(0, size)
        self._folder = Path(tempfile.mkdtemp(prefix="penstock-ranks-"))
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._why_lost: PenstockError | None = None
        self._is_closing = False
        self._peers: ProcessPeers | None = None
        self._drew = Checksum()
        self._unmatched: dict[tuple[int, int], int] = {}  # (rank, steps) -> its checksum, until both are known
        self._ranks: list[_Rank] = []
        for number in range(1, size):
            # a session of its own: Ctrl-C is for the front end alone
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
            self._ranks.append(_Rank(number, process))
        self._readers = [threading.Thread(target=self._read, args=(rank,), daemon=True) for rank in self._ranks]
        for reader in self._readers:
            reader.start()
        for rank in self._ranks:
            self._send(rank, Setup(rank.rank, size, str(self._folder / "meeting"), options))

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(rank.process.pid for rank in self._ranks)

    # --- while ranks are built ----------------------------------------------------------------------------------------
    def agree(self, fits: Fits) -> Fits:
        """What fits on every rank, given what fits here. Raises what kept a rank from saying so."""
        found = [fits, *(self._wait_for(rank.fits) for rank in self._ranks)]
        agreed = reduce(Fits.least, found)
        for rank in self._ranks:
            self._send(rank, agreed)
        return agreed

    def connect(self, device: torch.device) -> ProcessPeers:
        """The ranks as peers, when all have come. Raises EngineDied if one does not."""
        from penstock.runtime.peers import ProcessPeers

        coming: Future[ProcessPeers] = Future()

        def come() -> None:
            try:
                coming.set_result(ProcessPeers(self.shard, self._folder / "meeting", device))
            except Exception as error:  # noqa: BLE001  - handed to whoever waits
                coming.set_exception(error)

        threading.Thread(target=come, name="meet", daemon=True).start()  # it may wait long for a rank that has ended
        self._peers = self._wait_for(coming)
        return self._peers

    def _wait_for(self, future: Future[Result]) -> Result:
        while True:
            try:
                return future.result(POLL_S)
            except TimeoutError:
                self.check()

    # --- while they run -----------------------------------------------------------------------------------------------
    def send(self, plan: Plan) -> None:
        """Every rank gets the plan. Raises EngineDied if one is gone."""
        self.check()
        data = frame(Submit(plan))
        for rank in self._ranks:
            self._send_data(rank, data)

    def note(self, tokens: npt.NDArray[np.int32]) -> None:
        """What this rank drew in the next step."""
        drew = self._drew.add(tokens)
        if drew is not None:
            for rank in self._ranks:
                self._compare(rank, drew)

    def check(self) -> None:
        """Raises why the crew is lost, if it is."""
        if self._why_lost is not None:
            raise self._why_lost

    def why_lost(self) -> PenstockError | None:
        """What may stand behind an error of this rank: the end of another one. Waits a little for news of it."""
        deadline_s = time.monotonic() + LAST_WORDS_S
        while self._why_lost is None and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
        return self._why_lost

    def close(self) -> None:
        """End every rank."""
        with self._lock:
            self._is_closing = True
        if self._peers is not None:
            self._peers.abort()  # else NCCL would wait for ranks that are ended next
        for rank in self._ranks:
            rank.end_input()
        for rank in self._ranks:
            rank.wait()
        for reader, rank in zip(self._readers, self._ranks, strict=True):
            reader.join()
            assert rank.process.stdout is not None
            rank.process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _send(self, rank: _Rank, message: ToRank) -> None:
        self._send_data(rank, frame(message))

    def _send_data(self, rank: _Rank, data: bytes) -> None:
        try:
            rank.send(data)
        except BrokenPipeError:
            lost = self.why_lost()
            raise lost or EngineDied(f"rank {rank.rank} takes no more plans") from None

    def _compare(self, rank: _Rank, drew: Drew) -> None:
        """Called twice for each pair of a rank and a number of steps: for its checksum, and for ours."""
        with self._lock:
            other = self._unmatched.pop((rank.rank, drew.steps), None)
            if other is None:
                self._unmatched[rank.rank, drew.steps] = drew.checksum
        if other is not None and other != drew.checksum:
            self._lose(
                EngineDied(f"rank {rank.rank} drew other tokens than rank 0 within the first {drew.steps} steps")
            )

    # --- the reader threads -------------------------------------------------------------------------------------------
    def _read(self, rank: _Rank) -> None:
        assert rank.process.stdout is not None
        try:
            for message in read_from_rank(rank.process.stdout):
                self._take(rank, message)
        except msgspec.DecodeError as wrong:
            self._lose(EngineDied(f"rank {rank.rank} sent what is no message: {wrong}"))
            rank.process.kill()
        code = rank.process.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        self._lose(EngineDied(f"rank {rank.rank} of {self.shard.size} (process {rank.process.pid}) ended {how}"))

    def _take(self, rank: _Rank, message: FromRank) -> None:
        match message:
            case Fits():
                rank.fits.set_result(message)
            case Drew():
                self._compare(rank, message)
            case Failed(text, True):
                self._lose(UserError(text))
            case Failed(text):
                self._lose(EngineDied(f"rank {rank.rank} of {self.shard.size} cannot go on: {text}"))

    def _lose(self, why: PenstockError) -> None:
        with self._lock:
            if self._is_closing or self._why_lost is not None:
                return
            self._why_lost = why
        log.error("%s", why)
        if self._peers is not None:
            self._peers.abort()
        shutil.rmtree(self._folder, ignore_errors=True)  # whoever is told may end the process at once
        self._on_lost(why)
