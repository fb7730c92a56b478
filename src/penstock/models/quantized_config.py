"""`quantization_config` of a config.json: what of it is read, and one line about what is not. No torch is needed."""

from __future__ import annotations

from penstock.core.errors import UnsupportedModel
from penstock.models.config_file import ConfigFile, short

BLOCK = 128
READ = (
    "bfloat16, float16, float32, and fp8 in e4m3 with scales per tensor, row or block of 128x128 "
    "(fp8, fbgemm_fp8, compressed-tensors)"
)


def check_quantization(config: ConfigFile) -> None:
    """Raises UnsupportedModel for a format of weights that is not read; names it, and says what to do."""
    section = config.section("quantization_config", "compression_config")
    if section is None:
        return
    method = section.values.get("quant_method")
    match method:
        case "fp8":
            found = _in_fp8(section)
        case "fbgemm_fp8":
            found = None
        case "compressed-tensors":
            found = _in_compressed_tensors(section)
        case _:
            found = short(method)
    if found is not None:
        raise UnsupportedModel(
            f"{config.source}: quantization_config asks for quantized weights ({found}); supported: {READ}. "
            "Take the checkpoint that these were made from, and give --quantize fp8, int8 or int4"
        )


def _in_fp8(section: ConfigFile) -> str | None:
    """What is not read, or None."""
    if section.values.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        return f"fp8 in {short(section.values['fmt'])}"
    block = section.values.get("weight_block_size")
    return None if block in (None, [BLOCK, BLOCK]) else f"fp8 in blocks of {short(block)}"


def _in_compressed_tensors(section: ConfigFile) -> str | None:
    """What is not read, or None."""
    for key in ("sparsity_config", "transform_config"):
        value = section.values.get(key)
        if value and not (isinstance(value, dict) and value.get("format") == "dense"):
            return f"compressed-tensors with {key}"
    groups = section.values.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        return "compressed-tensors without config_groups"
    for group in groups.values():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            return "compressed-tensors without weights"
        block = weights.get("block_structure")
        match weights:
            case {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor" | "channel"}:
                continue
            case {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "block"} if block == [BLOCK, BLOCK]:
                continue
            case _:
                how = {key: weights.get(key) for key in ("num_bits", "type", "strategy")}
                return f"compressed-tensors {short(section.values.get('format'))}: {short(how)}"
    return None
