"""OLMo 2: norms behind attention and MLP, and over whole projections of queries and keys."""

from __future__ import annotations

from penstock.models.config_file import ConfigFile
from penstock.models.families.family import Family, count_layers, read_attention, read_dense, read_model
from penstock.models.spec import LayerSpec, ModelSpec, NormPlace, QkNorm


def read_config(config: ConfigFile, architecture: str) -> ModelSpec:
    attention = read_attention(config, qk_norm=QkNorm.PROJECTION)
    layer = LayerSpec(attention, read_dense(config), NormPlace.BEHIND)
    return read_model(config, architecture, (layer,) * count_layers(config))


FAMILY = Family(
    models="OLMo 2",
    read_config=read_config,
)
