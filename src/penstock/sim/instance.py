"""One simulated instance: the engine as it is, an executor that predicts, and a virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from penstock.core.errors import ConfigError
from penstock.core.executor import ModelFacts, StateKind, StateSpec
from penstock.cost.devices import Device
from penstock.cost.model import CostModel
from penstock.cost.shape import ModelShape
from penstock.engine.limits import QueueLimits
from penstock.engine.loop import Engine, build_engine
from penstock.policy.presets import Policies
from penstock.sim.executor import SOME_TOKEN, STOP_TOKEN, JumpingClock, LengthOf, SimExecutor, WaitableClock

KV_FRAC = 0.85  # of the memory beside the weights, as the real engine takes it
STALL_S = 0.01  # a policy that waits is asked again after this


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What an instance runs on. kv_bytes None: a share of what the weights leave. host_kv_bytes: of the host tier."""

    shape: ModelShape
    device: Device
    cost: CostModel
    max_rows: int = 256
    block_tokens: int = 16
    kv_bytes: int | None = None
    host_kv_bytes: int = 0

    @property
    def block_bytes(self) -> int:
        return self.block_tokens * self.shape.kv_token_bytes

    @property
    def n_host_blocks(self) -> int:
        return self.host_kv_bytes // self.block_bytes

    def facts(self) -> ModelFacts:
        shape = self.shape
        state = StateSpec(
            name="kv",
            kind=StateKind.PAGED,
            layers=tuple(range(shape.n_layers)),
            block_tokens=self.block_tokens,
            block_bytes=self.block_bytes,
        )
        return ModelFacts(
            name=shape.name,
            n_layers=shape.n_layers,
            vocab_size=shape.vocab_size,
            max_model_tokens=shape.max_tokens,
            stop_token_ids=frozenset({STOP_TOKEN}),
            states=(state,),
            weight_bytes=shape.weight_bytes,
        )

    def n_blocks(self) -> int:
        """Raises ConfigError if the model does not fit the device."""
        left_bytes = self.device.memory_bytes - self.shape.weight_bytes
        n_blocks = int(KV_FRAC * left_bytes if self.kv_bytes is None else self.kv_bytes) // self.block_bytes
        if n_blocks < 1:
            raise ConfigError(
                f"{self.shape.name} does not fit on one {self.device.name}: weights take "
                f"{self.shape.weight_bytes / 2**30:.1f} of {self.device.memory_bytes / 2**30:.0f} GiB; "
                "choose a larger device or a smaller model"
            )
        return n_blocks


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
        hardware.facts(),
        hardware.cost,
        clock,
        length_of,
        max_rows=hardware.max_rows,
        host_bytes_per_s=hardware.device.host_bytes_per_s,
        has_own_host_time=has_own_host_time,
        some_token=some_token,
    )
    return build(
        executor,
        (hardware.n_blocks(),),
        policies,
        n_host_blocks=(hardware.n_host_blocks,) if hardware.n_host_blocks else (),
        limits=limits,
        clock=clock,
        look_ahead=look_ahead,
        share_prefixes=share_prefixes,
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
