"""Accelerators by name, as their data sheets describe them, for estimates where nothing was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.core.errors import UnknownName

GB, GIB, TERA = 1e9, 2**30, 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Peak rates: dense 16-bit matrix products, and memory. price_per_hour: US dollars, of a common on-demand offer at
    the end of 2025; it only ranks fleets."""

    name: str
    flop_per_s: float
    bytes_per_s: float
    memory_bytes: int
    price_per_hour: float


DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        Device(name="a100", flop_per_s=312 * TERA, bytes_per_s=2039 * GB, memory_bytes=80 * GIB, price_per_hour=1.8),
        Device(name="h100", flop_per_s=989 * TERA, bytes_per_s=3350 * GB, memory_bytes=80 * GIB, price_per_hour=3.0),
        Device(name="h200", flop_per_s=989 * TERA, bytes_per_s=4800 * GB, memory_bytes=141 * GIB, price_per_hour=3.8),
        Device(name="b200", flop_per_s=2250 * TERA, bytes_per_s=8000 * GB, memory_bytes=180 * GIB, price_per_hour=6.0),
        Device(name="l4", flop_per_s=121 * TERA, bytes_per_s=300 * GB, memory_bytes=24 * GIB, price_per_hour=0.7),
        Device(name="rtx4090", flop_per_s=165 * TERA, bytes_per_s=1008 * GB, memory_bytes=24 * GIB, price_per_hour=0.5),
    )
}


def device_of(name: str) -> Device:
    """Raises UnknownName."""
    if name not in DEVICES:
        raise UnknownName("device", name, DEVICES)
    return DEVICES[name]
