"""What a step asks for, in a few numbers: the input of every cost model."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class StepLoad(msgspec.Struct, frozen=True):
    """Sums over the sequences of a step.

    decode_rows, decode_keys: sequences that take one token, and the keys that these read, their own included.
    chunk_tokens, chunk_keys, chunk_pairs: prompt tokens; keys that their chunks read; pairs of a token and a key that
    it sees, sum of c * (before + (c + 1) / 2) over chunks of c tokens. samples: tokens that are drawn. layer_frac:
    share of the layers that the chunks pass, 1 if whole. starts: sequences that take a row.

    Layers with a window read fewer keys than others: what is counted is the mean over all layers, each by its bytes.
    """

    decode_rows: int = 0
    decode_keys: float = 0
    chunk_tokens: int = 0
    chunk_keys: float = 0
    chunk_pairs: float = 0.0
    samples: int = 0
    layer_frac: float = 1.0
    starts: int = 0

    @property
    def tokens(self) -> int:
        return self.decode_rows + self.chunk_tokens


def keys_seen(start: int, stop: int, most: int | None) -> int:
    """Keys that the tokens at positions [start, stop) see together: each itself and all before it, `most` at most."""

    def up_to(n: int) -> int:
        whole = n if most is None else min(n, most)
        return whole * (whole + 1) // 2 + (n - whole) * (most or 0)

    return max(0, up_to(stop) - up_to(start))
