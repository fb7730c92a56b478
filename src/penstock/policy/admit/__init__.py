"""May a waiting sequence start now?"""

from collections.abc import Mapping

from penstock.core.view import AdmitPolicy
from penstock.policy.admit.in_time import InTime
from penstock.policy.admit.watermark import Watermark
from penstock.policy.admit.worst_case import WorstCase

ADMIT: Mapping[str, type[AdmitPolicy]] = {
    "watermark": Watermark,
    "worst-case": WorstCase,
    "in-time": InTime,
}
