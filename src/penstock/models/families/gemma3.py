"""Gemma 3, text: Gemma 2 with norms on queries and keys instead of caps, five windows to one full layer, and slower
positions in the full ones."""

from __future__ import annotations

from dataclasses import replace

from penstock.models.config_file import ConfigFile
from penstock.models.families.family import Family, read_cap, read_dense, read_layer_types, read_window
from penstock.models.families.gemma import read_gemma_model
from penstock.models.families.gemma2 import DEFAULT_WINDOW_TOKENS, NAMES, read_gemma_attention
from penstock.models.rope_config import read_rope, read_rope_section
from penstock.models.spec import LayerSpec, ModelSpec, NormPlace, QkNorm, RopeSpec

DEFAULT_FULL_THETA = 1e6
DEFAULT_WINDOW_THETA = 1e4
DEFAULT_PATTERN = 6


def read_ropes(config: ConfigFile, head_dim: int) -> tuple[RopeSpec, RopeSpec]:
    """(of full layers, of windowed ones): a section for each kind, or `rope_local_base_freq` beside the usual keys."""
    theta = config.number("rope_local_base_freq", DEFAULT_WINDOW_THETA)
    by_kind = config.section("rope_parameters")
    if by_kind is None or not by_kind.values.keys() & {"full_attention", "sliding_attention"}:
        return read_rope(config, head_dim, DEFAULT_FULL_THETA), RopeSpec(theta=theta, dim=head_dim)
    return (
        read_rope_section(by_kind.section("full_attention"), config, head_dim, DEFAULT_FULL_THETA),
        read_rope_section(by_kind.section("sliding_attention"), config, head_dim, theta),
    )


def read_config(config: ConfigFile, architecture: str) -> ModelSpec:
    attention = read_gemma_attention(config, qk_norm=QkNorm.HEAD)
    attention = replace(attention, soft_cap=read_cap(config, "attn_logit_softcapping", absent=None))
    full_rope, window_rope = read_ropes(config, attention.head_dim)
    full = LayerSpec(replace(attention, rope=full_rope), read_dense(config), NormPlace.AROUND)
    window_tokens = read_window(config, absent=DEFAULT_WINDOW_TOKENS)
    windowed = replace(full, attention=replace(attention, rope=window_rope, window_tokens=window_tokens))
    pattern = config.integer("sliding_window_pattern", default=DEFAULT_PATTERN)
    kinds = read_layer_types(config, lambda index: (index + 1) % pattern > 0)
    layers = tuple(windowed if has_window else full for has_window in kinds)
    spec = read_gemma_model(config, architecture, layers)
    return replace(spec, logit_soft_cap=read_cap(config, "final_logit_softcapping", absent=None))


FAMILY = Family(
    models="Gemma 3, text only (270M, 1B)",
    limits="no `Gemma3ForConditionalGeneration`: the larger ones come with a vision tower",
    read_config=read_config,
    names=NAMES,
)
