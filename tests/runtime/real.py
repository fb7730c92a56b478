"""The real decoder in tests: its truth, and how the driver gets an executor that is ready."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import penstock
from penstock.core.executor import ModelFacts, TokenLogprobs
from penstock.models.decoder import Decoder
from penstock.ops.batch import SegmentBatch
from penstock.ops.op import Op
from penstock.runtime.executor import TorchExecutor
from penstock.runtime.graphs import Tape

from .driver import Driver, Job

Outputs = Sequence[tuple[Sequence[int], Sequence[TokenLogprobs]]]  # of each job
BUNDLED = Path(penstock.__file__).parent / "bundled" / "penstock-tiny"


class Rehearsal(Tape):
    """A tape for machines without CUDA: what it recorded is done again kernel by kernel."""

    def __init__(self, device: torch.device, most_rows: int, *, must_record: bool = False) -> None:
        self.is_on, self.is_full = True, False
        self._device, self._most_rows, self._kept = device, most_rows, None

    def has_room(self) -> bool:
        return self.is_on and not self.is_full

    def record(self, body: Callable[[], torch.Tensor | None]) -> tuple[Any, torch.Tensor | None]:
        """Only of steps whose draw is in them."""
        return SimpleNamespace(replay=body), None

    def wait(self) -> None:
        """Everything is done at once."""


def shrunk_config() -> dict[str, Any]:
    """The bundled architecture with small layers."""
    config: dict[str, Any] = json.loads((BUNDLED / "config.json").read_text())
    config |= {"hidden_size": 32, "intermediate_size": 48, "head_dim": 8, "num_hidden_layers": 3, "vocab_size": 61}
    return config | {"layer_types": ["full_attention"] * 3, "max_position_embeddings": 128}


class WholeForward:
    """Each sequence in one pass, in a pool of its own: what the executor must equal."""

    def __init__(self, decoder: Decoder, facts: ModelFacts) -> None:
        self.decoder, self.facts = decoder, facts

    def reference(self, ids: list[int]) -> torch.Tensor:
        n_tokens, spec, device = len(ids), self.decoder.spec.layers[0].attention, self.decoder.device
        batch = SegmentBatch(
            positions_T=torch.arange(n_tokens, device=device),
            slots_T=torch.arange(n_tokens, device=device),
            q_starts=torch.tensor([0, n_tokens], dtype=torch.int32, device=device),
            kv_lens=torch.tensor([n_tokens], dtype=torch.int32, device=device),
            tables_SB=torch.zeros(1, 1, dtype=torch.int32, device=device),
            q_starts_host=(0, n_tokens),
            kv_lens_host=(n_tokens,),
            block_tokens=n_tokens,
        )
        shape = 2, 1, n_tokens, spec.kv_heads, spec.head_dim
        pools = [torch.zeros(shape, dtype=self.decoder.dtype, device=device) for _ in range(self.facts.n_layers)]
        with torch.inference_mode():
            x_TD = self.decoder.embed(torch.tensor(ids, device=device))
            return self.decoder.logits(self.decoder.run_layers(x_TD, batch, pools, 0, self.facts.n_layers)).cpu()


class Unallocated:
    """Hands an executor to the driver, which wants to allocate itself."""

    def __init__(self, executor: TorchExecutor) -> None:
        self.submit, self.collect = executor.submit, executor.collect
        self.facts, self.max_rows = executor.facts, executor.max_rows

    def allocate(self, n_blocks: tuple[int, ...]) -> None:
        """It is done."""


IN_TRITON = ("place_segments", "rope_angles", "draw_parameters", "advance_rows", "paged_attention", "shared_attention")


def use_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels for GPUs on a CPU, in the interpreter, as captured steps need: where the others for attention take the
    lengths that the host gives for true, these are bounds.
    """
    on = Op.on
    monkeypatch.setattr(Op, "on", lambda op, device: "cuda" if op.name in IN_TRITON else on(op, device))


def run_jobs(executor: TorchExecutor, jobs: list[Job], rng: Random) -> None:
    Driver(Unallocated(executor), rng, n_blocks=min(executor.n_blocks[0], 200)).run(jobs)  # type: ignore[arg-type]


def assert_alike(found: Outputs, expected: Outputs) -> None:
    """The same tokens; log-probabilities where they were asked for, which see errors that no token shows."""
    for (ids, logprobs), (expected_ids, expected_logprobs) in zip(found, expected, strict=True):
        assert ids == expected_ids
        assert [record.logprob for record in logprobs] == pytest.approx(
            [record.logprob for record in expected_logprobs], abs=1e-5
        )
