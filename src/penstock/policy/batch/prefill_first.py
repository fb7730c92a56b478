"""Prompts first: the shortest time to first token, at the price of stalled decodes."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.core.plan import NO_DECODE, Chunk, Plan
from penstock.core.view import Steady, View, next_chunk
from penstock.policy.options import check_option


@dataclass(frozen=True, slots=True)
class PrefillFirst(Steady):
    """While a prompt is to be computed, steps hold prompts only; then everyone decodes (Orca-like, as early vLLM).

    budget_tokens: most prompt tokens of a step; a longer prompt is cut.
    """

    budget_tokens: int = 8192

    def __post_init__(self) -> None:
        check_option("budget_tokens", self.budget_tokens, self.budget_tokens >= 1, "give 1 or more")

    def batch(self, view: View) -> Plan:
        left_tokens = self.budget_tokens
        chunks: list[Chunk] = []
        for seq in view.prefilling:
            take_tokens = min(seq.prefill_left_tokens, left_tokens)
            if take_tokens <= 0:
                break
            chunks.append(next_chunk(seq, take_tokens))
            left_tokens -= take_tokens
        return Plan(decode=NO_DECODE if chunks else view.decoding, chunks=tuple(chunks))
