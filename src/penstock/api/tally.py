"""What an answer took: tokens for `usage`, times for `metrics`, per call and over all its samples."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from penstock.api.translate import Job
from penstock.engine.outputs import OutputDelta, RequestStats


class PromptDetails(msgspec.Struct):
    cached_tokens: int


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Timings(msgspec.Struct):
    """The server's own times of one call, in milliseconds; over several samples: the longest wait, the first token,
    the time from it to the last one, the mean gap between the tokens of a sample, and all tokens per second of the
    whole call.
    """

    queue_time_ms: float | None
    time_to_first_token_ms: float | None
    generation_time_ms: float | None
    mean_itl_ms: float | None
    tokens_per_second: float | None


@dataclass(eq=False, slots=True)
class Tally:
    """Counts while an answer is written."""

    job: Job
    completion_tokens: int = 0
    stats: list[RequestStats] = field(default_factory=list)
    _cached: dict[int, int] = field(default_factory=dict)

    def take(self, prompt: int, delta: OutputDelta) -> None:
        if not self.job.is_scoring:
            self.completion_tokens += len(delta.tokens)
        if delta.stats is not None:
            self.stats.append(delta.stats)
            self._cached[prompt] = max(self._cached.get(prompt, 0), delta.stats.cached_tokens)

    def usage(self) -> Usage:
        prompt_tokens = sum(len(request.prompt) for request in self.job.requests)
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=self.completion_tokens,
            total_tokens=prompt_tokens + self.completion_tokens,
            prompt_tokens_details=PromptDetails(sum(self._cached.values())),
        )

    def timings(self) -> Timings:
        queue_s = max((s.queue_s for s in self.stats if s.queue_s is not None), default=None)
        first_s = min((s.ttft_s for s in self.stats if s.ttft_s is not None), default=None)
        last_s = max((s.e2e_s for s in self.stats), default=None)
        gaps = [(s.tpot_s, s.output_tokens - 1) for s in self.stats]
        n_gaps = sum(n for gap_s, n in gaps if gap_s is not None)
        total_s = sum(gap_s * n for gap_s, n in gaps if gap_s is not None)
        return Timings(
            queue_time_ms=_ms(queue_s),
            time_to_first_token_ms=_ms(first_s),
            generation_time_ms=None if first_s is None or last_s is None else _ms(last_s - first_s),
            mean_itl_ms=_ms(total_s / n_gaps) if n_gaps else None,
            tokens_per_second=round(self.completion_tokens / last_s, 3) if last_s else None,
        )


def _ms(time_s: float | None) -> float | None:
    return None if time_s is None else round(time_s * 1000, 3)
