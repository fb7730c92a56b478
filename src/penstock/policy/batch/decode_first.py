"""Stall-free batching: decodes first, prompts in chunks beside them."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.core.plan import Chunk, Plan
from penstock.core.view import Steady, View, next_chunk
from penstock.policy.options import check_option


@dataclass(frozen=True, slots=True)
class DecodeFirst(Steady):
    """Decode every running sequence, then spend the rest of the budget on prompts (Sarathi-Serve, arXiv 2403.02310).

    budget_tokens: most tokens of a step, decodes included. At most `long_prefills` prompts with more than `long_tokens`
    left take part in one step, so that short ones pass between them. With nothing to decode the budget is all for
    prompts. A step always takes at least one prompt token if a prompt waits, however many sequences decode.
    """

    budget_tokens: int = 2048
    long_tokens: int = 1024
    long_prefills: int = 1

    def __post_init__(self) -> None:
        check_option("budget_tokens", self.budget_tokens, self.budget_tokens >= 1, "give 1 or more")
        check_option("long_tokens", self.long_tokens, self.long_tokens >= 0, "give 0 or more")
        check_option("long_prefills", self.long_prefills, self.long_prefills >= 1, "give 1 or more")

    def batch(self, view: View) -> Plan:
        left_tokens = max(self.budget_tokens - view.decoding.tokens, 1)
        left_long = self.long_prefills
        chunks: list[Chunk] = []
        for seq in view.prefilling:
            if left_tokens <= 0:
                break
            if seq.prefill_left_tokens > self.long_tokens:
                if left_long == 0:
                    continue
                left_long -= 1
            take_tokens = min(seq.prefill_left_tokens, left_tokens)
            chunks.append(next_chunk(seq, take_tokens))
            left_tokens -= take_tokens
        return Plan(decode=view.decoding, chunks=tuple(chunks))
