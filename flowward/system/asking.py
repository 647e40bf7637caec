"""Requests to a server: which failures are temporary, and what is printed while waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from .addresses import SOCKS, proxy_of, without_password
from .terminal import tell

CONNECT = 10.0  # seconds to wait for a connection
LATER = frozenset({408, 425, 429})  # statuses to try again after; so are those from 500 up, except NEVER
NEVER = 501  # not implemented: trying again does not help


class ServiceError(RuntimeError):
    """A server that this program needs refused, or did not answer for too long."""


class Unavailable(Exception):
    """A temporary failure; try again after `pause` seconds, if the server asked for a pause."""

    def __init__(self, why: str, pause: float = 0.0):
        super().__init__(why)
        self.pause = pause


class Declined(ServiceError):
    """A permanent refusal by the server, with its HTTP status."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


def check_token(token: str | None) -> None:
    """Raise ValueError, without showing the token, if an HTTP header cannot contain it (such as a newline)."""
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token and token):
        raise ValueError("the token must be printable ASCII, not empty, and without spaces at its ends")


class Server:
    """A client for one address; it separates temporary from permanent failures, and reports waiting on stderr."""

    def __init__(self, address: str, timeout: float, token: str | None, again: float = float("inf")):
        """Check the address and token. `again`: seconds between two reports that the server does not answer.

        Raises:
            ValueError: the address, token or proxy is invalid, or httpx2 or what it needs for SOCKS is not installed.
        """
        try:
            import httpx2
        except ImportError as error:
            raise ValueError("requests to a server need httpx2; pip install 'flowward[rewards]'") from error
        try:
            parts = urlsplit(address)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and bool(httpx2.URL(address))
        except (ValueError, httpx2.InvalidURL):
            usable = False
        if not usable:
            raise ValueError(f"'{address}' is not a server address; write it as http://host:port")
        self.address, self.timeout, self.again = address.rstrip("/"), timeout, again
        self._since: float | None = None
        self._said = -float("inf")
        self._lock = threading.Lock()
        self._errors = (httpx2.TransportError, httpx2.DecodingError)
        check_token(token)
        proxy = proxy_of(self.address)
        through = f" (through the proxy {without_password(proxy)})" if proxy else ""
        self._named = f"{without_password(self.address)}{through}"
        self._client = httpx2.Client(
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            timeout=self._limits(timeout),
            limits=httpx2.Limits(max_connections=None),
            # loading certificates takes time, and no redirect is followed
            verify=httpx2.create_ssl_context() if parts.scheme == "https" else False,
            proxy=_usable(proxy) if proxy else None,
            trust_env=False,  # the proxy is chosen above
        )

    @staticmethod
    def _limits(timeout: float) -> Any:
        from httpx2 import Timeout

        return Timeout(timeout, connect=min(timeout, CONNECT))

    def ask(
        self,
        method: str,
        path: str,
        own_failures: bool = False,
        read: Callable[[Any], Any] = lambda found: found,
        **body: Any,
    ) -> Any:
        """Like `call`, for callers that try again: reports on stderr that the server is not answering.

        `read` makes the result from the JSON. If it cannot, the answer is broken, which is a temporary failure.
        """
        try:
            found = self._understood(read, self.call(method, path, own_failures, **body))
        except Unavailable as error:
            self._begins(str(error))
            raise
        self._ends()
        return found

    def _understood(self, read: Callable[[Any], Any], found: Any) -> Any:
        try:
            return read(found)
        except ValueError as error:
            raise Unavailable(f"{self._named}: {error}") from error
        except (LookupError, TypeError, AttributeError) as error:
            raise Unavailable(f"{self._named}: the answer cannot be read: {str(found)[:200]}") from error

    def call(
        self,
        method: str,
        path: str,
        own_failures: bool = False,
        timeout: float | None = None,
        plain: bool = False,
        **body: Any,
    ) -> Any:
        """The JSON of an answer; with `plain`, an answer without JSON is its text.

        With `own_failures`, a status 500 with a `detail` sentence counts as a refusal.

        Raises:
            Unavailable: no answer, or a temporary failure: too many requests, a server error, broken JSON.
            Declined: the server refused; the message is its sentence.
        """
        timeout = timeout or self.timeout
        try:
            answer = self._client.request(method, self.address + path, timeout=self._limits(timeout), **body)
        except self._errors as error:
            raise Unavailable(f"{self._named}: {self._silence(error, timeout)}") from error
        try:
            found, broken = answer.json(), None
        except (ValueError, RecursionError) as error:
            found, broken = None, error
        if answer.status_code == 200:
            if broken is not None and plain:
                return answer.text
            if broken is not None:
                raise Unavailable(f"{self._named}: the answer is not JSON") from broken
            return found
        sentence = (
            f"{self._named} answered {answer.status_code}: {_sentence(found) or ' '.join(answer.text.split())[:200]}"
        )
        own = own_failures and answer.status_code == 500 and bool(_sentence(found))
        broken_down = answer.status_code >= 500 and answer.status_code != NEVER and not own
        if answer.status_code in LATER or broken_down:
            raise Unavailable(sentence, _pause(answer.headers.get("retry-after", ""), answer.headers.get("date", "")))
        raise Declined(answer.status_code, sentence)

    @staticmethod
    def _silence(error: Exception, timeout: float) -> str:
        kind = type(error).__name__
        if "Timeout" not in kind:
            return str(error).strip() or kind
        return (
            f"no connection within {min(timeout, CONNECT):g} s"
            if "Connect" in kind
            else f"no answer within {timeout:g} s"
        )

    def _begins(self, why: str) -> None:
        with self._lock:
            now = time.monotonic()
            new, self._since = self._since is None, self._since or now
            if now - self._said < self.again and not (new and self.again == float("inf")):
                return
            self._said = now
        tell(f"waiting for {' '.join(why.split())}")

    def _ends(self) -> None:
        with self._lock:
            since, self._since = self._since, None
            if since is None or self._said < since:
                return
        tell(f"{self._named} answers again after {max(0.0, time.monotonic() - since):.0f} s")


def _usable(proxy: str) -> Any:
    """The proxy for httpx2. Raise ValueError if it cannot be used."""
    import httpx2

    shown = without_password(proxy)
    if proxy.partition(":")[0].lower() in SOCKS and not find_spec("socksio"):
        raise ValueError(f"the SOCKS proxy {shown} needs another package; pip install 'httpx2[socks]'")
    try:
        made = httpx2.Proxy(proxy)
        if not made.url.host:
            raise ValueError(proxy)
        return made
    except (ValueError, httpx2.InvalidURL) as error:
        raise ValueError(
            f"the proxy {shown} of the environment (HTTP_PROXY, HTTPS_PROXY or ALL_PROXY) cannot be used; write it as "
            "http://host:port or socks5://host:port, or set NO_PROXY"
        ) from error


def _sentence(found: Any) -> str:
    """The sentence in a JSON error: FastAPI's `detail`, or the `message` of an OpenAI-compatible server."""
    for key in ("detail", "error", "message"):
        if isinstance(found, dict) and key in found:
            return found[key] if isinstance(found[key], str) else _sentence(found[key]) or str(found[key])[:200]
    return ""


def _pause(text: str, now: str) -> float:
    """The seconds in a Retry-After header; 0 if there is none.

    It may be a date, which is compared with that of the answer (`now`): the clock of the server need not be ours.
    """
    try:
        seconds = float(text) if text[:1].isdigit() else _date(text) - (_date(now) if now else time.time())
    except (ValueError, OverflowError, TypeError):
        return 0.0
    return max(0.0, min(seconds, 1e9))


def _date(text: str) -> float:
    return parsedate_to_datetime(text).timestamp()
