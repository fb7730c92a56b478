"""What crosses between the first rank of a model and another one, over the other's standard input and output.

Frames of msgpack behind their length, never pickle. The pipes belong to two processes alone, and the end of one is the
end of the other: whoever reads no more has lost its peer.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import IO

import msgspec
import numpy as np
import numpy.typing as npt

from penstock.core.plan import Plan
from penstock.core.wire import decode_tokens, encode_tokens

LENGTH = struct.Struct("<I")
CHECK_EVERY_STEPS = 32


class Setup(msgspec.Struct, tag=True, frozen=True):
    """Which rank the process is. meeting: the file where ranks find each other. options: for whoever builds."""

    rank: int
    size: int
    meeting: str
    options: bytes


class Fits(msgspec.Struct, tag=True, frozen=True):
    """How many blocks a rank has room for, by state group; back comes how many all of them take."""

    n_blocks: tuple[int, ...]
    n_host_blocks: tuple[int, ...]

    def least(self, other: Fits) -> Fits:
        return Fits(
            tuple(map(min, self.n_blocks, other.n_blocks)), tuple(map(min, self.n_host_blocks, other.n_host_blocks))
        )


class Submit(msgspec.Struct, tag=True, frozen=True):
    """Carry out a plan."""

    plan: Plan


class Drew(msgspec.Struct, tag=True, frozen=True):
    """A checksum over all tokens of the first `steps` plans."""

    steps: int
    checksum: int


class Checksum:
    """Over the tokens of all steps so far."""

    def __init__(self) -> None:
        self._steps = 0
        self._checksum = 0

    def add(self, tokens: npt.NDArray[np.int32]) -> Drew | None:
        """Count a step; now and then, what to compare."""
        self._steps += 1
        self._checksum = zlib.crc32(tokens.tobytes(), self._checksum)
        return None if self._steps % CHECK_EVERY_STEPS else Drew(self._steps, self._checksum)


class Failed(msgspec.Struct, tag=True, frozen=True):
    """The rank ends. `is_user_error`: the message says what to change."""

    message: str
    is_user_error: bool


ToRank = Setup | Fits | Submit
FromRank = Fits | Drew | Failed
_encoder = msgspec.msgpack.Encoder(enc_hook=encode_tokens)
_to_rank: msgspec.msgpack.Decoder[ToRank] = msgspec.msgpack.Decoder(ToRank, dec_hook=decode_tokens)
_from_rank: msgspec.msgpack.Decoder[FromRank] = msgspec.msgpack.Decoder(FromRank)


def frame(message: ToRank | FromRank) -> bytes:
    data = _encoder.encode(message)
    return LENGTH.pack(len(data)) + data


def read_to_rank(pipe: IO[bytes]) -> Iterator[ToRank]:
    """Messages until the other end is closed. Raises msgspec.DecodeError for anything else."""
    return map(_to_rank.decode, _frames(pipe))


def read_from_rank(pipe: IO[bytes]) -> Iterator[FromRank]:
    """As `read_to_rank`."""
    return map(_from_rank.decode, _frames(pipe))


def _frames(pipe: IO[bytes]) -> Iterator[bytes]:
    """A frame that was cut off is the end, too."""
    while len(length := pipe.read(LENGTH.size)) == LENGTH.size:
        (n_bytes,) = LENGTH.unpack(length)
        if len(data := pipe.read(n_bytes)) < n_bytes:
            return
        yield data
