"""Many instances and one order of events: the trace goes in, and a record per request comes out.

Theory. What happens next is either an arrival or a step of the busy instance whose clock is furthest behind; ties go to
arrivals, then to the lower instance. A step is atomic, as it is for a real engine: what arrives while it runs is seen
before the next one. Instances meet at the dispatcher only, which looks at them as they are when a request arrives.
"""

from __future__ import annotations

import heapq
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import ClassVar, Protocol

from penstock.core.errors import InvalidRequest, Overloaded
from penstock.core.request import Request, SamplingParams
from penstock.core.sequence import FinishReason
from penstock.engine.messages import Update
from penstock.sim.instance import STALL_S, Instance
from penstock.workload.kinds import Pacing
from penstock.workload.prompts import PromptStream
from penstock.workload.records import Outcome, RequestRecord, identity
from penstock.workload.trace import Trace, TraceRequest

MOST_TIMED = 20_000  # requests, the first of a trace, whose record has the time of every token


class Dispatcher(Protocol):
    """Which instance serves a request that has just arrived?

    goes_round: request i of those that arrive is served by instance i modulo their number, whatever they do.
    """

    goes_round: ClassVar[bool]

    def choose(self, request: TraceRequest, instances: Sequence[Instance]) -> Instance: ...


@dataclass(slots=True)
class RoundRobin:
    """One after the other."""

    goes_round: ClassVar[bool] = True
    _next: int = 0

    def choose(self, request: TraceRequest, instances: Sequence[Instance]) -> Instance:
        self._next = (self._next + 1) % len(instances)
        return instances[self._next - 1]


@dataclass(frozen=True, slots=True)
class LeastLoaded:
    """The one with the fewest open requests, running or waiting; of equals the first."""

    goes_round: ClassVar[bool] = False

    def choose(self, request: TraceRequest, instances: Sequence[Instance]) -> Instance:
        return min(instances, key=lambda instance: (instance.n_open, instance.index))


DISPATCHERS: dict[str, type[RoundRobin] | type[LeastLoaded]] = {"round-robin": RoundRobin, "least-loaded": LeastLoaded}


@dataclass(slots=True, kw_only=True)
class Answers:
    """How long answers are, by the seed of their request: its place in the trace."""

    tokens: dict[int, int] = field(default_factory=dict)

    def length_of(self, seed: int) -> int:
        return self.tokens[seed]


@dataclass(slots=True, kw_only=True)
class Fleet:
    """Serves a trace. are_lengths_hidden: requests say no `max_tokens`, so no policy knows how long an answer gets.
    serves: which requests of an open trace, by their place in it, are not passed over.
    """

    instances: Sequence[Instance]
    dispatcher: Dispatcher
    prompts: PromptStream
    answers: Answers
    pacing: Pacing = Pacing.OPEN
    are_lengths_hidden: bool = False
    serves: Callable[[int], bool] = lambda index: True
    records: list[RequestRecord] = field(default_factory=list)
    _samplings: dict[int | None, SamplingParams] = field(default_factory=dict)  # by `max_tokens`
    _times_s: dict[str, array[float]] = field(default_factory=dict)  # of the tokens of open requests
    _due_s: dict[int, float] = field(default_factory=dict)  # by busy instance
    _open: dict[str, tuple[int, TraceRequest, float]] = field(default_factory=dict)
    _later_turns: defaultdict[str, deque[tuple[int, TraceRequest]]] = field(default_factory=lambda: defaultdict(deque))

    def run(self, trace: Trace, on_progress: Callable[[int, float], None] = lambda n, s: None) -> None:
        """Until every request has its record. on_progress: (requests that ended, virtual seconds).

        An exception (a person's interrupt, say) leaves the records of what has ended.
        """
        arrivals = self._arrivals(trace)
        upcoming: list[tuple[float, int, TraceRequest]] = []  # later turns of sessions, a heap
        following = next(arrivals, None)
        busy: list[tuple[float, int]] = []  # (when its next step begins, instance), a heap; see `_due_s`
        while busy or upcoming or following is not None:
            if upcoming and (following is None or upcoming[0][:2] < following[:2]):
                arrival, is_later_turn = upcoming[0], True
            else:
                arrival, is_later_turn = following, False  # type: ignore[assignment]
            if arrival is not None and (not busy or arrival[0] <= busy[0][0]):
                if is_later_turn:
                    heapq.heappop(upcoming)
                else:
                    following = next(arrivals, None)
                instance = self._dispatch(*arrival)
                self._note_due(instance, busy)
                continue
            due_s, index = heapq.heappop(busy)
            if due_s != self._due_s.get(index):
                continue  # it was given something meanwhile
            instance = self.instances[index]
            self._leap(instance)
            updates, now_s = instance.engine.step(), instance.clock.now_s()
            for update in updates:
                times_s = self._times_s.get(update.request_id)
                if times_s is not None:
                    times_s.extend((now_s,) * len(update.tokens))
                if update.finish is not None:
                    self._end(update, instance, upcoming)
                    on_progress(len(self.records), now_s)
            if instance.engine.is_stalled:
                instance.clock.advance(STALL_S)
            self._note_due(instance, busy)
        self.records.sort(key=lambda record: record.index)

    def _arrivals(self, trace: Trace) -> Iterator[tuple[float, int, TraceRequest]]:
        """Requests that arrive at their own time; of a closed-loop session the first turn only."""
        rows = enumerate(trace)
        if self.pacing is Pacing.OPEN:
            yield from ((row.arrival_s, index, row) for index, row in rows if self.serves(index))
            return
        known = list(rows)
        seen: set[str] = set()
        for index, row in known:
            if row.session is not None and row.session in seen:
                self._later_turns[row.session].append((index, row))
            seen |= {row.session} if row.session is not None else set()
        later = {index for turns in self._later_turns.values() for index, _ in turns}
        yield from ((row.arrival_s, index, row) for index, row in known if index not in later)

    def _leap(self, instance: Instance, until_s: float = inf) -> None:
        updates, ends_s = instance.engine.leap(until_s)
        for update in updates:
            times_s = self._times_s.get(update.request_id)
            if times_s is not None:
                times_s.extend(ends_s)

    def _note_due(self, instance: Instance, busy: list[tuple[float, int]]) -> None:
        """Say when an instance has to take a step that is not like the last; what was said before is void."""
        if instance.engine.has_work:
            due_s = self._due_s[instance.index] = instance.engine.steady_until_s()
            heapq.heappush(busy, (due_s, instance.index))
        else:
            self._due_s.pop(instance.index, None)

    def _dispatch(self, at_s: float, index: int, row: TraceRequest) -> Instance:
        """Give a request to an instance, which may refuse it."""
        instance = self.dispatcher.choose(row, self.instances)
        self._leap(instance, at_s)
        instance.clock.wait_until(at_s)
        n_output = max(1, row.output_tokens)
        prompt = self.prompts.prompt(index, row)
        ids = self.prompts.ids(index, row) if isinstance(prompt, str) else prompt
        request = Request(
            id=f"{index:09d}",  # of those that arrive at one time, the first in the trace is first
            prompt=ids,
            sampling=self._sampling(None if self.are_lengths_hidden else n_output),
            arrival_s=at_s,
            seed=index,
            client=row.client,
            category=row.category,
            objective=row.objective,
        )
        self.answers.tokens[index] = n_output
        try:
            instance.engine.add(request)
        except (Overloaded, InvalidRequest) as refused:
            outcome = Outcome.REFUSED if isinstance(refused, Overloaded) else Outcome.ERROR
            record = RequestRecord(index=index, scheduled_s=at_s, outcome=outcome, error=str(refused), **identity(row))
            self.records.append(replace(record, sent_s=at_s, end_s=at_s))
        else:
            self._open[request.id] = index, row, at_s
            if index < MOST_TIMED:
                self._times_s[request.id] = array("d")
        return instance

    def _sampling(self, max_tokens: int | None) -> SamplingParams:
        """Made and checked once for all answers of one length."""
        known = self._samplings.get(max_tokens)
        if known is None:
            known = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=max_tokens is not None)
            self._samplings[max_tokens] = known
        return known

    def _end(self, update: Update, instance: Instance, upcoming: list[tuple[float, int, TraceRequest]]) -> None:
        index, row, sent_s = self._open.pop(update.request_id)
        del self.answers.tokens[index]
        stats, end_s = update.stats, instance.clock.now_s()
        assert stats is not None
        times_s = self._times_s.pop(update.request_id, None)
        if times_s is not None:
            token_s = tuple(times_s)
        else:
            token_s = () if stats.ttft_s is None else (min(sent_s + stats.ttft_s, end_s), end_s)
        is_ok = update.finish in (FinishReason.STOP, FinishReason.LENGTH) and stats.ttft_s is not None
        self.records.append(
            RequestRecord(
                index=index,
                scheduled_s=sent_s,
                sent_s=sent_s,
                end_s=end_s,
                outcome=Outcome.OK if is_ok else Outcome.ERROR,
                token_s=token_s,
                has_gaps=times_s is not None,
                prompt_tokens=stats.prompt_tokens,
                completion_tokens=stats.output_tokens,
                cached_tokens=stats.cached_tokens,
                queue_ms=None if stats.queue_s is None else stats.queue_s * 1e3,
                **identity(row),
            )
        )
        turns = self._later_turns.get(row.session) if row.session is not None else None
        if turns:
            later_index, later = turns.popleft()
            pause_s = later.arrival_s - row.arrival_s if later.pause_s is None else later.pause_s
            heapq.heappush(upcoming, (end_s + pause_s, later_index, later))
