"""Accelerators by name, as their data sheets describe them, for estimates where nothing was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.core.errors import UnknownName

GB, GIB, TERA = 1e9, 2**30, 1e12


@dataclass(frozen=True, slots=True)
class Device:
    """Peak rates: dense 16-bit matrix products, memory, and the link to host memory one way.

    price_per_hour: US dollars, of a common on-demand offer at the end of 2025; it only ranks fleets. band_frac: how far
    estimates from these figures may be off.
    """

    name: str
    flop_per_s: float
    bytes_per_s: float
    host_bytes_per_s: float
    memory_bytes: int
    price_per_hour: float
    band_frac: float = 0.3


DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        Device("a100", 312 * TERA, 2039 * GB, 32 * GB, 80 * GIB, 1.8),
        Device("h100", 989 * TERA, 3350 * GB, 64 * GB, 80 * GIB, 3.0),
        Device("h200", 989 * TERA, 4800 * GB, 64 * GB, 141 * GIB, 3.8),
        Device("b200", 2250 * TERA, 8000 * GB, 64 * GB, 180 * GIB, 6.0),
        Device("l4", 121 * TERA, 300 * GB, 32 * GB, 24 * GIB, 0.7),
        Device("rtx4090", 165 * TERA, 1008 * GB, 32 * GB, 24 * GIB, 0.5),
        Device("cpu", 0.4 * TERA, 25 * GB, 10 * GB, 16 * GIB, 0.1, band_frac=1.0),  # two cores of a server, of any kind
    )
}


def device_of(name: str) -> Device:
    """Raises UnknownName."""
    if name not in DEVICES:
        raise UnknownName("device", name, DEVICES)
    return DEVICES[name]
