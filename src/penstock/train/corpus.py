"""The text that `penstock-tiny` learns from: the source of Python's standard library, split by file.

The split is a function of a file's path alone. So it is the same on every machine and for every run, and what is made
from a file (functions, chats) falls on the file's own side of it.
"""

import ast
import hashlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

HELD_OUT_PER_MILLE = 20
# Tables of codes and one file of escaped help text: megabytes that teach no Python.
SKIPPED_FOLDERS = frozenset({"encodings", "pydoc_data", "site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True, slots=True)
class Document:
    """A text with the path it came from, relative to the library's root and with forward slashes."""

    path: str
    text: str

    @property
    def is_test(self) -> bool:
        return any(part in ("test", "tests", "idle_test") for part in PurePosixPath(self.path).parts)


def collect(stdlib: Path, is_wanted: Callable[[str], bool] | None = None) -> list[Document]:
    """Read every Python 3 source file of a standard library, in the order of their paths.

    is_wanted: of a path, with forward slashes; files that it refuses are not read.
    """
    documents = []
    for file in sorted(stdlib.rglob("*.py")):
        path = file.relative_to(stdlib)
        if SKIPPED_FOLDERS.isdisjoint(path.parts) and (is_wanted is None or is_wanted(path.as_posix())):
            text = read_python(file)
            if text is not None:
                documents.append(Document(path=path.as_posix(), text=text))
    if not documents:
        raise ValueError(f"{stdlib} holds no Python source; --stdlib must name the folder that has ast.py in it")
    return documents


def read_python(file: Path) -> str | None:
    """The file's text with plain line ends, or None where it is no valid UTF-8 Python (bad-syntax test data)."""
    try:
        text = file.read_bytes().decode("utf-8").replace("\r\n", "\n")
        parse(text)
    except (UnicodeDecodeError, SyntaxError, ValueError):
        return None
    return text.strip("\n") + "\n" if text.strip() else None


def parse(source: str) -> ast.Module:
    """`ast.parse` without the compiler's remarks about old escapes: we read the library, we do not review it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def is_held_out(path: str) -> bool:
    """Whether a file is kept for evaluation, decided by a hash of its path."""
    digest = hashlib.sha256(path.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") % 1000 < HELD_OUT_PER_MILLE


def split(documents: Iterable[Document]) -> tuple[list[Document], list[Document]]:
    """Part documents into (training, held out)."""
    parts: tuple[list[Document], list[Document]] = ([], [])
    for document in documents:
        parts[is_held_out(document.path)].append(document)
    return parts


def fingerprint(documents: Iterable[Document]) -> str:
    """A short hash of all paths and texts, to say in a card exactly which corpus was used."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.path}\0{document.text}\0".encode())
    return digest.hexdigest()[:16]
