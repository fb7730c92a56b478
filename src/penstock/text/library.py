"""The faults of the `tokenizers` library as errors of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tokenizers

from penstock.core.errors import CorruptModel, PenstockError

PROBE = "Hello, world 123!\n"
MAX_REASON_CHARS = 200


@contextmanager
def faults_of(file: Path) -> Iterator[None]:
    """Turn whatever the library raises for a faulty tokenizer into CorruptModel.

    It raises no class narrower than Exception. A panic of its Rust code is not even that: it is a BaseException of a
    class that cannot be imported.
    """
    try:
        yield
    except PenstockError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:MAX_REASON_CHARS]
        raise CorruptModel(f"{file} is not a tokenizer: {reason}. Fetch the model again.") from error


def probe(backend: tokenizers.Tokenizer) -> None:
    """Encode and decode: some faults (a special token without an id) break the first text, not the reading."""
    for adds_special in (True, False):
        encoding = backend.encode(PROBE, add_special_tokens=adds_special)
        backend.decode(encoding.ids, skip_special_tokens=False)
