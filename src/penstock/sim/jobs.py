"""A fleet whose instances never meet, simulated by several processes: the same records as one process makes.

Theory. A dispatcher that goes round gives request i to instance i modulo their number, whatever the instances do. So an
instance needs its own requests only, and each process (a job) simulates some of the instances, walks the whole trace,
and passes over what others serve. Records come back as they are made, and are put into the order of the trace.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

import msgspec

from penstock.core.errors import ConfigError, PenstockError
from penstock.sim.fleet import DISPATCHERS
from penstock.sim.run import Setup, Share, fleet_of
from penstock.workload.kinds import Pacing
from penstock.workload.records import RequestRecord
from penstock.workload.trace import Trace

SENT_EVERY = 1000  # records


class JobFailed(PenstockError):
    """A process of a simulation ended before its share was done."""


class Batch(msgspec.Struct, array_like=True):
    """What a job has to say. at_s: virtual time. failure: the trace of what broke it. It ends with an empty message."""

    records: list[RequestRecord]
    at_s: float = 0.0
    failure: str = ""


_decoder = msgspec.msgpack.Decoder(Batch)


def most_jobs(setup: Setup) -> int:
    """Processes that could share the work; 1: its instances meet, and only one process can simulate them."""
    is_apart = DISPATCHERS[setup.dispatch].goes_round and setup.pacing is Pacing.OPEN
    return setup.n_instances if is_apart else 1


@dataclass(slots=True, kw_only=True)
class Jobs:
    """As a `Fleet`, in `n_jobs` processes. setup, make_trace: are sent to them, so both can be pickled.

    Raises ConfigError if the instances meet.
    """

    setup: Setup
    make_trace: Callable[[], Trace]
    n_jobs: int
    records: list[RequestRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.n_jobs > most_jobs(self.setup):
            raise ConfigError(
                f"{self.n_jobs} jobs for {self.setup.n_instances} instances behind {self.setup.dispatch!r} with "
                f"{self.setup.pacing.value} pacing: at most {most_jobs(self.setup)} can work apart. "
                "More can with --instances, --dispatch round-robin and open pacing"
            )

    def run(self, on_progress: Callable[[int, float], None] = lambda n, s: None) -> None:
        """Until every request has its record. on_progress: (requests that ended, virtual seconds of some instance).

        An exception (a person's interrupt, say) ends the jobs, and leaves the records that they had sent.
        """
        context = multiprocessing.get_context("spawn")  # a fork would take locks of this process's threads along
        ends: list[Connection] = []
        processes = []
        try:
            for job in range(self.n_jobs):
                ours, theirs = context.Pipe()
                share = Share(job=job, n_jobs=self.n_jobs)
                process = context.Process(target=_work, args=(self.setup, self.make_trace, share, theirs))
                process.start()
                theirs.close()
                processes.append(process)
                ends.append(ours)
            self._gather(ends, on_progress)
        except BaseException:
            for process in processes:
                process.terminate()  # what it has not sent is lost
            raise
        finally:
            for process in processes:
                process.join()
            for end in ends:
                end.close()
            self.records.sort(key=lambda record: record.index)

    def _gather(self, ends: list[Connection], on_progress: Callable[[int, float], None]) -> None:
        working = {end: f"job {job} of {self.n_jobs}" for job, end in enumerate(ends)}
        while working:
            for end in wait(list(working)):
                assert isinstance(end, Connection)
                try:
                    message = end.recv_bytes()
                except EOFError:
                    raise JobFailed(f"{working[end]} was ended from outside; was memory short?") from None
                if not message:
                    del working[end]
                    continue
                batch = _decoder.decode(message)
                if batch.failure:
                    raise JobFailed(f"{working[end]} failed:\n{batch.failure}")
                self.records += batch.records
                on_progress(len(self.records), batch.at_s)


def _work(setup: Setup, make_trace: Callable[[], Trace], share: Share, end: Connection) -> None:
    """One job, in its own process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it decides
    try:
        _simulate(setup, make_trace(), share, end)
        end.send_bytes(b"")
    except BrokenPipeError:
        pass  # nobody waits for the rest
    except Exception:  # noqa: BLE001  whatever it was, the process that waits for it tells
        end.send_bytes(msgspec.msgpack.encode(Batch([], failure=traceback.format_exc())))


def _simulate(setup: Setup, trace: Trace, share: Share, end: Connection) -> None:
    fleet = fleet_of(setup, trace, share)

    def send(at_s: float) -> None:
        end.send_bytes(msgspec.msgpack.encode(Batch(fleet.records, at_s)))
        fleet.records.clear()

    def send_some(n: int, at_s: float) -> None:
        if n >= SENT_EVERY:
            send(at_s)

    fleet.run(trace, send_some)
    send(max(instance.clock.now_s() for instance in fleet.instances))
