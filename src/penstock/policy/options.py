"""Options of a policy are checked where it is constructed, so that nobody checks again."""

from __future__ import annotations

from penstock.core.errors import ConfigError


def check_option(name: str, value: float, ok: bool, wanted: str) -> None:
    """Raise ConfigError unless `ok`; write conditions so that NaN does not fulfil them."""
    if not ok:
        raise ConfigError(f"{name} is {value}: {wanted}")
