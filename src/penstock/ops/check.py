"""The contract of a kernel: it answers as its reference does, on every case of its folder.

`cases.py` beside each reference makes the inputs; whoever adds an implementation, here or elsewhere, runs
`check_kernel` on their device.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import penstock.ops
from penstock.ops.batch import SegmentBatch
from penstock.ops.op import Op


@dataclass(frozen=True, slots=True)
class Case:
    """One call. atol: how far a result may be from the reference's."""

    name: str
    args: tuple[Any, ...]
    atol: float = 0.0


def all_ops() -> Mapping[str, Op[..., Any]]:
    """Every folder of `penstock.ops`; its op is called as the folder."""
    folders = (found.name for found in pkgutil.iter_modules(penstock.ops.__path__) if found.ispkg)
    return {name: getattr(importlib.import_module(f"penstock.ops.{name}"), name) for name in sorted(folders)}


def cases_of(name: str, device: str) -> Iterator[Case]:
    """The cases of an op, the same on every device."""
    found: Iterator[Case] = importlib.import_module(f"penstock.ops.{name}.cases").cases(device)
    return found


def check_kernel(name: str, implementation: Callable[..., Any], device: str = "cpu") -> None:
    """Raises AssertionError, naming the case, where the implementation and the reference of op `name` differ.

    Arguments count as results too: what one writes in place, the other must.
    """
    for case in cases_of(name, device):
        compare(name, implementation, case)


def compare(name: str, implementation: Callable[..., Any], case: Case) -> None:
    """`check_kernel` for one case."""
    args, expected_args = _copy(case.args), _copy(case.args)
    found, expected = implementation(*args), all_ops()[name].implementations["reference"](*expected_args)
    pairs = zip(_tensors((found, args)), _tensors((expected, expected_args)), strict=True)
    for part, expected_part in pairs:
        try:
            torch.testing.assert_close(_wide(part), _wide(expected_part), atol=case.atol, rtol=case.atol)
        except AssertionError as error:
            raise AssertionError(f"{name}, {case.name}: {error}") from None


def _wide(part: Tensor) -> Tensor:
    """Numbers of 8 bits in float32: of themselves they are compared by their bits only."""
    return part.float() if part.dtype is torch.float8_e4m3fn else part


def random_normal(generator: torch.Generator, *shape: int, dtype: torch.dtype, device: str) -> Tensor:
    """Drawn on the CPU, so that every device gets the same."""
    return torch.randn(shape, generator=generator).to(dtype).to(device)


def make_batch(
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    block_tokens: int,
    *,
    generator: torch.Generator,
    spare_blocks: int = 1,
    device: str = "cpu",
) -> tuple[SegmentBatch, int]:
    """A batch whose blocks lie scattered, and the number of blocks of the pool it needs; `spare_blocks` are unused."""
    needed = [-(-kv_len // block_tokens) for kv_len in kv_lens]
    n_blocks = sum(needed) + spare_blocks
    shuffled = torch.randperm(n_blocks, generator=generator).to(torch.int32)
    tables_SB = torch.zeros(len(q_lens), max([1, *needed]), dtype=torch.int32)
    starts = [0]
    positions: list[int] = []
    slots: list[int] = []
    at = 0
    for s, (q_len, kv_len, n_row) in enumerate(zip(q_lens, kv_lens, needed, strict=True)):
        tables_SB[s, :n_row] = shuffled[at : at + n_row]
        at += n_row
        starts.append(starts[-1] + q_len)
        of_segment = range(max(0, kv_len - q_len), kv_len)
        positions += of_segment
        slots += (int(tables_SB[s, p // block_tokens]) * block_tokens + p % block_tokens for p in of_segment)
    batch = SegmentBatch(
        positions_T=torch.tensor(positions, dtype=torch.int64, device=device),
        slots_T=torch.tensor(slots, dtype=torch.int64, device=device),
        q_starts=torch.tensor(starts, device=device),
        kv_lens=torch.tensor(kv_lens, device=device),
        tables_SB=tables_SB.to(device),
        q_starts_host=tuple(starts),
        kv_lens_host=tuple(kv_lens),
        block_tokens=block_tokens,
    )
    return batch, n_blocks


def _copy(value: Any) -> Any:
    if type(value) is Tensor:  # a packed weight is never written
        return value.clone()
    return tuple(_copy(item) for item in value) if isinstance(value, tuple) else value


def _tensors(value: Any) -> list[Tensor]:
    if type(value) is Tensor:
        return [value.float()] if value.dtype.itemsize == 1 and value.is_floating_point() else [value]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, tuple) else []
