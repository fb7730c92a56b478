"""What stays cached."""

from collections.abc import Mapping

from penstock.core.view import RetainPolicy
from penstock.policy.retain.lru import LeastRecentlyUsed

RETAIN: Mapping[str, type[RetainPolicy]] = {
    "lru": LeastRecentlyUsed,
}
