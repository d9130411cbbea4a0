"""Login: the one-time link that is printed, or a form that takes the token, gives a browser its cookie.

What stands in the address beside the link's key is what the page shows, and goes on to it.
"""

from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from mocoembed.serve.answers import Refusal
from mocoembed.serve.limits import Bodies
from mocoembed.serve.security import Tokens, page, same
from mocoembed.serve.static_files import FOLDER, StaticFiles

FORM = FOLDER / "login.html"
MOST_FORM = 4096  # bytes
USED = b"This link has been used already, or belongs to another server."


def login_of(tokens: Tokens, files: StaticFiles, bodies: Bodies,
             tell: Callable[[Scope, Refusal], None]) -> Callable[[Request], Awaitable[Response]]:
    """The handler of /login: GET with `key` (once) or for the form, POST of the form; `tell` hears of a wrong token."""
    async def login(request: Request) -> Response:
        given = request.scope["query_string"].decode("latin-1").split("&")
        query = "&".join(part for part in given if not part.startswith("key="))
        if tokens.secret is None:
            return RedirectResponse(page(query), 303)
        if request.method != "POST":
            key = request.query_params.get("key")
            if key is None or request.method != "GET":  # previews of links ask for the head
                return files.file(request, FORM)
            return tokens.entering(request.url.scheme, query) if tokens.opens(key) else _form(USED)
        async with bodies.body(request, MOST_FORM) as data:
            token = parse_qs(data.decode("utf-8", "replace")).get("token", [""])[0]
        if not same(token, tokens.secret):
            tell(request.scope, Refusal(403, "The token is wrong.", "token"))
            return _form(b"This token is wrong.", 403)
        return tokens.entering(request.url.scheme, query)

    return login


def _form(why: bytes, status: int = 200) -> Response:
    """The form, and why it is shown."""
    return Response(FORM.read_bytes().replace(b" hidden>", b">" + why), status, media_type="text/html")
