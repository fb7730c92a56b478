"""Who yields when memory is short, or of free will."""

from collections.abc import Mapping

from penstock.core.view import PreemptPolicy
from penstock.policy.preempt.cheapest import Cheapest
from penstock.policy.preempt.newest import Newest

PREEMPT: Mapping[str, type[PreemptPolicy]] = {
    "newest": Newest,
    "cheapest": Cheapest,
}
