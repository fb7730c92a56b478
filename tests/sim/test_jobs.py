"""A fleet in several processes makes the records of one in a single process, to the byte."""

from __future__ import annotations

import signal
from functools import partial

import msgspec
import pytest

from penstock.core.errors import ConfigError
from penstock.policy.presets import build_policies
from penstock.sim.jobs import JobFailed, Jobs, most_jobs
from penstock.sim.run import Setup, fleet_of, run_of
from penstock.workload.kinds import Pacing
from tests.sim.parts import hardware, poisson_trace

make_trace = partial(poisson_trace, 1300, 80.0, outputs=(1, 40), seed=3)


def setup_of(n_instances=5, dispatch="round-robin", **fields):
    return Setup(hardware=hardware(), policies=build_policies, n_instances=n_instances, dispatch=dispatch, **fields)


def bytes_of(setup, served):
    return msgspec.json.encode(run_of(setup, make_trace(), served))


@pytest.mark.parametrize("n_jobs", [1, 2, 3])
def test_several_processes_make_the_bytes_of_one(n_jobs):
    setup = setup_of()
    fleet = fleet_of(setup, make_trace())
    fleet.run(make_trace())
    jobs = Jobs(setup=setup, make_trace=make_trace, n_jobs=n_jobs)
    seen = []
    jobs.run(lambda n, at_s: seen.append(n))
    assert bytes_of(setup, jobs) == bytes_of(setup, fleet)
    assert seen == sorted(seen)
    assert seen[-1] == 1300


@pytest.mark.parametrize(
    "setup", [setup_of(dispatch="least-loaded"), setup_of(pacing=Pacing.SESSIONS), setup_of(n_instances=1)]
)
def test_instances_that_meet_are_one_job(setup):
    assert most_jobs(setup) == 1
    with pytest.raises(ConfigError, match=r"2 jobs for . instances behind .* at most 1 can work apart"):
        Jobs(setup=setup, make_trace=make_trace, n_jobs=2)


def test_an_interrupt_leaves_the_records_that_were_sent():
    jobs = Jobs(setup=setup_of(), make_trace=partial(poisson_trace, 20_000, 80.0), n_jobs=2)

    def interrupt(n, at_s):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        jobs.run(interrupt)
    indices = [record.index for record in jobs.records]
    assert 1000 <= len(indices) < 20_000
    assert indices == sorted(set(indices))


def wrong_trace():
    raise ValueError("nowhere to be found")


def test_a_job_that_fails_says_why():
    jobs = Jobs(setup=setup_of(), make_trace=wrong_trace, n_jobs=2)
    with pytest.raises(JobFailed, match=r"(?s)job . of 2 failed:.*nowhere to be found"):
        jobs.run()
