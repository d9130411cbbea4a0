"""The files of the page, by name: only those that are there when the server starts, so no path leads elsewhere."""

import hashlib
import pathlib

from starlette.requests import Request
from starlette.responses import Response

from mocoembed.serve.answers import Refusal

FOLDER = pathlib.Path(__file__).parent / "static"
TEXTS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".txt": "text/plain"}
TYPES = {**{suffix: f"{kind}; charset=utf-8" for suffix, kind in TEXTS.items()}, ".svg": "image/svg+xml",
         ".png": "image/png", ".ico": "image/x-icon", ".json": "application/json", ".woff2": "font/woff2"}
PAGES = {"": "index.html", "login": "login.html"}


class StaticFiles:
    """The page's files below a folder."""

    def __init__(self, folder: pathlib.Path = FOLDER):
        self._paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")
                       if path.is_file() and path.suffix in TYPES}

    def answer(self, request: Request) -> Response:
        """The file that a request's path names; a `Refusal` (404) for any other."""
        name = request.url.path.removeprefix("/")
        path = self._paths.get(PAGES.get(name, name))
        if path is None:
            raise Refusal(404, "There is no such page.", "unknown path")
        data = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"', "Cache-Control": "no-cache",
                   "Content-Type": TYPES[path.suffix]}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers)
