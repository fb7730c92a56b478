"""Not to compute what somebody computes already.

Who follows starts a step later than it could. That costs nothing where it would not have been computed in the next step
anyway, since it and the prompts before it are more than a step takes: then it starts in the step in which it would have
been computed, with less to compute, and so do those behind it. Where all fit into one step, computing a prefix twice
takes less than a second step.
"""

from __future__ import annotations

from penstock.core.sequence import SequenceView
from penstock.core.view import Admission, View
from penstock.policy.options import check_option

STEP_TOKENS = 2048  # `decode-first` has no room for more; where there is, so many take longer than a step of few


def check_follow_option(follow_beyond_tokens: int) -> None:
    """Raise ValueError for a number of tokens that is none."""
    check_option("follow_beyond_tokens", follow_beyond_tokens, follow_beyond_tokens >= 0, "give 0 or more")


def start_or_follow(seq: SequenceView, view: View, beyond_tokens: int) -> Admission:
    """The answer for a sequence that fits now. It follows if somebody computes what it lacks, and those before it and
    itself have more than `beyond_tokens` to compute.
    """
    if not view.memory.coming_tokens(seq):
        return Admission.START
    own_tokens = seq.total_tokens - view.memory.hit_tokens(seq)
    ahead_tokens = sum(other.prefill_left_tokens for other in view.prefilling)
    is_late_anyway = bool(view.following) or ahead_tokens + own_tokens > beyond_tokens
    return Admission.FOLLOW if is_late_anyway else Admission.START
