"""The calendars of the decode group against counting each sequence step by step; and the draft of a plan."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.core.plan import NO_DECODE, BlockCopy, Chunk, DecodeGroup, RowBlocks, RowStart
from penstock.core.request import Request, SamplingParams
from penstock.core.sequence import Sequence
from penstock.engine.decoding import Decoding
from penstock.engine.draft import Draft

BLOCK_TOKENS = 4


@dataclass
class Naive:
    """One member, counted one step at a time."""

    seq: Sequence
    planned_tokens: int
    capacity_tokens: int | None
    limit_tokens: int  # planned tokens at which the last output is drawn

    @property
    def is_full(self) -> bool:
        return self.planned_tokens == self.capacity_tokens


class DecodingMachine(RuleBasedStateMachine):
    """Sequences join, leave, come back, and others take their rows; due blocks and limits come at the same steps."""

    @initialize()
    def make(self):
        self.decoding = Decoding()
        self.members: dict[int, Naive] = {}  # by row, in the order of joining
        self.left: dict[str, Naive] = {}
        self.n_seqs = 0
        self.versions: dict[tuple[int, ...], int] = {}

    @rule(
        row=st.integers(0, 4),
        prompt_tokens=st.integers(1, 9),
        outputs=st.integers(2, 14),
        spare_tokens=st.none() | st.integers(0, 6),
    )
    def join(self, row, prompt_tokens, outputs, spare_tokens):
        if row in self.members:
            return
        self.n_seqs += 1
        request = Request(id=f"r{self.n_seqs}", prompt=[1] * prompt_tokens, sampling=SamplingParams(max_tokens=outputs))
        seq = Sequence(request, 0, outputs)
        seq.row = row
        seq.plan_to(prompt_tokens)
        capacity = None if spare_tokens is None else prompt_tokens + spare_tokens
        self.members[row] = Naive(seq, prompt_tokens, capacity, prompt_tokens + outputs - 1)
        self.decoding.join(seq, capacity)

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def leave(self, data):
        member = self.members.pop(data.draw(st.sampled_from(sorted(self.members))))
        self.decoding.leave(member.seq)
        self.left[member.seq.id] = member

    @precondition(lambda self: self.left)
    @rule(data=st.data(), row=st.integers(0, 4))
    def come_back(self, data, row):
        if row in self.members:
            return
        member = self.left.pop(data.draw(st.sampled_from(sorted(self.left))))
        member.seq.row = row
        self.members[row] = member
        self.decoding.join(member.seq, member.capacity_tokens)

    @precondition(lambda self: self.members)
    @rule(blocks=st.integers(1, 2), loses=st.booleans(), is_leap=st.booleans())
    def step(self, blocks, loses, is_leap):
        full = self.decoding.take_full()
        assert len(set(full)) == len(full)
        assert {seq.row for seq in full} == {row for row, member in self.members.items() if member.is_full}
        for seq in full:
            member = self.members[seq.row]
            if loses:  # no room: it yields
                del self.members[seq.row]
                self.decoding.leave(seq)
                continue
            member.capacity_tokens += blocks * BLOCK_TOKENS
            self.decoding.note_grown(seq, member.capacity_tokens)
        if not self.members:
            return
        steps = min(self.decoding.steps_to_full, self.decoding.steps_to_limit) if is_leap else 1
        self.decoding.advance(steps)
        for row, member in list(self.members.items()):
            member.planned_tokens += steps
            assert member.capacity_tokens is None or member.planned_tokens <= member.capacity_tokens
            assert member.planned_tokens <= member.limit_tokens
            if member.planned_tokens == member.limit_tokens:
                del self.members[row]
                assert not member.seq.is_decoding
        assert len(self.decoding) == len(self.members)

    @invariant()
    def members_stand_where_counting_says(self):
        for member in (*self.members.values(), *self.left.values()):
            assert member.seq.planned_tokens == member.planned_tokens

    @invariant()
    def the_group_names_the_members_and_keeps_its_identity(self):
        group = self.decoding.group
        assert group.rows == tuple(self.members)
        assert self.decoding.epochs == tuple((member.seq, 0) for member in self.members.values())
        assert self.decoding.group is group


DecodingMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestDecoding = DecodingMachine.TestCase


def test_a_group_whose_members_changed_is_another_object_with_another_version():
    decoding, seen = Decoding(), []
    for row in range(3):
        seq = Sequence(Request(id=f"r{row}", prompt=[1]), 0, 16)
        seq.row = row
        seq.plan_to(1)
        decoding.join(seq, None)
        seen.append(decoding.group)
    decoding.advance()
    assert decoding.group is seen[-1]
    assert len({group.version for group in seen}) == 3
    assert NO_DECODE.version not in {group.version for group in seen}


def start(row):
    sampling = SamplingParams()
    return RowStart(
        row=row, tokens=[1], prompt_tokens=1, computed_tokens=0, blocks=((),), sampling=sampling, seed=0  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture
def draft():
    """Rows 1 and 2 each start, grow, copy and compute."""
    made = Draft()
    for row in (1, 2):
        made.starts[row] = start(row)
        made.grows.append(RowBlocks(row, 0, 0, (row,)))
        made.copies.append((row, BlockCopy(0, 8, row)))
        made.chunks[row] = Chunk(row=row, start=0, stop=1)
    return made


def test_of_a_row_that_the_device_never_heard_of_nothing_is_left(draft):
    draft.end(1)
    plan = draft.to_plan(7, NO_DECODE, {2}, ())
    assert plan.ends == ()
    assert [start.row for start in plan.starts] == [2]
    assert [grow.row for grow in plan.grows] == [2]
    assert plan.copies == (BlockCopy(0, 8, 2),)
    assert [chunk.row for chunk in plan.chunks] == [2]
    assert (plan.id, plan.sampling_chunks) == (7, (0,))


def test_a_row_that_the_device_has_is_ended_once_however_often_it_is_taken_again(draft):
    draft.end(3)  # known to the device
    for _ in range(2):
        draft.starts[3] = start(3)
        draft.end(3)
    assert draft.to_plan(0, NO_DECODE, set(), ()).ends == (3,)


def test_a_plan_counts_decodes_and_chunks_and_names_those_who_sample(draft):
    draft.chunks[4] = Chunk(row=4, start=0, stop=5)
    plan = draft.to_plan(0, DecodeGroup((5, 6), 1), {4}, ())
    assert plan.tokens == 2 + 1 + 1 + 5
    assert plan.sampling_chunks == (2,)
    assert not plan.is_empty
    assert Draft().to_plan(0, NO_DECODE, set(), ()).is_empty
