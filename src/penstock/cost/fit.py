"""From measured steps to a profile, by least squares of relative errors; nothing comes out negative, and no curve
falls: more work never takes less time.

How wrong it is, is found on whole ranges: all steps of one size (of batches, of chunks, of contexts) are left out, the
rest is fitted, and the left out ones predicted. Ranges with measured ones on both sides give the error between; the
last range gives the error beyond.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.core.errors import ConfigError
from penstock.cost.load import StepLoad
from penstock.cost.profile import FIELDS, Curve, HostTimes, Kind, Profile, Sample, bucket_of

Floats = npt.NDArray[np.float64]
LEAST_BAND_FRAC = 0.01
ACCIDENTS_FRAC = 0.01  # of the steps, on each side


def fit(
    samples: Sequence[Sample],
    *,
    model: str,
    device: str,
    hardware: str,
    versions: Mapping[str, str],
    host: HostTimes,
    front_s: float = 0.0,
    out_bytes_per_s: float | None = None,
    in_bytes_per_s: float | None = None,
    buckets: tuple[int, ...] = (),
    served: Sequence[Sample] = (),
) -> Profile:
    """A profile of steps that were measured one by one. served: steps of a running engine, for the whole-step
    correction.

    Raises ConfigError if there are too few steps of either kind.
    """
    decode = [sample for sample in samples if not sample.load.chunk_tokens]
    chunk = [sample for sample in samples if sample.load.chunk_tokens]
    if len(decode) < 2 or len(chunk) < 2:
        raise ConfigError("a profile needs steps that only decode and steps with prompts, of several sizes each")
    decode_kind = _fit_kind(decode, lambda load: bucket_of(buckets, load.decode_rows), ("decode_keys",))
    chunk_kind = _fit_kind(chunk, _chunk_size, ("decode_keys", "chunk_keys", "chunk_pairs", "decode_rows"))
    inputs = msgspec.json.encode(
        [
            (model, device, hardware, sorted(versions.items()), samples, served),
            (host, front_s, out_bytes_per_s, in_bytes_per_s, buckets),
        ]
    )
    return Profile(
        model=model,
        device=device,
        hardware=hardware,
        versions=versions,
        key=hashlib.blake2b(inputs, digest_size=16).hexdigest(),
        decode=_corrected(decode_kind, served, lambda load: bucket_of(buckets, load.decode_rows), has_chunks=False),
        chunk=_corrected(chunk_kind, served, _chunk_size, has_chunks=True),
        host=host,
        front_s=front_s,
        out_bytes_per_s=out_bytes_per_s,
        in_bytes_per_s=in_bytes_per_s,
        buckets=buckets,
        n_samples=len(samples),
    )


SizeOf = Callable[[StepLoad], float]


def _chunk_size(load: StepLoad) -> float:
    return load.decode_rows + load.chunk_tokens * load.layer_frac


@dataclass(frozen=True, slots=True)
class _Solved:
    """nodes: sizes of the curve. weights: its increments, then one for each of `parts`."""

    nodes: tuple[int, ...]
    weights: Floats
    size_of: SizeOf
    parts: tuple[str, ...]

    @classmethod
    def of(cls, samples: Sequence[Sample], size_of: SizeOf, parts: tuple[str, ...]) -> _Solved:
        plain = [sample for sample in samples if not (sample.load.chunk_tokens and sample.load.decode_rows)]
        nodes = tuple(sorted({round(size_of(sample.load)) for sample in plain or samples}))
        rows = np.array([_row(sample.load, nodes, size_of, parts) for sample in samples])
        seconds = np.array([sample.seconds for sample in samples])
        return cls(nodes, _least_squares(rows / seconds[:, None], np.ones(len(seconds))), size_of, parts)

    def error(self, sample: Sample) -> float:
        found = float(_row(sample.load, self.nodes, self.size_of, self.parts) @ self.weights)
        return abs(found / sample.seconds - 1)


def _row(load: StepLoad, nodes: Sequence[int], size_of: SizeOf, parts: tuple[str, ...]) -> Floats:
    """What multiplies each fitted number in the time of a step. The curve is a sum of increments from node to node."""
    size = size_of(load)
    steps = [1.0]
    for k in range(1, len(nodes)):
        is_last = k == len(nodes) - 1
        share = (size - nodes[k - 1]) / (nodes[k] - nodes[k - 1])
        steps.append(max(0.0, share if is_last else min(1.0, share)))
    scaled = (getattr(load, part) * (load.layer_frac if part.startswith("chunk") else 1.0) for part in parts)
    return np.array([*steps, *scaled])


def _fit_kind(samples: Sequence[Sample], size_of: SizeOf, parts: tuple[str, ...]) -> Kind:
    between: list[float] = []
    beyond: list[float] = []
    for held, is_last in _ranges(samples, size_of):
        rest = [sample for sample in samples if id(sample) not in held]
        if len(rest) < 2:
            continue
        solved = _Solved.of(rest, size_of, parts)
        (beyond if is_last else between).extend(solved.error(sample) for sample in held.values())
    solved = _Solved.of(samples, size_of, parts)
    between = between or [solved.error(sample) for sample in samples]
    band_frac = max(LEAST_BAND_FRAC, float(np.percentile(between, 90)))
    n = len(solved.nodes)
    rates = dict(zip(parts, solved.weights[n:].tolist(), strict=True))
    return Kind(
        curve=Curve(solved.nodes, tuple(np.cumsum(solved.weights[:n]).tolist())),
        decode_key_s=rates["decode_keys"],
        chunk_key_s=rates.get("chunk_keys", 0.0),
        pair_s=rates.get("chunk_pairs", 0.0),
        row_s=rates.get("decode_rows", 0.0),
        most=tuple(float(max(getattr(sample.load, name) for sample in samples)) for name in FIELDS),
        held_out_frac=float(np.mean(between)),
        band_frac=band_frac,
        beyond_frac=max(2 * band_frac, float(np.percentile(beyond, 90)) if beyond else 0.0),
    )


def _ranges(samples: Sequence[Sample], size_of: SizeOf) -> Iterator[tuple[dict[int, Sample], bool]]:
    """(the steps of one range, whether it is the last one), by octaves of the size and of the context."""

    def context(load: StepLoad) -> float:
        return load.decode_keys / load.decode_rows if load.decode_rows else load.chunk_keys - load.chunk_tokens

    for value_of in (size_of, context):
        octaves: defaultdict[int, dict[int, Sample]] = defaultdict(dict)
        for sample in samples:
            octaves[int(np.log2(max(1.0, value_of(sample.load))))][id(sample)] = sample
        ordered = sorted(octaves)
        for octave in ordered[1:]:  # below the smallest nothing is ever asked for
            yield octaves[octave], octave == ordered[-1]


def corrected(profile: Profile, served: Sequence[Sample]) -> Profile:
    """The same, with the whole-step correction of other steps of a running engine, such as those of a step log."""
    key = hashlib.blake2b(profile.key.encode() + msgspec.json.encode(served), digest_size=16).hexdigest()

    def decode_size(load: StepLoad) -> float:
        return bucket_of(profile.buckets, load.decode_rows)

    decode = _corrected(replace(profile.decode, serving_frac=1.0), served, decode_size, has_chunks=False)
    chunk = _corrected(replace(profile.chunk, serving_frac=1.0), served, _chunk_size, has_chunks=True)
    return msgspec.structs.replace(profile, key=key, decode=decode, chunk=chunk)


def _corrected(kind: Kind, served: Sequence[Sample], size_of: SizeOf, *, has_chunks: bool) -> Kind:
    """With what all steps of the running engine took, over what the fit says of them: sums, for queues grow with the
    mean. The few that are furthest off on either side are accidents, and left out.
    """
    pairs = [
        (sample.seconds, kind.seconds(size_of(sample.load), sample.load))
        for sample in served
        if bool(sample.load.chunk_tokens) is has_chunks
    ]
    pairs.sort(key=lambda pair: pair[0] / pair[1])
    n_out = round(ACCIDENTS_FRAC * len(pairs))
    usual = pairs[n_out : len(pairs) - n_out]
    if not usual:
        return kind
    return replace(kind, serving_frac=sum(measured_s for measured_s, _ in usual) / sum(fit_s for _, fit_s in usual))


def _least_squares(rows: Floats, wanted: Floats) -> Floats:
    """Least squares without negative answers.

    Source: the active set method of Lawson and Hanson (Solving Least Squares Problems, chapter 23): columns enter one
    by one, the one that helps most first, and leave when they would turn negative.
    """
    scale = np.maximum(np.abs(rows).max(axis=0), 1e-300)
    rows = rows / scale
    n = rows.shape[1]
    found, is_used = np.zeros(n), np.zeros(n, bool)
    for _ in range(3 * n):
        gain = np.where(is_used, -np.inf, rows.T @ (wanted - rows @ found))
        if gain.max() <= 1e-9 * len(wanted):
            break
        is_used[gain.argmax()] = True
        while True:
            best = np.zeros(n)
            best[is_used] = np.linalg.lstsq(rows[:, is_used], wanted, rcond=None)[0]
            if (best[is_used] > 0).all():
                break
            falls = is_used & (best <= 0)
            step = (found[falls] / (found[falls] - best[falls])).min()
            found = found + step * (best - found)
            is_used &= found > 1e-15
        found = best
    answer: Floats = found / scale
    return answer
