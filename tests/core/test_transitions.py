"""The tables of legal moves: sequences and blocks."""

from __future__ import annotations

from itertools import product

import pytest

from penstock.cache import blocks
from penstock.core.errors import IllegalTransition
from penstock.core.request import Request
from penstock.core.sequence import ENDED, NEXT, RESIDENT, SeqState, Sequence, StepCounter


def sequence_in(state: SeqState) -> Sequence:
    seq = Sequence(Request(id="r", prompt=[1]), 0, 16)
    seq.state = state
    return seq


@pytest.mark.parametrize(("at", "to"), list(product(SeqState, SeqState)), ids=lambda state: state.value)
def test_a_sequence_moves_as_its_table_says_or_not_at_all(at, to):
    seq = sequence_in(at)
    if to in NEXT[at]:
        seq.move(to)
        assert seq.state is to
    else:
        with pytest.raises(IllegalTransition, match=f"sequence r.0: {at.value} -> {to.value} is not a legal move"):
            seq.move(to)
        assert seq.state is at


@pytest.mark.parametrize("table", [NEXT, blocks.NEXT], ids=["sequence", "block"])
def test_every_state_has_a_row_and_can_be_reached(table):
    states = type(next(iter(table)))
    assert set(table) == set(states)
    first = next(iter(states))
    reached, todo = {first}, [first]
    while todo:
        for to in table[todo.pop()] - reached:
            reached.add(to)
            todo.append(to)
    assert reached == set(states)


def test_an_end_is_final_and_every_other_state_can_come_to_an_end():
    for state in SeqState:
        assert (not NEXT[state]) == (state in ENDED)
        assert state in ENDED or NEXT[state] >= ENDED


def test_every_block_can_become_free_again():
    """No state of a block is a trap: from each one a way leads back."""
    for state in blocks.BlockState:
        reached, todo = {state}, [state]
        while todo:
            for to in blocks.NEXT[todo.pop()] - reached:
                reached.add(to)
                todo.append(to)
        assert blocks.BlockState.FREE in reached


def test_who_holds_a_row_is_not_waiting_and_has_not_ended():
    assert not RESIDENT & (ENDED | {SeqState.WAITING, SeqState.SWAPPED})


def test_the_error_lists_the_legal_moves():
    with pytest.raises(IllegalTransition, match="may go to aborted, finished, running"):
        sequence_in(SeqState.WAITING).move(SeqState.PAUSED)
    with pytest.raises(IllegalTransition, match="may go to nothing"):
        sequence_in(SeqState.FINISHED).move(SeqState.RUNNING)


def test_members_of_a_group_advance_with_its_counter_and_stay_where_they_left():
    seq, counter = sequence_in(SeqState.RUNNING), StepCounter()
    seq.plan_to(1)
    counter.steps = 7
    seq.join(counter)
    assert (seq.planned_tokens, seq.prefill_left_tokens, seq.planned_outputs) == (1, 0, 1)
    counter.steps += 3
    assert (seq.planned_tokens, seq.planned_outputs) == (4, 4)
    seq.leave()
    counter.steps += 3
    assert seq.planned_tokens == 4


def test_a_pass_cut_along_the_layers_is_forgotten_when_it_is_through():
    seq = Sequence(Request(id="r", prompt=[1] * 8), 0, 16)
    seq.plan_part(6, 2)
    assert (seq.planned_tokens, seq.pass_stop_tokens, seq.layers_done) == (0, 6, 2)
    seq.plan_to(6)
    assert (seq.planned_tokens, seq.pass_stop_tokens, seq.layers_done) == (6, None, 0)


def test_a_rewound_sequence_has_everything_to_compute_and_a_new_epoch():
    seq, counter = Sequence(Request(id="r", prompt=[1] * 8), 0, 16), StepCounter()
    seq.plan_to(8)
    seq.join(counter)
    counter.steps += 2
    seq.tokens.extend([5, 6])
    seq.rewind()
    assert (seq.planned_tokens, seq.prefill_left_tokens, seq.is_decoding, seq.epoch) == (0, 10, False, 1)
