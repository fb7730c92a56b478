"""Every accepted request ends in one record, and the record is one line whatever its id is."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.request import Request, SamplingParams
from penstock.core.sequence import FinishReason, Sequence
from penstock.engine.ledger import Ledger

ENDS = list(FinishReason)  # from the best to the worst end


class Lines(logging.Handler):
    """What the request log says; taken at its source, so that no other handler changes it."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(self.format(record))


@contextmanager
def listening():
    log, handler = logging.getLogger("penstock.requests"), Lines()
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler.lines
    log.removeHandler(handler)
    log.setLevel(before)


@pytest.fixture
def lines():
    with listening() as said:
        yield said


def accept(ledger, name="r", n=1):
    request = Request(id=name, prompt=[1, 2, 3], sampling=SamplingParams(n=n), arrival_s=1.0)
    samples = [Sequence(request, k, 16) for k in range(n)]
    ledger.accept(request, samples)
    return samples


def end(ledger, seq, reason=FinishReason.STOP, now_s=3.0):
    seq.finish_reason = reason
    ledger.note_end(seq, now_s)


@settings(deadline=None, max_examples=60)
@given(
    plan=st.lists(st.lists(st.sampled_from(ENDS), min_size=1, max_size=3), max_size=6),
    data=st.data(),
)
def test_every_accepted_request_ends_in_one_record(plan, data):
    ledger = Ledger()
    todo = [
        (seq, reason)
        for k, reasons in enumerate(plan)
        for seq, reason in zip(accept(ledger, f"r{k}", len(reasons)), reasons, strict=True)
    ]
    with listening() as said:
        for seq, reason in data.draw(st.permutations(todo)):
            assert seq.request.id in ledger
            end(ledger, seq, reason)
    records = [json.loads(line) for line in said]
    assert ledger.n_open == 0
    assert ledger.accepted == len(plan) == sum(ledger.ended.values())
    worst = {f"r{k}": max(reasons, key=ENDS.index).value for k, reasons in enumerate(plan)}
    assert {record["id"]: record["reason"] for record in records} == worst
    assert len(records) == len(plan)


@pytest.mark.parametrize("name", ['a"\nb', "\r\n{}", "\u2028\u2029", "\x1b[31m\0", "x" * 256, "ü"])
def test_the_record_is_one_line_whatever_the_id(lines, name):
    ledger = Ledger()
    (seq,) = accept(ledger, name)
    end(ledger, seq)
    (line,) = lines
    assert len(line.splitlines()) == 1
    assert line.isprintable()
    assert json.loads(line)["id"] == name


def test_the_record_says_where_the_time_went_and_nothing_of_the_prompt(lines):
    ledger = Ledger()
    seq, other = accept(ledger, n=2)
    seq.first_planned_s, seq.first_token_s, seq.cached_tokens = 1.5, 2.0, 2
    seq.tokens.extend([7, 8])
    other.first_token_s, other.epoch = 2.5, 3
    other.tokens.append(9)
    end(ledger, seq)
    assert not lines, "the record is written when the last sample ends"
    end(ledger, other, FinishReason.LENGTH, now_s=4.0)
    assert json.loads(lines[0]) == {
        "event": "request_end",
        "id": "r",
        "reason": "length",
        "prompt_tokens": 3,
        "cached_tokens": 2,
        "output_tokens": 3,
        "samples": 2,
        "preemptions": 3,
        "queue_s": 0.5,
        "ttft_s": 1.0,
        "e2e_s": 3.0,
    }


def test_a_request_that_never_got_anywhere_has_a_record_too(lines):
    ledger = Ledger()
    (seq,) = accept(ledger)
    end(ledger, seq, FinishReason.ABORT)
    record = json.loads(lines[0])
    assert (record["queue_s"], record["ttft_s"], record["output_tokens"]) == (None, None, 0)


def test_samples_of_a_closed_or_unknown_request_are_none():
    ledger = Ledger()
    (seq,) = accept(ledger)
    assert ledger.samples("r") == [seq]
    end(ledger, seq)
    assert ledger.samples("r") == ledger.samples("?") == []
    assert "r" not in ledger


def test_the_time_to_drain_follows_the_rate_of_late_within_limits():
    ledger = Ledger()
    assert ledger.drain_s(100, 0.0) == 1.0  # nothing known yet
    for k in range(10):
        end(ledger, accept(ledger, f"r{k}")[0], now_s=float(2 * k))
    assert ledger.drain_s(10, 20.0) == pytest.approx(20.0)
    assert ledger.drain_s(1, 20.0) == pytest.approx(2.0)
    assert ledger.drain_s(10_000, 20.0) == 60.0
    assert ledger.drain_s(0, 20.0) == 1.0


def test_what_is_open_when_the_engine_ends_has_its_record_too(lines):
    ledger = Ledger()
    open_samples, done = accept(ledger, "open", n=2), accept(ledger, "done")
    end(ledger, done[0])
    end(ledger, open_samples[0])
    ledger.end_all(FinishReason.ABORT, 4.0)
    ledger.end_all(FinishReason.ABORT, 5.0)
    assert [(record["id"], record["reason"]) for record in map(json.loads, lines)] == [
        ("done", "stop"),
        ("open", "abort"),
    ]
    assert (ledger.n_open, ledger.accepted, sum(ledger.ended.values())) == (0, 2, 2)
