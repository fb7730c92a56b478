"""The table of architectures. A family is one file: how its configuration reads, and how its tensors are called."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.core.errors import CorruptModel, UnsupportedModel
from penstock.models.config_file import ConfigFile, short
from penstock.models.families import (
    deepseek_v2,
    gemma,
    gemma2,
    gemma3,
    gpt_oss,
    llama,
    mistral,
    mixtral,
    olmo2,
    olmoe,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
    smollm3,
)
from penstock.models.families.family import Family

FAMILIES: Mapping[str, Family] = {
    "DeepseekV2ForCausalLM": deepseek_v2.FAMILY,
    "Gemma2ForCausalLM": gemma2.FAMILY,
    "Gemma3ForCausalLM": gemma3.FAMILY,
    "GemmaForCausalLM": gemma.FAMILY,
    "GptOssForCausalLM": gpt_oss.FAMILY,
    "LlamaForCausalLM": llama.FAMILY,
    "MistralForCausalLM": mistral.FAMILY,
    "MixtralForCausalLM": mixtral.FAMILY,
    "Olmo2ForCausalLM": olmo2.FAMILY,
    "OlmoeForCausalLM": olmoe.FAMILY,
    "Phi3ForCausalLM": phi3.FAMILY,
    "Qwen2ForCausalLM": qwen2.FAMILY,
    "Qwen2MoeForCausalLM": qwen2_moe.FAMILY,
    "Qwen3ForCausalLM": qwen3.FAMILY,
    "Qwen3MoeForCausalLM": qwen3_moe.FAMILY,
    "SmolLM3ForCausalLM": smollm3.FAMILY,
}


def family_of(config: ConfigFile) -> tuple[str, Family]:
    """The first of the configuration's architectures that the table has.

    `auto_map` (code that comes with a checkpoint) is never read.
    """
    listed = config.values.get("architectures")
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
        raise CorruptModel(f"{config.source}: architectures is {short(listed)}, expected a list of names")
    for name in listed:
        if name in FAMILIES:
            return name, FAMILIES[name]
    raise UnsupportedModel(
        f"{config.source}: the architecture {short(listed)} is not supported; known: {', '.join(sorted(FAMILIES))}"
    )
