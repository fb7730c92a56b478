"""What running sequences are about to put into the prefix cache, for those who wait and share it.

Theory. A block can be found once the chunk that completes it is planned. Whoever computes known tokens has a *next*
block, the first that it has not put there yet. Keys are chained, so chains that differ in their first key have nothing
in common, and who shares all up to the next block of another has the same key there. How far the two agree is then
found by halving. It is looked for once; from then on the number of tokens that the running one has planned tells if
they are still coming. Of chains that meet no other one only the first key is ever worked out here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from penstock.cache.prefix import KeyChain
from penstock.core.sequence import RESIDENT, SeqState, Sequence


@dataclass(frozen=True, slots=True)
class Share:
    """The first `stop_tokens` tokens of a waiting sequence are those of `source`, which computes them."""

    source: Sequence
    stop_tokens: int

    @property
    def is_coming(self) -> bool:
        """Not if it rests, lost its memory or ended: then nobody can say when, or whether, they come."""
        return self.source.state is SeqState.RUNNING and self.source.planned_tokens < self.stop_tokens


class Coming:
    """Everybody who computes known tokens, by first key, and who waits for what they compute."""

    def __init__(self, key_tokens: int) -> None:
        self._key_tokens = key_tokens
        self._sources: dict[bytes, dict[str, tuple[Sequence, KeyChain]]] = {}  # by first key and sequence
        self.noted: dict[str, bytes] = {}  # sequence -> its first key, of each of them
        self._shares: dict[str, Share] = {}

    @property
    def is_empty(self) -> bool:
        """Nobody computes anything that could be shared."""
        return not self._sources

    def note(self, seq: Sequence, chain: KeyChain, tokens: int) -> None:
        """The first `tokens` known tokens of a sequence that starts are there; it computes the others."""
        if tokens // self._key_tokens < chain.full_blocks:
            key = self.noted[seq.id] = chain.key(0)
            self._sources.setdefault(key, {})[seq.id] = (seq, chain)

    def note_written(self, seq: Sequence, tokens: int) -> None:
        """The first `tokens` known tokens of a sequence that is noted are there, or planned."""
        _, chain = self._sources[self.noted[seq.id]][seq.id]
        if tokens // self._key_tokens >= chain.full_blocks:
            self.drop(seq)

    def drop(self, seq: Sequence) -> None:
        """The sequence computes nothing any more."""
        key = self.noted.pop(seq.id, None)
        if key is not None:
            del self._sources[key][seq.id]
            if not self._sources[key]:
                del self._sources[key]

    # --- those who wait ---------------------------------------------------------------------------------------------
    def known_tokens(self, seq: Sequence) -> int:
        """What was found to be coming for a waiting sequence, if it still is; else 0."""
        share = self._shares.get(seq.id)
        if share is None:
            return 0
        if share.is_coming:
            return share.stop_tokens
        del self._shares[seq.id]
        return 0

    def shares(self, seq: Sequence, chain: KeyChain) -> Iterator[Share]:
        """What a waiting sequence shares with those who compute now, beyond what these have computed.

        One token is always left to compute, for its logits.
        """
        stop = (len(seq.tokens) - 1) // self._key_tokens
        for source, other in self._sources.get(chain.key(0), {}).values() if stop else ():
            number = source.planned_tokens // self._key_tokens
            most = min(stop, other.full_blocks)
            if number < most and source.state is SeqState.RUNNING and chain.key(number) == other.key(number):
                yield Share(source, _same_blocks(chain, other, number + 1, most) * self._key_tokens)

    def keep(self, seq: Sequence, share: Share) -> None:
        """The sequence may wait for that."""
        self._shares[seq.id] = share

    def forget(self, seq: Sequence) -> None:
        """The sequence waits no longer."""
        self._shares.pop(seq.id, None)

    def audit(self) -> None:
        """Check that only sequences with memory are noted, each by one key; raises AssertionError."""
        noted = {name: key for key, of_key in self._sources.items() for name in of_key}
        assert noted == self.noted, f"noted are {noted}, by sequence {self.noted}"
        gone = [seq for of_key in self._sources.values() for seq, _ in of_key.values() if seq.state not in RESIDENT]
        assert not gone, f"{gone} are said to compute"


def _same_blocks(chain: KeyChain, other: KeyChain, least: int, most: int) -> int:
    """How many blocks two chains have in common; they do have `least`, and no more than `most` count."""
    same, differs = least, most + 1
    while differs - same > 1:
        middle = (same + differs) // 2
        if chain.key(middle - 1) == other.key(middle - 1):
            same = middle
        else:
            differs = middle
    return same
