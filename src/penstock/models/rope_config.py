"""Rotary positions as configurations describe them, in either style. No torch here: the simulator reads these, too."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from penstock.core.errors import CorruptModel, UnsupportedModel
from penstock.models.config_file import ConfigFile, short
from penstock.models.spec import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NoScaling,
    RopeScaling,
    RopeSpec,
    YarnScaling,
)

DEFAULT_THETA = 10000.0  # what a configuration without the key means, in most families


def read_rope(
    config: ConfigFile, head_dim: int, default_theta: float = DEFAULT_THETA, has_partial: bool = False
) -> RopeSpec:
    """Of `rope_scaling` beside `rope_theta` (up to transformers 4), or `rope_parameters` with both (from 5 on).

    has_partial: of families that heed `partial_rotary_factor`; the others are refused with it.
    Raises: UnsupportedModel for a type that `SCALINGS` does not have, for rotated parts of a head, for nested ones.
    """
    theta = config.number("rope_theta", default_theta)
    section = config.section("rope_scaling", "rope_parameters")
    if not has_partial:
        return read_rope_section(section, config, head_dim, theta)
    return read_rope_section(section, config, head_dim, theta, _partial_factor(section, config))


def _partial_factor(section: ConfigFile | None, config: ConfigFile) -> float:
    outside: float = config.number("partial_rotary_factor", 1.0)
    return outside if section is None else section.number("partial_rotary_factor", outside)


def read_rope_section(
    section: ConfigFile | None, config: ConfigFile, head_dim: int, theta: float, partial_factor: float | None = None
) -> RopeSpec:
    """Of one section; None: no scaling. theta: where the section has none of its own. partial_factor None: whole
    heads are rotated, anything else is refused."""
    for source in (config, section):
        if partial_factor is None and source is not None:
            source.require("partial_rotary_factor", 1.0, default=1.0)
    dim = head_dim if partial_factor is None else int(min(head_dim * partial_factor, head_dim + 2))
    if head_dim % 2:
        raise CorruptModel(f"{config.source}: heads have {head_dim} features, which cannot rotate in pairs")
    if dim % 2 or not 0 < dim <= head_dim:
        raise CorruptModel(
            f"{config.source}: partial_rotary_factor {partial_factor} rotates {dim} of {head_dim} features"
        )
    if section is None:
        return RopeSpec(theta=theta, dim=dim)
    section.require("mrope_section", None, default=None)
    name = section.text("rope_type", "type", default="default")
    if name not in SCALINGS:
        raise UnsupportedModel(
            f"{section.source}: rope_type is {short(name)}; supported: {', '.join(sorted(SCALINGS))}"
        )
    scaling = SCALINGS[name](section, config)
    if isinstance(scaling, LongRopeScaling) and len(scaling.factors) != dim // 2:
        raise CorruptModel(
            f"{section.source}: short_factor has {len(scaling.factors)} entries for {dim // 2} frequencies"
        )
    return RopeSpec(theta=section.number("rope_theta", theta), dim=dim, scaling=scaling)


def _read_llama3(section: ConfigFile, config: ConfigFile) -> Llama3Scaling:
    return Llama3Scaling(
        factor=section.number("factor"),
        low_freq_factor=section.number("low_freq_factor"),
        high_freq_factor=section.number("high_freq_factor"),
        original_max_tokens=_original_max_tokens(section, config),
    )


def _read_yarn(section: ConfigFile, config: ConfigFile) -> YarnScaling:
    factor = section.number("factor")
    mscale, mscale_all = section.number("mscale", None), section.number("mscale_all_dim", None)
    if mscale is None or mscale_all is None:
        attention_factor = yarn_mscale(factor, 1.0)
    else:
        attention_factor = yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all)
    return YarnScaling(
        factor=factor,
        original_max_tokens=_original_max_tokens(section, config),
        attention_factor=section.number("attention_factor", attention_factor),
        beta_fast=section.number("beta_fast", 32.0),
        beta_slow=section.number("beta_slow", 1.0),
        is_truncated=section.flag("truncate", True),
    )


def _read_longrope(section: ConfigFile, config: ConfigFile) -> LongRopeScaling:
    original_max_tokens = config.integer("original_max_position_embeddings", default=None)
    if original_max_tokens is None:
        original_max_tokens = _original_max_tokens(section, config)
    if original_max_tokens < 2:  # its logarithm is divided by
        raise CorruptModel(f"{section.source}: original_max_position_embeddings is {original_max_tokens}")
    factor = section.number("factor", config.integer("max_position_embeddings") / original_max_tokens)
    attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_max_tokens))
    return LongRopeScaling(
        factors=section.numbers("short_factor"),
        original_max_tokens=original_max_tokens,
        attention_factor=section.number("attention_factor", attention_factor),
    )


def _original_max_tokens(section: ConfigFile, config: ConfigFile) -> int:
    found: int = section.integer("original_max_position_embeddings", default=config.integer("max_position_embeddings"))
    return found


def yarn_mscale(factor: float, mscale: float) -> float:
    """How much yarn sharpens scores, which a longer context flattens."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


SCALINGS: Mapping[str, Callable[[ConfigFile, ConfigFile], RopeScaling]] = {
    "default": lambda section, config: NoScaling(),
    "linear": lambda section, config: LinearScaling(section.number("factor")),
    "llama3": _read_llama3,
    "longrope": _read_longrope,
    "su": _read_longrope,  # its name in the first Phi-3
    "yarn": _read_yarn,
}
