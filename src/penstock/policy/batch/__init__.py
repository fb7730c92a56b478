"""Whose tokens go into the step."""

from collections.abc import Mapping

from penstock.core.view import BatchPolicy
from penstock.policy.batch.decode_first import DecodeFirst
from penstock.policy.batch.prefill_first import PrefillFirst

BATCH: Mapping[str, type[BatchPolicy]] = {
    "decode-first": DecodeFirst,
    "prefill-first": PrefillFirst,
}
