"""Detokenizing a stream: whole characters only, and no part of a stop string.

Neither class is bound to a thread; each instance serves one stream, from one thread at a time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from penstock.text.tokenizer import Tokenizer


class Detokenizer:
    """The text of a stream of ids: the pieces, joined, are the plain decode of all ids.

    prompt_tail_ids: the last few ids (four are enough) of the prompt that the stream continues. A character that the
    prompt began and the stream completes is emitted whole. Without them a leading space may be dropped, as at the
    start of a text.
    """

    __slots__ = ("_hidden", "_joiner")

    def __init__(
        self, tokenizer: Tokenizer, prompt_tail_ids: Sequence[int] = (), skip_special_tokens: bool = True
    ) -> None:
        self._hidden: frozenset[int] = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._joiner = tokenizer.scheme.joiner([i for i in prompt_tail_ids if i not in self._hidden])

    def push(self, ids: Sequence[int]) -> str:
        """Take new ids, give the text that is certain now. Costs a look-up per id, however long the stream is."""
        hidden = self._hidden
        return self._joiner.push([i for i in ids if i not in hidden] if hidden else ids)

    def flush(self) -> str:
        """The stream is over: what was held back, with U+FFFD for a character that was never completed."""
        return self._joiner.flush()


class StopStrings:
    """Cuts a stream of text at the first stop string, and never emits what could be the beginning of one.

    The first one to be *complete* wins, so the answer does not depend on how the text was cut into pieces; of two
    that end at the same character, the longer one. include: the stop string itself stays in the text.
    """

    __slots__ = ("_beginnings", "_first", "_held", "_include", "_longest", "_stops", "hit")

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self._longest = max(map(len, self._stops), default=0)
        self._beginnings = frozenset(stop[:k] for stop in self._stops for k in range(1, len(stop)))
        starts = "".join(sorted({re.escape(stop[0]) for stop in self._stops}))
        self._first = re.compile(f"[{starts}]") if starts else None
        self.hit: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """Take new text, give what is certain now, and the stop string if one is complete. After that: nothing."""
        if self._first is None:
            return text, None
        if self.hit is not None:
            return "", self.hit
        text = self._held + text
        ends = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            stop_end, start, self.hit = min(ends)
            self._held = ""
            return text[: stop_end if self._include else start], self.hit
        keep = self._beginning_at(text)
        self._held = text[keep:]
        return text[:keep], None

    def flush(self) -> str:
        """The stream is over: what was held back was no stop string."""
        held, self._held = self._held, ""
        return held

    def _beginning_at(self, text: str) -> int:
        """Where the longest end of `text` starts that some stop string begins with; its length if there is none."""
        assert self._first is not None
        at = max(0, len(text) - self._longest + 1)
        while (match := self._first.search(text, at)) is not None:
            at = match.start()
            if text[at:] in self._beginnings:
                return at
            at += 1
        return len(text)
