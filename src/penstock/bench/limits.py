"""The machine's limits as torch reaches them: bytes read and multiply-adds per second, medians of a few runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from penstock.bench.bounds import MachineLimits
from penstock.ops.fp8_product import fp8_product
from penstock.ops.rounding import fp8_of_rows

CPU_READ_BYTES, CPU_SIDE = 2**30, 1024
GPU_READ_BYTES, GPU_SIDE = 2**32, 8192
READS, PRODUCTS = 5, 9


def measure_limits(device: torch.device, dtype: torch.dtype, quantize: str = "none") -> MachineLimits:
    """Measure now, on idle memory of this size. Weights are multiplied as `--quantize` has them multiplied."""
    is_cpu = device.type == "cpu"
    side = CPU_SIDE if is_cpu else GPU_SIDE
    read_bytes = CPU_READ_BYTES if is_cpu else GPU_READ_BYTES
    numbers = torch.zeros(read_bytes // 4, device=device)
    read_s = median_s(numbers.max, READS, device)
    del numbers
    float_flop_per_s = 2 * side**3 / median_s(_product(side, dtype, device), PRODUCTS, device)
    linear_flop_per_s = float_flop_per_s
    of_weights = _product_of_weights(quantize, side, device)
    if of_weights is not None:
        linear_flop_per_s = 2 * side**3 / median_s(of_weights, PRODUCTS, device)
    return MachineLimits(
        read_bytes_per_s=read_bytes / read_s,
        linear_flop_per_s=max(linear_flop_per_s, float_flop_per_s),
        float_flop_per_s=float_flop_per_s,
    )


def _product(side: int, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b


def _product_of_weights(quantize: str, side: int, device: torch.device) -> Callable[[], Tensor] | None:
    """What is faster than a product of floats, if weights are multiplied so; a GPU restores integers to floats."""
    if quantize == "fp8" and device.type == "cuda":
        return _fp8_product(side, device)
    return _integer_product(side, device) if quantize in ("int8", "int4") and device.type == "cpu" else None


def _fp8_product(side: int, device: torch.device) -> Callable[[], Tensor]:
    (a, a_scales), (b, b_scales) = (fp8_of_rows(torch.randn(side, side, device=device)) for _ in range(2))
    return lambda: fp8_product(a, a_scales, b, b_scales)


def _integer_product(side: int, device: torch.device) -> Callable[[], Tensor]:
    a, b = (torch.randint(-100, 100, (side, side), device=device, dtype=torch.int8) for _ in range(2))
    return lambda: torch._int_mm(a, b)


def median_s(run: Callable[[], object], n: int, device: torch.device) -> float:
    """Median wall time of a run, after one that does not count."""
    times = []
    for _ in range(n + 1):
        _wait(device)
        began_s = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - began_s)
    return statistics.median(times[1:])


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
