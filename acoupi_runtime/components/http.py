"""http: a messenger over HTTP. Touches the network; imports nothing beyond the standard library.

The receiver's key is the message's id, sent as `Idempotency-Key`: a message may come twice, when its acknowledgement
was lost on the way.
"""

from __future__ import annotations

# The name of a host needs it. Looked for at the first message, it would stay unknown if the card did not answer then.
import encodings.idna  # noqa: F401
import http.client
import urllib.error
import urllib.parse
import urllib.request
from http import HTTPStatus
from typing import IO

import acoupi_runtime
from acoupi_runtime.configuration import HTTPConfig
from acoupi_runtime.data import Message, Response, ResponseStatus
from acoupi_runtime.errors import MessageSendError

_ABOUT_THIS_MESSAGE = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.CONFLICT,
        HTTPStatus.GONE,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    }
)
"""Refusals of one message; all others (401, 404, 429, 503, ...) are refusals of everything, for now."""
_ANSWER_LIMIT = 10_000
"""Bytes of an answer that are read."""


class HTTPMessenger:
    """Sends each message as the body of one request."""

    name = "http"

    def __init__(self, config: HTTPConfig) -> None:
        self._config = config
        self._opener = urllib.request.build_opener(_Redirects())

    def send_message(self, message: Message) -> Response:
        """Send one message; a 2xx answer acknowledges it.

        Raises:
            MessageSendError: If nothing is accepted now.
        """
        request = urllib.request.Request(  # noqa: S310 - the configuration allows http and https only
            self._config.base_url, message.content.encode(), self._headers(message), method=self._config.method
        )
        try:
            with self._opener.open(request, timeout=self._config.timeout) as answer:
                content = answer.read(_ANSWER_LIMIT).decode(errors="replace")
        except urllib.error.HTTPError as error:
            with error:
                if error.code not in _ABOUT_THIS_MESSAGE:
                    raise MessageSendError(f"{self._where()}: answered {error.code} {error.reason}") from error
                content = f"{error.code} {error.reason}: {error.read(_ANSWER_LIMIT).decode(errors='replace')}"
            return Response(status=ResponseStatus.ERROR, message=message, content=content)
        except (OSError, http.client.HTTPException) as error:
            raise MessageSendError(f"{self._where()}: {error}") from error
        return Response(status=ResponseStatus.SUCCESS, message=message, content=content)

    def _headers(self, message: Message) -> dict[str, str]:
        headers = {
            "Content-Type": self._config.content_type,
            "Idempotency-Key": str(message.id),
            "User-Agent": f"acoupi-fleet/{acoupi_runtime.__version__}",
        }
        if self._config.token is not None:
            headers["Authorization"] = f"Bearer {self._config.token.get_secret_value()}"
        return headers

    def _where(self) -> str:
        """The receiver, without a password or key that its address may carry."""
        url = urllib.parse.urlsplit(self._config.base_url)
        return f"{url.scheme}://{url.hostname}{f':{url.port}' if url.port else ''}{url.path}"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect with the same method and body: urllib would turn a POST into a GET, and lose the message."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request to the new address, or an error where that would be less safe."""
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in {old.scheme, "https"}:
            raise urllib.error.HTTPError(req.full_url, code, f"{msg}, to {new.scheme}: not followed", headers, fp)
        again = urllib.request.Request(newurl, req.data, dict(req.header_items()), method=req.get_method())  # noqa: S310
        if (old.scheme, old.netloc) != (new.scheme, new.netloc):
            again.remove_header("Authorization")
        again.remove_header("Host")
        return again
