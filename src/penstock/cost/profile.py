"""A measured cost model: what steps took on a device, as a few curves and rates, and the file that keeps it.

A step takes what its tokens cost (one curve for steps that only decode, one for those with chunks: they run different
kernels), what attention reads (seconds per key of decoding sequences, per key of chunks, and per pair of a prompt token
and a key that it sees), and something for each segment of a mixed batch. The curves are linear between the measured
sizes and go on as they end. Where decode steps are captured as graphs, a batch costs what its bucket does.

Beyond the measured sizes an estimate says so (`is_extrapolated`), and its band is that of steps that were predicted by
a fit which saw only smaller ones.

Source: the split into parts that depend on tokens and parts that depend on context follows Vidur (arXiv 2405.05465,
section 4.2); features of attention are sums over sequences instead of means.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from penstock.core.errors import ConfigError
from penstock.core.plan import Toward
from penstock.core.view import Estimate
from penstock.cost.load import Floats, StepLoad

FORMAT_VERSION = 2
FIELDS = ("decode_rows", "decode_keys", "chunk_tokens", "chunk_keys", "chunk_pairs")  # of a load, with a largest value


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Steps that only decode, or those with chunks.

    row_s: of a decoding sequence beside chunks. most: the largest measured value of each of `FIELDS`. held_out_frac,
    band_frac: mean and 90th percentile of the relative error on sizes that the fit did not see, with smaller and larger
    ones beside; beyond_frac: the 90th percentile on sizes beyond all that it saw. serving_frac: what steps of the
    running engine take, as a multiple of those that were measured one by one.
    """

    curve: Curve
    decode_key_s: float
    chunk_key_s: float = 0.0
    pair_s: float = 0.0
    row_s: float = 0.0
    most: tuple[float, ...]
    held_out_frac: float
    band_frac: float
    beyond_frac: float
    serving_frac: float = 1.0

    def seconds(self, size: float, load: StepLoad) -> float:
        seconds = self.curve.at(size) + self.decode_key_s * load.decode_keys
        if load.chunk_tokens:
            seconds += self.row_s * load.decode_rows
            seconds += load.layer_frac * (self.chunk_key_s * load.chunk_keys + self.pair_s * load.chunk_pairs)
        return self.serving_frac * seconds

    def is_beyond(self, load: StepLoad) -> bool:
        rows, decode_keys, tokens, chunk_keys, pairs = self.most  # named one by one: this runs in every step
        return (
            load.decode_rows > rows
            or load.decode_keys > decode_keys
            or load.chunk_tokens > tokens
            or load.chunk_keys > chunk_keys
            or load.chunk_pairs > pairs
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTimes:
    """What the engine itself works on a step: for the step, each decoding row, each sequence that starts (accepting it
    and ending it included), and each prompt token.
    """

    step_s: float
    row_s: float = 0.0
    start_s: float = 0.0
    token_s: float = 0.0

    def of(self, load: StepLoad) -> float:
        return (
            self.step_s + self.row_s * load.decode_rows + self.start_s * load.starts + self.token_s * load.chunk_tokens
        )


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A fitted model of one model on one device; also the file it is kept in.

    device: the name that `--device` has for it. hardware: what it was. key: hash of everything that went in. host:
    measured on the same machine. front_s: from a client's request to the engine and from a token to the client, HTTP
    and text included. out_bytes_per_s, in_bytes_per_s: to the host tier and back; None: not measured. buckets: rows of
    captured decode steps; none: none are captured.
    """

    model: str
    device: str
    hardware: str
    versions: Mapping[str, str]
    key: str
    decode: Kind
    chunk: Kind
    host: HostTimes
    front_s: float = 0.0
    out_bytes_per_s: float | None = None
    in_bytes_per_s: float | None = None
    buckets: tuple[int, ...] = ()
    n_samples: int
    penstock_profile: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Fitted:
    """The `CostModel` of a profile. host_bytes_per_s: of the link to host memory, where that was not measured."""

    profile: Profile
    host_bytes_per_s: float

    def step(self, load: StepLoad) -> Estimate:
        p = self.profile
        if load.chunk_tokens:
            kind, size = p.chunk, load.decode_rows + load.chunk_tokens * load.layer_frac
        else:
            kind, size = p.decode, bucket_of(p.buckets, load.decode_rows)
        is_beyond = kind.is_beyond(load)
        return Estimate(kind.seconds(size, load), kind.beyond_frac if is_beyond else kind.band_frac, is_beyond)

    def decode_s(self, rows: int, keys: Floats) -> Floats:
        kind = self.profile.decode
        return kind.serving_frac * (kind.curve.at(bucket_of(self.profile.buckets, rows)) + kind.decode_key_s * keys)

    def host_s(self, load: StepLoad) -> float:
        return self.profile.host.of(load)

    @property
    def front_s(self) -> float:
        return self.profile.front_s

    def move_s(self, n_bytes: int, toward: Toward) -> float:
        p = self.profile
        measured = p.out_bytes_per_s if toward is Toward.HOST else p.in_bytes_per_s
        return n_bytes / (measured or self.host_bytes_per_s)

    def describe(self) -> str:
        p = self.profile
        return (
            f"step times of {p.model} were measured on {p.hardware}; sizes that the fit never saw are "
            f"{p.decode.held_out_frac:.1%} off (decode) and {p.chunk.held_out_frac:.1%} (prompts)"
        )


def bucket_of(buckets: Sequence[int], rows: int) -> int:
    """The bucket that a batch is padded to; itself without buckets, or beyond the largest."""
    at = bisect_left(buckets, rows)
    return buckets[at] if at < len(buckets) else rows


def read_profile(path: Path) -> Profile:
    """Raises ConfigError naming the file and what is wrong with it."""
    try:
        found = path.read_bytes()
    except OSError as error:
        why = f"cannot read the profile {path}: {error.strerror}"
        raise ConfigError(f"{why}; make one with `penstock profile`") from None
    try:
        version = msgspec.json.decode(found, type=_Version).penstock_profile
        if version != FORMAT_VERSION:
            raise ConfigError(
                f"{path} has version {version}, this release reads {FORMAT_VERSION}; measure again with "
                "`penstock profile`"
            )
        return msgspec.json.decode(found, type=Profile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a profile of `penstock profile`: {error}") from None


class _Version(msgspec.Struct):
    penstock_profile: int


def write_profile(path: Path, profile: Profile) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n")
