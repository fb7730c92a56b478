"""Profiles that ship with the package, by model and device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from penstock.cost.profile import Profile, read_profile

FOLDER = Path(__file__).parent / "profiles"


def shipped_profile(model: str, device: str) -> Profile | None:
    """None if nobody measured this model on this device."""
    path = FOLDER / f"{model}-{device}.json"
    return read_profile(path) if path.is_file() else None


def shipped_profiles() -> Iterator[Profile]:
    for path in sorted(FOLDER.glob("*.json")):
        yield read_profile(path)
