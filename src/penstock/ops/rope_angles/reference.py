"""Shape letters: T tokens, R rotated pairs."""

from __future__ import annotations

from torch import Tensor


def rope_angles(positions_T: Tensor, inv_freq_R: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each pair of features at each position, for `rope`.

    The angles are float64: a stream goes on for millions of tokens, and in float32 a token at the millionth place
    would already be turned by some hundredths of a radian too far.

    Args:
        positions_T: int64.
        inv_freq_R: float32, radians per token of each pair.
        factor: what both are multiplied by.
    Returns: (cos_TR, sin_TR), float32.
    Source: RoPE (arXiv 2104.09864); the factor as in YaRN (arXiv 2309.00071).
    """
    angles_TR = positions_T.unsqueeze(1).double() * inv_freq_R
    cos_TR, sin_TR = angles_TR.cos().float(), angles_TR.sin().float()
    return (cos_TR, sin_TR) if factor == 1.0 else (cos_TR * factor, sin_TR * factor)
