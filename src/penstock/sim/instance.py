"""One simulated instance: the engine as it is, an executor that predicts, and a virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from penstock.core.executor import ModelFacts
from penstock.cost.devices import Device
from penstock.cost.model import CostModel
from penstock.engine.limits import QueueLimits
from penstock.engine.loop import Engine, build_engine
from penstock.policy.presets import Policies
from penstock.sim.executor import SOME_TOKEN, JumpingClock, LengthOf, SimExecutor, WaitableClock

STALL_S = 0.01  # a policy that waits is asked again after this


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What an instance runs on. facts: of the model, with the simulator's stop token. n_blocks, n_host_blocks: of each
    state group's pool, and of the host tier (none: there is no such tier). known_cost: what the policies are
    told of it.
    """

    facts: ModelFacts
    device: Device
    cost: CostModel
    n_blocks: tuple[int, ...]
    n_host_blocks: tuple[int, ...] = ()
    max_rows: int = 256
    known_cost: CostModel | None = None


def simulated_engine(
    hardware: Hardware,
    policies: Policies,
    clock: WaitableClock,
    length_of: LengthOf,
    *,
    limits: QueueLimits | None = None,
    look_ahead: int = 1,
    share_prefixes: bool = True,
    has_own_host_time: bool = False,
    some_token: int = SOME_TOKEN,
    build: Callable[..., Engine] = build_engine,
) -> Engine:
    """The real engine around a `SimExecutor`. build: `build_engine`, or what takes its arguments."""
    executor = SimExecutor(
        hardware.facts,
        hardware.cost,
        clock,
        length_of,
        max_rows=hardware.max_rows,
        has_own_host_time=has_own_host_time,
        some_token=some_token,
    )
    return build(
        executor,
        hardware.n_blocks,
        policies,
        n_host_blocks=hardware.n_host_blocks,
        limits=limits,
        clock=clock,
        look_ahead=look_ahead,
        share_prefixes=share_prefixes,
        cost=hardware.known_cost,
    )


class Instance:
    """An engine with its clock, stepped by whoever keeps the order of all clocks."""

    def __init__(self, index: int, make: Callable[[JumpingClock], Engine]) -> None:
        self.index = index
        self.clock = JumpingClock()
        self.engine = make(self.clock)

    @property
    def n_open(self) -> int:
        """Requests that it has and that are not over."""
        return self.engine.scheduler.ledger.n_open
