"""Which parameters `--quantize` rounds, and how many bytes are left of them by rows. No torch is needed."""

from __future__ import annotations

from penstock.core.errors import UnknownName
from penstock.models.parameters import Parameter
from penstock.ops.weight_format import Format

ROUNDED = (Format.FP8, Format.INT8, Format.INT4)
QUANTIZATIONS = ("none", *(format.value for format in ROUNDED))
KEPT_BY_FP8 = ("embed", "head")  # as checkpoints with fp8 weights do


def is_matrix(parameter: Parameter) -> bool:
    """A linear layer multiplies by it, and nothing else looks into it: latent attention cuts its `kv_b` to pieces."""
    return len(parameter.shape) > 1 and not parameter.name.endswith(("_norm", "_bias", ".kv_b"))


def is_rounded(parameter: Parameter, format: Format) -> bool:
    """Routers stay: they are small, and a rounded one sends tokens elsewhere."""
    is_kept = parameter.name.endswith((".router", ".shared_gate"))
    is_kept |= format is Format.FP8 and parameter.name in KEPT_BY_FP8
    return is_matrix(parameter) and not is_kept


def bytes_by_rows(parameter: Parameter, quantization: str, item_bytes: int) -> int:
    """Memory that a parameter takes if matrices are rounded row by row. Raises UnknownName."""
    if quantization not in QUANTIZATIONS:
        raise UnknownName("quantization", quantization, QUANTIZATIONS)
    if quantization == "none" or not is_rounded(parameter, Format(quantization)):
        return parameter.elements * item_bytes
    n_inputs = parameter.shape[-1]
    return parameter.elements // n_inputs * Format(quantization).row_bytes(n_inputs)
