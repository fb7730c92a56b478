"""A measured cost model: what steps took on a device, fitted to a few curves, with its error on steps it never saw.

A step takes what its tokens cost (one curve for steps that only decode, one for those with chunks: they run different
kernels), and what attention reads: seconds per key of decoding sequences, per key of chunks, and per pair of a prompt
token and a key that it sees. The curves are linear between the measured sizes and go on as they end.

Source: the split into parts that depend on tokens and parts that depend on context follows Vidur (arXiv 2405.05465,
section 4.2); features of attention are sums over sequences instead of means.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from penstock.core.errors import ConfigError
from penstock.cost.load import Estimate, Floats, StepLoad

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """A step that was measured."""

    load: StepLoad
    seconds: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Seconds by size, linear between the nodes (sizes ascending), and beyond the last one with its last slope."""

    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, size: float) -> float:
        if len(self.sizes) == 1:
            return self.seconds[0]
        right = min(max(bisect_right(self.sizes, size), 1), len(self.sizes) - 1)
        low, high = self.sizes[right - 1], self.sizes[right]
        share = max(0.0, (size - low) / (high - low))
        return self.seconds[right - 1] + share * (self.seconds[right] - self.seconds[right - 1])

    @staticmethod
    def weights(sizes: Sequence[int], size: float) -> Floats:
        """How much each node counts for a size: the row of a linear fit."""
        return np.array([Curve(tuple(sizes), tuple(hat)).at(size) for hat in np.eye(len(sizes))])


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A fitted model of one model on one device; also the file it is kept in.

    key: hash of everything that went in. host_s: of a step, measured on the same machine. held_out_frac, band_frac:
    mean and 90th percentile of the relative error on steps that were not fitted.
    """

    model: str
    device: str
    versions: Mapping[str, str]
    key: str
    decode: Curve
    chunk: Curve
    decode_key_s: float
    chunk_key_s: float
    pair_s: float
    host_s: float
    held_out_frac: float
    band_frac: float
    n_samples: int
    penstock_profile: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Fitted:
    """The `CostModel` of a profile."""

    profile: Profile

    def step(self, load: StepLoad) -> Estimate:
        p = self.profile
        if load.chunk_tokens:
            seconds = p.chunk.at(load.decode_rows + load.chunk_tokens * load.layer_frac)
            seconds += load.layer_frac * (p.chunk_key_s * load.chunk_keys + p.pair_s * load.chunk_pairs)
        else:
            seconds = p.decode.at(load.decode_rows)
        return Estimate(seconds + p.decode_key_s * load.decode_keys, p.band_frac)

    def decode_s(self, rows: int, keys: Floats) -> Floats:
        return self.profile.decode.at(rows) + self.profile.decode_key_s * keys

    def host_s(self, load: StepLoad) -> float:
        return self.profile.host_s

    def describe(self) -> str:
        p = self.profile
        return f"step times were measured on {p.device}; on steps it never saw the model is {p.held_out_frac:.1%} off"


def fit(
    measured: Sequence[Sample],
    held_out: Sequence[Sample],
    *,
    model: str,
    device: str,
    versions: Mapping[str, str],
    host_s: float,
) -> Profile:
    """Fit curves and rates to steps, by least squares of relative errors; nothing comes out negative.

    Raises ConfigError if there are no steps of either kind, or none to hold out.
    """
    decode_sizes = sorted({sample.load.decode_rows for sample in measured if not sample.load.chunk_tokens})
    chunk_sizes = sorted({sample.load.tokens for sample in measured if sample.load.chunk_tokens})
    if not decode_sizes or not chunk_sizes or not held_out:
        raise ConfigError("a profile needs steps that only decode, steps with prompts, and some of each to check it on")
    rows = np.array([_row(sample.load, decode_sizes, chunk_sizes) for sample in measured])
    seconds = np.array([sample.seconds for sample in measured])
    weights = _least_squares(rows / seconds[:, None], np.ones(len(seconds)))
    n_decode, n_chunk = len(decode_sizes), len(chunk_sizes)
    decode = Curve(tuple(decode_sizes), tuple(weights[:n_decode].tolist()))
    chunk = Curve(tuple(chunk_sizes), tuple(weights[n_decode : n_decode + n_chunk].tolist()))
    decode_key_s, chunk_key_s, pair_s = weights[n_decode + n_chunk :].tolist()
    errors = np.array(
        [abs(_row(sample.load, decode_sizes, chunk_sizes) @ weights / sample.seconds - 1) for sample in held_out]
    )
    inputs = msgspec.json.encode((model, device, dict(versions), measured, held_out, host_s))
    return Profile(
        model=model,
        device=device,
        versions=versions,
        key=hashlib.blake2b(inputs, digest_size=16).hexdigest(),
        decode=decode,
        chunk=chunk,
        decode_key_s=decode_key_s,
        chunk_key_s=chunk_key_s,
        pair_s=pair_s,
        host_s=host_s,
        held_out_frac=float(errors.mean()),
        band_frac=float(np.percentile(errors, 90)),
        n_samples=len(measured),
    )


def _row(load: StepLoad, decode_sizes: Sequence[int], chunk_sizes: Sequence[int]) -> Floats:
    """What multiplies each fitted number in the time of a step."""
    is_decode = not load.chunk_tokens
    decode = Curve.weights(decode_sizes, load.decode_rows) * is_decode
    chunk = Curve.weights(chunk_sizes, load.decode_rows + load.chunk_tokens * load.layer_frac) * (not is_decode)
    attention = (load.decode_keys, load.layer_frac * load.chunk_keys, load.layer_frac * load.chunk_pairs)
    return np.concatenate((decode, chunk, attention))


def _least_squares(rows: Floats, wanted: Floats) -> Floats:
    """Least squares without negative answers: a column with one is left out, and the rest solved again."""
    scale = np.maximum(np.abs(rows).max(axis=0), 1e-300)
    used = np.arange(rows.shape[1])
    while True:
        found = np.linalg.lstsq(rows[:, used] / scale[used], wanted, rcond=None)[0]
        if (found >= 0).all():
            answer = np.zeros(rows.shape[1])
            answer[used] = found / scale[used]
            return answer
        used = used[found >= 0]


def read_profile(path: Path) -> Profile:
    """Raises ConfigError naming the file and what is wrong with it."""
    try:
        profile = msgspec.json.decode(path.read_bytes(), type=Profile)
    except OSError as error:
        why = f"cannot read the profile {path}: {error.strerror}"
        raise ConfigError(f"{why}; make one with `penstock profile`") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise ConfigError(f"{path} is not a profile of `penstock profile`: {error}") from None
    if profile.penstock_profile != FORMAT_VERSION:
        raise ConfigError(f"{path} has version {profile.penstock_profile}, this release reads {FORMAT_VERSION}")
    return profile


def write_profile(path: Path, profile: Profile) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n")
