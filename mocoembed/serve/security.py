"""Who may ask: Host allow-list, own pages only, token; and the headers that every answer carries.

DNS rebinding: a page of another site can reach 127.0.0.1 under its own name, so the Host header must be one of ours.
Cross-site requests: what is no plain read must come from our own page or from no page, as Origin and Sec-Fetch-Site
tell. A request is refused before its body is read.
"""

import functools
import hmac
import secrets
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mocoembed.config.serve import ServeConfig, address_of, is_loopback
from mocoembed.serve.answers import Refusal, refused

READS = ("GET", "HEAD")
OPEN = ("/api/live", "/api/ready", "/login", "/login.css")  # need no token
CONTENT_POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
                  "connect-src 'self'; font-src 'self'; worker-src 'self'; manifest-src 'self'; form-action 'self'; "
                  "base-uri 'none'; frame-ancestors 'none'")
HEADERS = {"Content-Security-Policy": CONTENT_POLICY, "X-Content-Type-Options": "nosniff",
           "Referrer-Policy": "same-origin",  # with no-referrer, browsers send the login's form with "Origin: null"
           "X-Frame-Options": "DENY", "Cross-Origin-Opener-Policy": "same-origin",
           "Cross-Origin-Resource-Policy": "same-origin"}
RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
NO_STORE = (b"cache-control", b"no-store")


@functools.lru_cache(maxsize=256)
def name_of(authority: str) -> str | None:
    """The host's name in lower case in `name:port`, `[::1]:port` or without a port; `None` for anything else."""
    try:
        parts = urlsplit(f"//{authority}")
        parts.port  # noqa: B018  # raises ValueError for a port that is none
    except ValueError:
        return None
    if not authority or parts.netloc != authority or parts.username is not None or parts.path or parts.query:
        return None
    return (parts.hostname or "").rstrip(".") or None


class Hosts:
    """The names under which the page may be asked for."""

    def __init__(self, config: ServeConfig):
        self._names = {"localhost", config.host.lower(), *(name.lower() for name in config.allow_host)}
        self._addresses = not is_loopback(config.host)
        if self._addresses:
            self._names.add(socket.gethostname().lower())

    def has(self, authority: str) -> bool:
        """Whether it is one of ours. Where others may reach the page, any address is: no name leads there then."""
        if (name := name_of(authority)) is None:
            return False
        if name in self._names:
            return True
        address = address_of(name)
        return address is not None and (self._addresses or address.is_loopback)


class Tokens:
    """The secret, the one-time key of the link that is printed, and the cookie that stands for the secret."""

    def __init__(self, config: ServeConfig, port: int):
        self.secret, self.session = config.token, secrets.token_urlsafe(32)
        self.key = None if config.token is None else secrets.token_urlsafe(24)
        self.cookie = f"mocoembed-{port}"  # cookies do not tell ports apart

    def is_known(self, headers: Headers) -> bool:
        """Whether a request carries the secret or the cookie; always, where there is no secret."""
        if self.secret is None:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and same(given.strip(), self.secret):
            return True
        return any(same(value, self.session) for value in cookies(headers, self.cookie))

    def opens(self, key: str) -> bool:
        """Whether it is the one-time key, which then opens no more."""
        if self.key is None or not same(key, self.key):
            return False
        self.key = None
        return True

    def entering(self, scheme: str, query: str) -> Response:
        """To the page, with the cookie."""
        answer = RedirectResponse(page(query), 303)
        answer.set_cookie(self.cookie, self.session, httponly=True, samesite="lax", secure=scheme == "https")
        return answer


def cookies(headers: Headers, wanted: str) -> list[str]:
    """Values of the cookies with that name. Other servers of this machine set cookies, too, of any form."""
    pairs = (pair.partition("=") for line in headers.getlist("cookie") for pair in line.split(";"))
    return [value.strip() for name, _, value in pairs if name.strip() == wanted]


def page(query: str) -> str:
    """The address of the page with what it shows, which is all that a caller can choose of a redirection."""
    return f"/?{query}" if query else "/"


def same(given: str, secret: str) -> bool:
    """Whether two texts are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), secret.encode())


class Security:
    """ASGI middleware: lets through what may be asked; `tell(scope, refusal)` hears of the rest."""

    def __init__(self, app: ASGIApp, hosts: Hosts, tokens: Tokens, tell: Callable[[Scope, Refusal], None]):
        self.app, self.hosts, self.tokens, self.tell = app, hosts, tokens, tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message):
            if message["type"] == "http.response.start":
                own = message["headers"]
                kept = [] if any(name == NO_STORE[0] for name, _ in own) else [NO_STORE]
                message["headers"] = [*own, *RAW_HEADERS, *kept]
            await send(message)

        headers = Headers(scope=scope)
        try:
            self._check(scope, headers)
            if not self._may(scope, headers):
                if scope["method"] == "GET" and scope["path"] == "/" and "text/html" in headers.get("accept", ""):
                    query = scope["query_string"].decode("latin-1")  # what the page shows, which the login keeps
                    await RedirectResponse(f"/login{page(query)[1:]}", 303)(scope, receive, send_with_headers)
                    return
                raise Refusal(401, "The token is missing or wrong. Send it as: Authorization: Bearer TOKEN", "token")
        except Refusal as refusal:
            self.tell(scope, refusal)
            answer = refused(refusal)
            answer.headers["Connection"] = "close"
            await answer(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)

    def _may(self, scope: Scope, headers: Headers) -> bool:
        return scope["path"] in OPEN or self.tokens.is_known(headers)

    def _check(self, scope: Scope, headers: Headers):
        given = headers.getlist("host")
        if len(given) != 1 or not self.hosts.has(given[0]):
            raise Refusal(421, "This host name is not served here. Use the address that mocoembed serve printed, or "
                               "allow the name with --allow-host.", "host")
        is_read = scope["method"] in READS
        origins, sites = headers.getlist("origin"), headers.getlist("sec-fetch-site")
        if not is_read and origins and (len(origins) > 1 or not _is_own(origins[0], given[0])):
            raise Refusal(403, "Requests of other sites are refused.", "origin")
        if any(site not in ("same-origin", "none") for site in sites) and not (
                is_read and headers.get("sec-fetch-mode") == "navigate"
                and headers.get("sec-fetch-dest", "document") == "document"):
            raise Refusal(403, "Requests of other sites are refused.", "site")


def _is_own(origin: str, host: str) -> bool:
    """Whether a page of that origin was loaded from this host."""
    scheme, _, authority = origin.partition("://")
    port = {"http": ":80", "https": ":443"}.get(scheme)
    return port is not None and authority.lower().removesuffix(port) == host.lower().removesuffix(port)
