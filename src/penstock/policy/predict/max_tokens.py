"""Every answer is as long as it may be."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.core.sequence import SequenceView


@dataclass(frozen=True, slots=True)
class MaxTokens:
    """The limit of the request: never too low."""

    def expected_tokens(self, seq: SequenceView) -> int:
        return seq.output_limit_tokens

    def bound_tokens(self, seq: SequenceView) -> int:
        return seq.output_limit_tokens
