"""Words that must not be put out, as the token ids that an engine knows."""

from __future__ import annotations

from dataclasses import replace

from penstock.core.errors import InvalidRequest
from penstock.core.request import MAX_BAD_SEQUENCE_TOKENS, SamplingParams
from penstock.text.tokenizer import Tokenizer, check_text


def with_bad_word_ids(sampling: SamplingParams, tokenizer: Tokenizer) -> SamplingParams:
    """The same parameters with ids in the place of `bad_words`. Raises InvalidRequest.

    A word has two spellings, at the start of a text and behind a space. vLLM leaves the second one out where it has
    another number of tokens than the first, and then the word comes up in the middle of a text; here both are held
    back.
    """
    if not sampling.bad_words:
        return sampling
    words = [word.lstrip() for word in sampling.bad_words]
    for word in words:
        check_text(word, "bad_words")
    spellings = [*words, *(f" {word}" for word in words)]
    sequences = [tuple(ids) for ids in tokenizer.encode_batch(spellings, add_special_tokens=False)]
    for word, sequence in zip(spellings, sequences, strict=True):
        if not 0 < len(sequence) <= MAX_BAD_SEQUENCE_TOKENS:
            raise InvalidRequest(
                f"bad_words has {word[:32]!r}, which is {len(sequence)} tokens; "
                f"give words of 1 to {MAX_BAD_SEQUENCE_TOKENS} tokens",
                param="bad_words",
            )
    return replace(sampling, bad_words=(), bad_word_ids=(*sampling.bad_word_ids, *dict.fromkeys(sequences)))
