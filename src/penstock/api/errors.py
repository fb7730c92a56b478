"""The one writer of errors. What a client reads is made from our own exceptions only, never from a foreign one's text.

ApiError                     status, code and extra headers of its own; raised within this package
├── BadBody                                  400: not JSON, or a field of a wrong type
├── Unauthorized, Forbidden                  401, 403
├── NotFound, UnknownModel, NotAllowed       404, 404, 405
├── TooSlow, TooLarge                        408, 413
├── WrongEncoding, HeadersTooLarge           415, 431
├── Starting, NotReady, Draining             503
└── GenerationFailed                         500: the engine could not finish a request that it had accepted
    └── Aborted                              503: it had to let it go
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from penstock.api.http import Header, Response
from penstock.core.errors import EngineDied, InvalidRequest, Overloaded, PenstockError, UserError

MAX_MESSAGE_CHARS = 1000
RETRY_AFTER_S = 1.0  # where nobody measured one
CLOSE: Header = (b"connection", b"close")


class ApiError(PenstockError):
    """An error that belongs to HTTP and not to the engine."""

    status = 400
    code = "invalid_request"
    headers: tuple[Header, ...] = ()

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class BadBody(ApiError):
    code = "invalid_body"


class Unauthorized(ApiError):
    status = 401
    code = "invalid_api_key"
    headers = ((b"www-authenticate", b"Bearer"),)


class Forbidden(ApiError):
    status = 403
    code = "cross_origin"


class NotFound(ApiError):
    status = 404
    code = "not_found"


class UnknownModel(ApiError):
    status = 404
    code = "model_not_found"


class NotAllowed(ApiError):
    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, methods: Iterable[str]) -> None:
        super().__init__(message)
        self.headers = ((b"allow", ", ".join(sorted(methods)).encode()),)


class TooSlow(ApiError):
    status = 408
    code = "request_timeout"
    headers = (CLOSE,)


class TooLarge(ApiError):
    status = 413
    code = "request_too_large"
    headers = (CLOSE,)  # the rest of the body is not read


class WrongEncoding(ApiError):
    status = 415
    code = "unsupported_encoding"
    headers = (CLOSE,)


class HeadersTooLarge(ApiError):
    status = 431
    code = "headers_too_large"
    headers = (CLOSE,)


class NotReady(ApiError):
    status = 503
    code = "not_ready"


class Starting(ApiError):
    status = 503
    code = "starting"
    headers = ((b"retry-after", b"1"),)


class Draining(ApiError):
    status = 503
    code = "draining"
    headers = (CLOSE, (b"retry-after", b"1"))


class GenerationFailed(ApiError):
    status = 500
    code = "generation_failed"


class Aborted(GenerationFailed):
    status = 503
    code = "aborted"


TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 503: "service_unavailable"}


class _Detail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str


class _Body(msgspec.Struct):
    error: _Detail


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a client is told of an exception."""

    status: int
    code: str
    message: str
    param: str | None = None
    headers: tuple[Header, ...] = ()

    @property
    def body(self) -> bytes:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message = self.message[:MAX_MESSAGE_CHARS]
        return msgspec.json.encode(_Body(_Detail(message, kind, self.param, self.code)))

    @property
    def response(self) -> Response:
        return Response(self.body, self.status, headers=self.headers)

    @property
    def event(self) -> bytes:
        """The last words of a stream that had begun."""
        return b"data: " + self.body + b"\n\ndata: [DONE]\n\n"


def refusal_of(error: Exception) -> Refusal:
    """Translate an exception; one that we did not raise on purpose says nothing of itself."""
    match error:
        case ApiError():
            return Refusal(error.status, error.code, str(error), error.param, error.headers)
        case InvalidRequest():
            return Refusal(400, error.code, str(error), error.param)
        case UserError():
            return Refusal(400, error.code, str(error))
        case Overloaded():
            return Refusal(503, error.code, str(error), headers=retry_headers(error.retry_after_s))
        case EngineDied():
            return Refusal(503, error.code, str(error), headers=retry_headers(RETRY_AFTER_S))
    return Refusal(500, "internal_error", "an error of the server; its log says more, under the id of this request")


def retry_headers(after_s: float) -> tuple[Header, ...]:
    """Whole seconds as HTTP has them, and the finer form that the official client reads first."""
    after_ms = max(1, math.ceil(after_s * 1000))
    return ((b"retry-after", str(math.ceil(after_ms / 1000)).encode()), (b"retry-after-ms", str(after_ms).encode()))
