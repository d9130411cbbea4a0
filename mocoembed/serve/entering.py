"""Login: the one-time link that is printed, or a form that takes the token, gives a browser its cookie."""

from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from mocoembed.serve.answers import Refusal
from mocoembed.serve.limits import Bodies
from mocoembed.serve.parameters import allow
from mocoembed.serve.security import Tokens, same
from mocoembed.serve.static_files import FOLDER, StaticFiles

FORM = "login.html"
MOST_FORM = 4096  # bytes


def login_of(tokens: Tokens, files: StaticFiles, bodies: Bodies) -> Callable[[Request], Awaitable[Response]]:
    """The handler of /login: GET with `key` (once) or for the form, POST of the form."""
    async def login(request: Request) -> Response:
        if tokens.secret is None:
            return RedirectResponse("/", 303)
        if request.method != "POST":
            allow(request.query_params, "key")
            if (key := request.query_params.get("key")) is not None and tokens.opens(key):
                return tokens.entering(request.url.scheme)
            return files.file(request, FOLDER / FORM)
        async with bodies.body(request, MOST_FORM) as data:
            given = parse_qs(data.decode("utf-8", "replace")).get("token", [""])[0]
        if not same(given, tokens.secret):
            raise Refusal(401, "The token is wrong.", "token")
        return tokens.entering(request.url.scheme)

    return login
