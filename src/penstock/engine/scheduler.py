"""The mechanism around the policies: it asks them, checks the answers, moves memory and states, and keeps the books.

One turn: `plan` (pins expire, some yield, some start, the batch is chosen, memory is bound to it), then later
`collect` with the result of an earlier plan. Several plans may be out at once; a result whose sequence was preempted
or ended meanwhile is stale and dropped. Nothing here knows what executes a plan, or whether time is real.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec

from penstock.cache.memory import Memory
from penstock.core.errors import InvalidRequest, Overloaded, PolicyViolation
from penstock.core.executor import Foresight, ModelFacts, StepResult, TokenLogprobs
from penstock.core.plan import NO_DECODE, BlockCopy, Chunk, Leap, Plan, RowStart
from penstock.core.request import Request
from penstock.core.sequence import ENDED, FinishReason, SeqState, Sequence
from penstock.core.view import Admission, View, Yield
from penstock.engine.costs import OnlineCosts
from penstock.engine.draft import Draft, Planned
from penstock.engine.followers import Followers
from penstock.engine.leaps import Leaps
from penstock.engine.ledger import Ledger
from penstock.engine.limits import QueueLimits, check_objective, check_request, output_limit_tokens
from penstock.engine.messages import Update
from penstock.engine.outputs import RequestStats
from penstock.engine.queue import WaitQueue
from penstock.engine.residents import Residents
from penstock.engine.siblings import Siblings
from penstock.policy.checks import check_choice
from penstock.policy.presets import EVENTS, Policies, observers_of

SEED_STRIDE = 0x9E3779B97F4A7C15  # keeps the samples of one request apart; odd, so all 2**63 multiples differ


class Scheduler:
    """Decides for one instance. Not thread safe: one loop owns it."""

    def __init__(
        self,
        facts: ModelFacts,
        memory: Memory,
        policies: Policies,
        max_rows: int,
        limits: QueueLimits | None = None,
        costs: OnlineCosts | None = None,
    ) -> None:
        self.facts = facts
        self.memory = memory
        self.policies = policies
        self.max_rows = max_rows
        self.costs = costs or OnlineCosts(facts)
        self.ledger = Ledger()
        self.updates: list[Update] = []
        self._limits = limits or QueueLimits()
        self._queue = WaitQueue(policies.order)
        self._residents = Residents(memory, self._queue, max_rows)
        self._followers = Followers(memory, self._residents)
        self.leaps = Leaps(self._residents, self._queue, memory, policies)
        self._siblings = Siblings(memory)
        self._prompt_logprobs: dict[str, list[TokenLogprobs]] = {}
        self._next_plan_id = 0
        self._now_s = 0.0
        self._watching = {event: observers_of(policies, event) for event in EVENTS}

    # --- requests come and go -----------------------------------------------------------------------------------------
    @property
    def n_waiting(self) -> int:
        return len(self._queue) + len(self._siblings)

    @property
    def queue_tokens(self) -> int:
        """Prompt tokens of all that wait, those whose sample 0 computes their prompt included."""
        return self._queue.tokens + self._siblings.tokens

    @property
    def n_running(self) -> int:
        return len(self._residents.by_row)

    @property
    def preemptions(self) -> int:
        """Sequences that lost their memory so far, swapped ones included."""
        return self._residents.preemptions

    @property
    def has_work(self) -> bool:
        return bool(self.ledger.n_open)

    def add(self, request: Request, now_s: float) -> None:
        """Accept a request: from now on it ends in exactly one record.

        Raises PromptTooLong, NeverFits, InvalidRequest or Overloaded, and then it was not accepted.
        """
        self._now_s = now_s
        try:
            if request.id in self.ledger:
                raise InvalidRequest(f"request id {request.id!r} is in use: give each its own", param="request_id")
            check_request(request, self.facts, self.memory)
            self._limits.check(self.n_waiting, self.queue_tokens, request, self.ledger, now_s)
            check_objective(self.policies.admit, request, self._view())
        except Overloaded as full:
            self.ledger.refuse(full.reason)
            raise
        except InvalidRequest as wrong:
            self.ledger.refuse(wrong.code)
            raise
        limit = output_limit_tokens(request, self.facts, self.memory)
        eos = frozenset() if request.sampling.ignore_eos else self.facts.stop_token_ids
        stops = eos | frozenset(request.sampling.stop_token_ids)
        samples = [Sequence(request, k, limit, stops) for k in range(request.sampling.n)]
        self.ledger.accept(request, samples)
        self._queue.add(samples[0])
        self._siblings.add(request, samples[1:])
        for observer in self._watching["on_arrival"]:
            for seq in samples:
                observer.on_arrival(seq, self._view())

    def abort(self, request_id: str, now_s: float, reason: FinishReason = FinishReason.ABORT) -> None:
        """End every sample of a request; one that is over already stays as it is."""
        self._now_s = now_s
        for seq in list(self.ledger.samples(request_id)):
            if seq.state not in ENDED:
                self._end(seq, reason)

    def finish(self, request_id: str, index: int, output_tokens: int, now_s: float) -> None:
        """A stop string was found behind the first `output_tokens` outputs of a sample: it ends there."""
        self._now_s = now_s
        samples = self.ledger.samples(request_id)
        if not 0 <= index < len(samples) or samples[index].state in ENDED:
            return  # it ended by itself meanwhile
        seq = samples[index]
        # another array: keys of what is computed already may yet be worked out from the old one
        seq.tokens = seq.tokens[: len(seq.request.prompt) + max(0, output_tokens)]
        self._end(seq, FinishReason.STOP)

    # --- planning -----------------------------------------------------------------------------------------------------
    def plan(self, now_s: float) -> Planned | None:
        """The next step; None if nobody can run now."""
        self._now_s = now_s
        self.memory.tick(now_s)
        view = self._view()
        if self._yield_by_choice(view):
            view = self._view()
        has_begun, is_hurried = self._admit(view), self._residents.hurry()
        if has_begun or is_hurried:
            view = self._view()
        choice = self.policies.batch.batch(view)
        check_choice(self.policies.batch, choice, view, self._residents.prefilling)
        return self._bind(choice)

    def _view(self) -> View:
        return View(
            now_s=self._now_s,
            waiting=self._queue.members(),
            prefilling=tuple(self._residents.prefilling.values()),
            decoding=self._residents.decoding.group,
            running=tuple(self._residents.by_row.values()),
            memory=self.memory,
            lengths=self.policies.predict,
            costs=self.costs,
            n_layers=self.facts.n_layers,
            max_rows=self.max_rows,
        )

    def _yield_by_choice(self, view: View) -> bool:
        """Whether somebody did."""
        preemptions = self.policies.preempt.choose(view)
        for preemption in preemptions:
            seq = self._residents.by_row.get(preemption.row)
            if seq is None or seq.state is not SeqState.RUNNING:
                raise PolicyViolation(self.policies.preempt, f"row {preemption.row} does not run")
            if preemption.how is Yield.PAUSE:
                self._residents.pause(seq)
            else:
                self._preempt(seq, preemption.how)
        return bool(preemptions)

    def _preempt(self, seq: Sequence, how: Yield) -> None:
        """A resident sequence loses its memory; in the way that the policy chose, if that can be."""
        if how is Yield.SWAP and self.memory.swap_bytes(seq) is None:
            raise PolicyViolation(self.policies.preempt, f"row {seq.row} cannot be swapped now")
        if how is Yield.RECOMPUTE:
            self._prompt_logprobs.pop(seq.id, None)
        self._residents.preempt(seq, how, self._now_s)

    def _admit(self, view: View) -> bool:
        """Whether somebody started, or goes on."""
        residents, has_begun = self._residents, False
        if not len(self._queue) or not (residents.has_free_row or residents.has_paused):
            return False
        following: list[Sequence] = []
        for seq in tuple(self._queue.ordered(view)):
            if seq.row is None and residents.n_free_rows <= len(following):
                continue  # a paused one behind it has its row
            if self._followers.follows(seq):
                following.append(seq)
                continue
            if seq.state is SeqState.SWAPPED and seq.total_tokens <= seq.planned_tokens:
                continue  # the token that it goes on from is still in flight
            if len(view.following) < len(following):
                view = msgspec.structs.replace(view, following=tuple(following))
            answer = self.policies.admit.admit(seq, view)
            if answer is Admission.WAIT:
                break
            if answer is Admission.FOLLOW and self._followers.try_follow(seq):
                following.append(seq)
            elif answer is not Admission.SKIP:
                if self._start(seq):
                    view, has_begun = msgspec.structs.replace(self._view(), following=tuple(following)), True
                elif residents.somebody_runs:
                    break
        return has_begun

    def _start(self, seq: Sequence) -> bool:
        """Give a waiting sequence a row and its prefix hit, or let one go on that is paused or swapped.

        False if there is no memory for a fork, or for what was swapped.
        """
        if seq.state is SeqState.PAUSED:
            self._residents.wake(seq)
            return True
        n_arriving = self.memory.n_arriving
        if seq.state is SeqState.SWAPPED:
            swapped = self.memory.try_swap_in(seq)
            if swapped is None:
                return False
            self._begin(seq, seq.planned_tokens, swapped, is_arriving=self.memory.n_arriving > n_arriving)
            return True
        copies: tuple[BlockCopy, ...] = ()
        parent = self._siblings.parent_of(seq)
        if parent is not None:
            fork = self.memory.try_fork(parent[0], seq, parent[1])
            if fork is None:
                return False
            hit, tables, copies = fork.tokens, fork.tables, fork.copies
        else:
            hit, tables = self.memory.start(seq)
            if seq.epoch == 0:
                seq.cached_tokens = hit
        self._siblings.note_started(seq)
        row = self._begin(seq, hit, tables, is_arriving=self.memory.n_arriving > n_arriving)
        self._residents.draft.copies.extend((row, copy) for copy in copies)
        return True

    def _begin(
        self, seq: Sequence, computed_tokens: int, tables: tuple[tuple[int, ...], ...], *, is_arriving: bool
    ) -> int:
        place = self._followers.take_place(seq)
        row = self._residents.enter(seq, computed_tokens, place, is_arriving=is_arriving)
        self._residents.draft.starts[row] = RowStart(
            row=row,
            tokens=seq.tokens[:],
            prompt_tokens=len(seq.request.prompt),
            computed_tokens=computed_tokens,
            blocks=tables,
            sampling=seq.request.sampling,
            seed=(seq.request.seed + seq.index * SEED_STRIDE) % 2**63,
        )
        return row

    def _bind(self, choice: Plan) -> Planned | None:
        """Give memory to what was chosen, preempting where it is short; then everything chosen counts as planned."""
        residents, draft, decoding = self._residents, self._residents.draft, self._residents.decoding
        is_decode_step = choice.decode is not NO_DECODE and len(decoding) > 0
        if is_decode_step:
            for seq in decoding.take_full():
                if seq.is_decoding and self._make_room(seq, self.memory.decode_tokens(seq)):
                    decoding.note_grown(seq, self.memory.capacity_tokens(seq))
        for chunk in choice.chunks:
            chunk_seq = residents.prefilling.get(chunk.row)
            if chunk_seq is not None:
                chunk = self._within_bound(chunk)
                draft.chunks[chunk.row] = chunk
                self._make_room(chunk_seq, chunk.stop)
        decode = decoding.group if is_decode_step else NO_DECODE
        if not decode.rows and not draft.chunks and not self.memory.has_moves:
            return None  # what the draft says of ends goes out with the next step
        return self._commit(decode is not NO_DECODE)

    def _within_bound(self, chunk: Chunk) -> Chunk:
        """No more tokens than memory takes in a step. A pass that was begun stays whole: it was bounded then."""
        bound = self.memory.chunk_tokens
        return chunk if bound is None or chunk.tokens <= bound else replace(chunk, stop=chunk.start + bound)

    def _make_room(self, seq: Sequence, to_tokens: int) -> bool:
        """Room for tokens [0, to_tokens) of a running sequence; False if it had to yield itself."""
        self.memory.trim(seq)
        while (change := self.memory.try_grow(seq, to_tokens)) is None:
            view = self._view()
            for observer in self._watching["on_pressure"]:
                observer.on_pressure(view)
            preemption = self.policies.preempt.victim(view, view.running)
            victim = self._residents.by_row.get(preemption.row)
            if victim is None or preemption.how is Yield.PAUSE:
                raise PolicyViolation(self.policies.preempt, f"row {preemption.row} frees no memory ({preemption.how})")
            self._preempt(victim, preemption.how)
            if victim is seq:
                return False
        self._residents.note_change(seq, change)
        return True

    def _commit(self, is_decode_step: bool) -> Planned:
        residents, decoding = self._residents, self._residents.decoding
        draft, residents.draft = residents.draft, Draft()
        group = decoding.group if is_decode_step else NO_DECODE
        samples = decoding.epochs if is_decode_step else ()
        owners = tuple((residents.prefilling[row], residents.prefilling[row].epoch) for row in draft.chunks)
        if is_decode_step:
            decoding.advance()
        sampling_rows: set[int] = set()
        for chunk in draft.chunks.values():
            seq = residents.prefilling[chunk.row]
            if seq.first_planned_s is None:
                seq.first_planned_s = self._now_s
            if chunk.stop_layer is not None and chunk.stop_layer < self.facts.n_layers:
                seq.plan_part(chunk.stop, chunk.stop_layer)
                continue
            seq.plan_to(chunk.stop)
            self.memory.note_written(seq)
            if chunk.stop == seq.total_tokens:
                sampling_rows.add(chunk.row)
                self._finish_prompt(seq)
        plan = draft.to_plan(self._next_plan_id, group, sampling_rows, self.memory.take_moves(self._next_plan_id))
        residents.note_departed(plan.id)
        self._next_plan_id += 1
        self._followers.note_step(plan)
        chunk_samples = tuple(owners[i] for i in plan.sampling_chunks)
        for observer in self._watching["on_step"]:
            observer.on_step(plan, self._view())
        return Planned(plan, samples + chunk_samples, owners)

    def _finish_prompt(self, seq: Sequence) -> None:
        """Its siblings may fork from it now."""
        self._residents.finish_prompt(seq)
        for sibling in self._siblings.let_in(seq):
            self._queue.add(sibling)

    def leap(self, ahead: Foresight, steps: int, now_s: float) -> tuple[Leap, list[Update]]:
        """Plan the decode group `steps` times more, and take in as many results: the plans, and what they brought.

        steps: at most what `leaps.steps` said, and what is foreseen.
        """
        leap, updates = self.leaps.take(ahead, steps, now_s, self._next_plan_id)
        self._next_plan_id += steps
        self._now_s = float(ahead.ends_s[steps - 1])
        self.costs.note_decodes(leap, ahead.device_s[:steps].tolist())
        return leap, updates

    # --- results ------------------------------------------------------------------------------------------------------
    def collect(self, planned: Planned, result: StepResult, now_s: float) -> None:
        """Take the result of a plan in; what it brought is appended to `updates`."""
        self._now_s = now_s
        self.costs.note_step(planned.plan, result)
        for plan_id, seconds in result.moved:
            self.costs.note_move(self.memory.landed(plan_id), seconds)
            self._residents.note_landed(plan_id)
        for i, entries in result.prompt_logprobs.items():
            seq, epoch = planned.chunk_owners[i]
            if seq.epoch == epoch and seq.state not in ENDED and seq.output_tokens == 0:
                self._prompt_logprobs.setdefault(seq.id, []).extend(entries)
        logprobs, add_update = result.logprobs, self.updates.append
        for i, ((seq, epoch), token) in enumerate(zip(planned.samples, result.tokens.tolist(), strict=True)):
            known = seq.tokens
            is_usual = seq.state is SeqState.RUNNING and seq.epoch == epoch and seq.first_token_s is not None
            if is_usual and not logprobs and len(known) + 1 < seq.stop_tokens and token not in seq.stop_ids:
                known.append(token)  # what `_append` does, without a call: most tokens come this way
                seq.last_token_s = now_s
                add_update(Update(seq.request.id, seq.index, [token]))
                continue
            if seq.state in ENDED or (seq.epoch != epoch and not _is_late(seq, epoch)):
                continue  # stale: ended, or to be drawn again after a preemption
            self._append(seq, token, logprobs.get(i) if logprobs else None)

    def _append(self, seq: Sequence, token: int, logprobs: TokenLogprobs | None) -> None:
        seq.tokens.append(token)
        if seq.state is not SeqState.RUNNING:
            self._queue.note_changed()
        seq.last_token_s = self._now_s
        update = Update(seq.request.id, seq.index, [token])
        if seq.first_token_s is None:
            seq.first_token_s = self._now_s
            if seq.index == 0:
                update.prompt_logprobs = self._prompt_logprobs.pop(seq.id, [])
        if logprobs is not None:
            update.logprobs = [logprobs]
        self.updates.append(update)
        if token in seq.stop_ids:
            update.stop_token = token
            self._end(seq, FinishReason.STOP, update)
        elif len(seq.tokens) >= seq.stop_tokens:
            self._end(seq, FinishReason.LENGTH, update)

    def _end(self, seq: Sequence, reason: FinishReason, update: Update | None = None) -> None:
        is_unborn = self._siblings.remove(seq)
        if not is_unborn and seq.state in (SeqState.WAITING, SeqState.PAUSED, SeqState.SWAPPED):
            self._queue.remove(seq)
        seq.finish_reason = reason
        if seq.row is not None:
            self._residents.vacate(seq, self._now_s)
        self._followers.forget(seq)
        seq.move(SeqState.FINISHED if reason in (FinishReason.STOP, FinishReason.LENGTH) else SeqState.ABORTED)
        self.memory.forget(seq)
        self._prompt_logprobs.pop(seq.id, None)
        if update is None:
            update = Update(seq.request.id, seq.index)
            self.updates.append(update)
        update.finish = reason
        update.stats = RequestStats.of(seq, self._now_s)
        self.ledger.note_end(seq, self._now_s)
        for observer in self._watching["on_finish"]:
            observer.on_finish(seq, self._view())

    # --- books --------------------------------------------------------------------------------------------------------
    def audit(self) -> None:
        """Check that every block, row and sequence is where it should be; raises AssertionError."""
        self.memory.audit()
        self._residents.audit()
        if not self.has_work:
            left = (*self._residents.by_row.values(), *self._queue.members())
            assert not left, f"outlived their requests: {left}"
            assert not len(self._siblings), f"{len(self._siblings)} samples outlived their requests"

    def counters(self) -> Mapping[str, float]:
        """Gauges and counters by plain name."""
        tightest = max(self.memory.pools, key=lambda pool: pool.used_frac)
        counts: dict[str, float] = {
            "requests_running": self.n_running,
            "requests_waiting": self.n_waiting,
            "queue_tokens": self.queue_tokens,
            "kv_used_frac": tightest.used_frac,
            "kv_blocks": tightest.total_blocks,
            "preemptions_total": self.preemptions,
            "requests_accepted_total": self.ledger.accepted,
            "prefix_queried_tokens_total": self.memory.counters.queried_tokens,
            "prefix_hit_tokens_total": self.memory.counters.hit_tokens,
        }
        counts |= self.costs.counters() | self.memory.host_counters()
        counts |= {f"requests_ended_{reason.value}_total": n for reason, n in self.ledger.ended.items()}
        counts |= {f"requests_refused_{reason}_total": n for reason, n in self.ledger.refused.items()}
        return counts


def _is_late(seq: Sequence, epoch: int) -> bool:
    """A token that was in flight when its sequence was preempted, and that it has not begun to compute again.

    Not a first one to which log-probabilities of the prompt belong: it is drawn again, when those are computed.
    """
    if seq.output_tokens == 0 and seq.request.sampling.prompt_logprobs is not None:
        return False
    return seq.state is SeqState.WAITING and seq.epoch == epoch + 1
