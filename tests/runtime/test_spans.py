"""Times of a device on the clock of the host."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
import torch

from penstock.runtime.spans import Anchor

from .driver import Driver, Job
from .test_executor import executing
from .toy import ToyDecoder


class Event:
    """Of a device whose clock runs too fast by `drift`; times are given as float32 milliseconds."""

    def __init__(self, at_s, drift):
        self.at_s = at_s * (1 + drift)

    def elapsed_time(self, later):
        return torch.tensor(1000 * (later.at_s - self.at_s), dtype=torch.float32).item()


@pytest.mark.parametrize("drift", [0.0, 5e-5, -5e-5])
def test_an_hour_of_steps_stays_on_the_clock_of_the_host(drift):
    rng = Random(1)
    anchor = Anchor(Event(0.0, drift), 0.0)
    now_s, worst_s = 0.0, 0.0
    for _ in range(60_000):
        queued_s = now_s
        start_s = queued_s + rng.uniform(3e-6, 2e-5)
        stop_s = start_s + rng.uniform(0.01, 0.1)
        now_s = stop_s + rng.uniform(3e-6, 2e-5)
        found = anchor.place(Event(start_s, drift), Event(stop_s, drift), queued_s, now_s)
        worst_s = max(worst_s, abs(found[0] - start_s), abs(found[1] - stop_s))
        assert found[0] >= queued_s - 1e-9
        assert found[1] - found[0] == pytest.approx(stop_s - start_s, rel=1e-3)
    assert now_s > 3000
    assert worst_s < 1e-4


def test_an_executor_tells_when_each_step_ran():
    spans = []
    model = ToyDecoder()
    with executing(model) as executor:
        executor.tell_spans(spans.append)
        driver = Driver(executor, Random(3))
        driver.run([Job(prompt=[3, 4, 5], n_outputs=4) for _ in range(6)])
    assert len(spans) == driver.n_plans
    assert spans
    assert all(span.start_s <= span.stop_s for span in spans)
    assert all(a.stop_s <= b.start_s for a, b in pairwise(spans))
    assert {span.how for span in spans} == {"kernel by kernel"}
