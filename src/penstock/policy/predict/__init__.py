"""How long will an answer be?"""

from collections.abc import Mapping

from penstock.core.view import LengthPredictor
from penstock.policy.predict.empirical_quantile import EmpiricalQuantile
from penstock.policy.predict.max_tokens import MaxTokens

PREDICT: Mapping[str, type[LengthPredictor]] = {
    "max-tokens": MaxTokens,
    "empirical-quantile": EmpiricalQuantile,
}
