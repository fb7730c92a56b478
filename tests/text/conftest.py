import pytest
from tokenizer_families import FAMILIES, tokenizer_of

from penstock.text.tokenizer import Tokenizer


@pytest.fixture(params=list(FAMILIES))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return tokenizer_of(request.param)
