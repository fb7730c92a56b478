"""Who is first in the queue."""

from collections.abc import Mapping

from penstock.core.view import OrderPolicy
from penstock.policy.order.edf import EarliestDeadlineFirst
from penstock.policy.order.fcfs import FirstComeFirstServed
from penstock.policy.order.longest_prefix_match import LongestPrefixMatch
from penstock.policy.order.priority import ByPriority
from penstock.policy.order.shortest_prefill import ShortestPrefill

ORDER: Mapping[str, type[OrderPolicy]] = {
    "fcfs": FirstComeFirstServed,
    "priority": ByPriority,
    "edf": EarliestDeadlineFirst,
    "shortest-prefill": ShortestPrefill,
    "longest-prefix-match": LongestPrefixMatch,
}
