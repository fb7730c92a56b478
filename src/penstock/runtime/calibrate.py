"""Scores of a model's attention, as prompts give them: recorded, kept by checkpoint, and read when an engine starts.

What is kept are histograms. Where to place a layer's maximum follows from them when they are read, for it depends on
how long contexts may become there.

Shape letters: N tokens of a prompt, L = N keys, K KV heads, G query heads that share one, d head dim.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from penstock.core.errors import ConfigError
from penstock.models.decoder import Decoder
from penstock.models.softmax import SoftmaxLayers
from penstock.models.spec import ModelSpec
from penstock.ops import native
from penstock.ops.batch import SegmentBatch
from penstock.ops.paged_attention import paged_attention
from penstock.ops.unified_attention import unified_attention
from penstock.ops.unified_max import BIN_WIDTH, BINS, FIRST_SCORE, ScoreHistogram, SoftmaxCalibration

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
BLOCK_TOKENS = 16
EDGE_BYTES = 2**16


class CalibrationFile(msgspec.Struct, frozen=True, kw_only=True):
    """Of one checkpoint. layers: by layer."""

    checkpoint: str
    n_prompts: int
    n_tokens: int
    layers: list[ScoreHistogram]
    penstock_softmax: int = FORMAT_VERSION


# --- recording ---------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _Recorder:
    """Attends as ever, and counts the scores of the tokens that pass."""

    scores: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))
    peaks: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))
    least_peak: float = float("inf")
    greatest_peak: float = float("-inf")

    def __call__(
        self,
        q_NHd: Tensor,
        kv: Tensor,
        batch: SegmentBatch,
        scale: float,
        window_tokens: int | None,
        soft_cap: float | None,
        /,
    ) -> tuple[Tensor, Tensor]:
        """As `paged_attention`, for one prompt without context."""
        n_tokens = len(q_NHd)
        k_LKd = kv[0, batch.tables_SB[0]].flatten(0, 1)[:n_tokens].float()
        q_NKGd = q_NHd.float().reshape(n_tokens, k_LKd.shape[1], -1, q_NHd.shape[2])
        scores_KGNL = torch.einsum("nkgd,lkd->kgnl", q_NKGd, k_LKd) * scale
        if soft_cap is not None:
            scores_KGNL = soft_cap * torch.tanh(scores_KGNL / soft_cap)
        place_N = torch.arange(n_tokens, device=q_NHd.device)
        is_seen_NL = place_N[None, :] <= place_N[:, None]
        if window_tokens is not None:
            is_seen_NL &= place_N[None, :] > place_N[:, None] - window_tokens
        peaks = scores_KGNL.masked_fill(~is_seen_NL, -torch.inf).amax(-1)
        self.scores += _counts(scores_KGNL[..., is_seen_NL])
        self.peaks += _counts(peaks)
        self.least_peak = min(self.least_peak, float(peaks.min()))
        self.greatest_peak = max(self.greatest_peak, float(peaks.max()))
        return paged_attention(q_NHd, kv, batch, scale, window_tokens, soft_cap)

    def histogram(self) -> ScoreHistogram:
        return ScoreHistogram(
            scores=tuple(self.scores.tolist()),
            peaks=tuple(self.peaks.tolist()),
            least_peak=self.least_peak,
            greatest_peak=self.greatest_peak,
        )


def _counts(values: Tensor) -> Tensor:
    bins = ((values - FIRST_SCORE) / BIN_WIDTH).floor().clamp(0, BINS - 1).to(torch.int64)
    return torch.bincount(bins.flatten(), minlength=BINS).cpu()


class _Recorders:
    """One for each layer of a model."""

    def __init__(self, n_layers: int) -> None:
        self.layers = [_Recorder() for _ in range(n_layers)]

    def review(self) -> tuple[int, ...]:
        return ()


def record(decoder: Decoder, prompts: Sequence[Sequence[int]]) -> list[ScoreHistogram]:
    """Scores of every layer over some prompts of token ids, each in one pass. Raises ConfigError if there are none."""
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise ConfigError("calibration needs at least one prompt with a token in it")
    recorders = _Recorders(len(decoder.spec.layers))
    recording = decoder.attending_by(recorders)
    with torch.inference_mode():
        for prompt in prompts:
            batch = _whole(len(prompt), decoder.device)
            pools = [_pool(decoder, layer, len(batch.tables_SB[0])) for layer in range(len(recorders.layers))]
            x_ND = recording.embed(torch.tensor(list(prompt), device=decoder.device))
            recording.run_layers(x_ND, batch, pools, 0, len(pools))
    return [recorder.histogram() for recorder in recorders.layers]


def _whole(n_tokens: int, device: torch.device) -> SegmentBatch:
    """One prompt from its first token on, in blocks that follow each other."""
    places = torch.arange(n_tokens, device=device)
    n_blocks = -(-n_tokens // BLOCK_TOKENS)
    return SegmentBatch(
        positions_T=places,
        slots_T=places,
        q_starts=torch.tensor([0, n_tokens], device=device),
        kv_lens=torch.tensor([n_tokens], device=device),
        tables_SB=torch.arange(n_blocks, dtype=torch.int32, device=device)[None],
        q_starts_host=(0, n_tokens),
        kv_lens_host=(n_tokens,),
        block_tokens=BLOCK_TOKENS,
    )


def _pool(decoder: Decoder, layer: int, n_blocks: int) -> Tensor:
    attention = decoder.spec.layers[layer].attention
    shape = 2, n_blocks, BLOCK_TOKENS, attention.kv_heads, attention.head_dim
    return torch.zeros(shape, dtype=decoder.dtype, device=decoder.device)


# --- by checkpoint -----------------------------------------------------------------------------------------------
def checkpoint_key(model: Path) -> str:
    """Names the weights: by the configuration, and the sizes, heads and ends of the files that hold them."""
    digest = hashlib.sha256()
    files = [model] if model.is_file() else sorted([*model.glob("*.safetensors"), *model.glob("config.json")])
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(EDGE_BYTES))
            opened.seek(max(0, size - EDGE_BYTES))
            digest.update(opened.read(EDGE_BYTES))
    return digest.hexdigest()[:24]


def path_of(model: Path) -> Path:
    """Where a checkpoint's calibration is kept."""
    return native.user_cache_dir() / f"softmax-{checkpoint_key(model)}.json"


def write_calibration(path: Path, file: CalibrationFile) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(file) + b"\n")


def read_calibration(model: Path) -> CalibrationFile:
    """That of a checkpoint. Raises ConfigError if there is none, or if it is damaged."""
    path = path_of(model)
    try:
        file = msgspec.json.decode(path.read_bytes(), type=CalibrationFile)
    except OSError:
        raise ConfigError(
            f"there is no calibration for these weights ({path}): run `penstock profile softmax --model {model}` "
            "first, or start with --softmax exact"
        ) from None
    except (msgspec.DecodeError, ValueError) as error:
        raise ConfigError(f"{path} is no calibration: {error}; run `penstock profile softmax` again") from None
    if file.penstock_softmax != FORMAT_VERSION or file.checkpoint != checkpoint_key(model):
        raise ConfigError(f"{path} is of another release or other weights: run `penstock profile softmax` again")
    return file


def fit_layers(layers: Sequence[ScoreHistogram], spec: ModelSpec, most_tokens: int) -> list[SoftmaxCalibration]:
    """Of each layer, for contexts of up to so many tokens."""
    return [
        SoftmaxCalibration.fit(histogram, min(most_tokens, layer.attention.window_tokens or most_tokens))
        for histogram, layer in zip(layers, spec.layers, strict=True)
    ]


def with_unified_softmax(decoder: Decoder, model: Path, most_tokens: int) -> Decoder:
    """The same decoder, whose decode steps sum against calibrated maxima where layers and kernels allow it.

    Raises ConfigError without a calibration.
    """
    file = read_calibration(model)
    served_by = unified_attention.on(decoder.device)
    if served_by == "reference" or decoder.dtype is torch.float16:
        log.warning(
            "--softmax unified has no kernel for %s on %s here, so softmax stays exact%s",
            decoder.dtype, decoder.device, "; --native-kernels has one" if decoder.device.type == "cpu" else "",
        )  # fmt: skip
        return decoder
    found = fit_layers(file.layers, decoder.spec, most_tokens)
    n_on = sum(layer.unified is not None for layer in found)
    log.info("softmax: a fixed maximum in %d of %d layers (%s)", n_on, len(found), served_by)
    return decoder.attending_by(SoftmaxLayers(found, decoder.device))
