"""The invariants of a step: what a policy may not answer. A wrong policy is an error with a name."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.core.errors import PolicyViolation
from penstock.core.plan import NO_DECODE, Chunk, Plan
from penstock.core.sequence import SequenceView
from penstock.core.view import View


def check_choice(policy: object, choice: Plan, view: View, prefilling: Mapping[int, SequenceView]) -> None:
    """Raise PolicyViolation if the answer of the batch slot cannot be carried out."""
    if choice.decode is not view.decoding and choice.decode is not NO_DECODE:
        raise PolicyViolation(policy, "`decode` must be view.decoding as a whole, or NO_DECODE")
    if choice.starts or choice.grows or choice.copies or choice.ends or choice.sampling_chunks:
        raise PolicyViolation(policy, "rows and memory are the scheduler's; answer with `decode` and `chunks` only")
    rows = [chunk.row for chunk in choice.chunks]
    if len(set(rows)) != len(rows):
        raise PolicyViolation(policy, f"a row has more than one chunk in a step: {sorted(rows)}")
    for chunk in choice.chunks:
        seq = prefilling.get(chunk.row)
        if seq is None:
            raise PolicyViolation(policy, f"row {chunk.row} has no known tokens left to compute")
        _check_chunk(policy, chunk, seq, view.n_layers)


def _check_chunk(policy: object, chunk: Chunk, seq: SequenceView, n_layers: int) -> None:
    if chunk.start != seq.planned_tokens or not chunk.start < chunk.stop <= seq.total_tokens:
        raise PolicyViolation(
            policy,
            f"chunk [{chunk.start}, {chunk.stop}) of {seq.id}: its next token is {seq.planned_tokens}, "
            f"it has {seq.total_tokens}",
        )
    if chunk.first_layer != seq.layers_done:
        raise PolicyViolation(policy, f"chunk of {seq.id} starts at layer {chunk.first_layer}, not {seq.layers_done}")
    if chunk.stop_layer is not None and not chunk.first_layer < chunk.stop_layer <= n_layers:
        raise PolicyViolation(policy, f"chunk of {seq.id} stops at layer {chunk.stop_layer} of {n_layers}")
    if seq.pass_stop_tokens is not None and chunk.stop != seq.pass_stop_tokens:
        raise PolicyViolation(
            policy,
            f"chunk of {seq.id} changes its pass from {seq.pass_stop_tokens} to {chunk.stop} at a layer boundary",
        )
