"""Cost models: from the load of a step to seconds, with what is known of their error.

`Roofline` needs no measurement: each part of a step takes as long as its arithmetic or its bytes at a share of the
device's peak rates, whichever is longer. `Fitted` keeps the same parts and learns their weights from measured steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from penstock.core.plan import Toward
from penstock.core.view import Estimate
from penstock.cost.devices import Device
from penstock.cost.load import Floats, StepLoad
from penstock.cost.shape import ModelShape


class CostModel(Protocol):
    """Read by the simulator, and by whoever plans."""

    def step(self, load: StepLoad) -> Estimate:
        """Device time of a step."""
        ...

    def decode_s(self, rows: int, keys: Floats) -> Floats:
        """Device times of steps in which so many sequences decode; keys [steps]: `StepLoad.decode_keys` of each."""
        ...

    def host_s(self, load: StepLoad) -> float:
        """Time that the host works on a step before the device can start it."""
        ...

    @property
    def front_s(self) -> float:
        """What a request takes outside of the engine: from the client to it, and the first token back."""
        ...

    def move_s(self, n_bytes: int, toward: Toward) -> float:
        """To copy so much between the device and host memory."""
        ...

    def describe(self) -> str:
        """Where the figures come from, and how far to trust them, in a sentence."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """Least seconds of the parts of a step at peak rates. Parts follow each other, so their times add up.

    linear: products with weights, the larger of arithmetic and reading. head: logits of the drawn tokens. read: keys
    and values of decoding sequences. prompt: attention of chunks.
    """

    linear_s: float
    head_s: float
    read_s: float
    prompt_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A model on a device: what any step needs at the least."""

    shape: ModelShape
    flop_per_s: float
    bytes_per_s: float
    host_bytes_per_s: float

    @classmethod
    def of(cls, shape: ModelShape, device: Device) -> Work:
        return cls(
            shape=shape,
            flop_per_s=device.flop_per_s,
            bytes_per_s=device.bytes_per_s,
            host_bytes_per_s=device.host_bytes_per_s,
        )

    def parts(self, load: StepLoad) -> Parts:
        shape = self.shape
        tokens = load.decode_rows + load.chunk_tokens * load.layer_frac
        weight_bytes = shape.read_bytes(load.tokens) - shape.head_bytes
        if not load.decode_rows:
            weight_bytes *= load.layer_frac
        prompt_flops = shape.key_flops * load.chunk_pairs * load.layer_frac
        prompt_bytes = shape.kv_token_bytes * (load.chunk_keys + load.chunk_tokens) * load.layer_frac
        head_flops = 2 * load.samples * shape.head_weights
        head_bytes = shape.head_bytes if load.samples else 0
        return Parts(
            linear_s=max(2 * tokens * shape.active_weights / self.flop_per_s, weight_bytes / self.bytes_per_s),
            head_s=max(head_flops / self.flop_per_s, head_bytes / self.bytes_per_s),
            read_s=shape.kv_token_bytes * load.decode_keys / self.bytes_per_s,
            prompt_s=max(prompt_flops / self.flop_per_s, prompt_bytes / self.bytes_per_s),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Analytical: shares of peak rates that good kernels reach, and what every step costs besides.

    The shares are typical figures, not measured ones, and the band says so.
    """

    work: Work
    linear_frac: float = 0.75
    attention_frac: float = 0.6
    step_s: float = 250e-6
    host_step_s: float = 150e-6
    front_s: float = 0.0
    band_frac: float = 0.3
    _lines: dict[int, tuple[float, float]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def step(self, load: StepLoad) -> Estimate:
        if not load.chunk_tokens and load.samples == load.decode_rows:
            base_s, key_s = self._decode_line(load.decode_rows)
            return Estimate(base_s + key_s * load.decode_keys, self.band_frac)
        parts = self.work.parts(load)
        seconds = self.step_s + (parts.linear_s + parts.head_s) / self.linear_frac
        return Estimate(seconds + (parts.read_s + parts.prompt_s) / self.attention_frac, self.band_frac)

    def decode_s(self, rows: int, keys: Floats) -> Floats:
        base_s, key_s = self._decode_line(rows)
        return base_s + key_s * keys

    def _decode_line(self, rows: int) -> tuple[float, float]:
        """(seconds, seconds per key) of a step in which so many sequences decode."""
        line = self._lines.get(rows)
        if line is None:
            parts = self.work.parts(StepLoad(decode_rows=rows, decode_keys=1, samples=rows))
            base_s = self.step_s + (parts.linear_s + parts.head_s) / self.linear_frac
            line = self._lines[rows] = base_s, parts.read_s / self.attention_frac
        return line

    def host_s(self, load: StepLoad) -> float:
        return self.host_step_s

    def move_s(self, n_bytes: int, toward: Toward) -> float:
        return n_bytes / self.work.host_bytes_per_s

    def describe(self) -> str:
        return f"step times are estimates from data sheets, good to about {self.band_frac:.0%}"
