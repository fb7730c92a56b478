"""Named choices of the command line; apart, so that `penstock --help` need not import what they stand for."""

from __future__ import annotations

from enum import StrEnum

FORMATS = ("penstock", "parquet", "burstgpt", "azure", "mooncake")  # the rows of readers.READERS


class Pacing(StrEnum):
    OPEN = "open"
    SESSIONS = "sessions"


class Traffic(StrEnum):
    STEADY = "steady"
    RAGGED = "ragged"
    BURSTS = "bursts"
    DAY = "day"


class BurstsKeep(StrEnum):
    REQUESTS = "requests"
    SECONDS = "seconds"
