"""The files of the page, by name: only those that are there when the server starts, so no path leads elsewhere."""

import hashlib
import pathlib

from starlette.requests import Request
from starlette.responses import Response

FOLDER = pathlib.Path(__file__).parent / "static"
TEXTS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".txt": "text/plain"}
TYPES = {**{suffix: f"{kind}; charset=utf-8" for suffix, kind in TEXTS.items()}, ".svg": "image/svg+xml",
         ".png": "image/png", ".ico": "image/x-icon", ".json": "application/json", ".woff2": "font/woff2"}
PAGES = {"/": "index.html"}  # beside the names of the files


class StaticFiles:
    """The page's files below a folder."""

    def __init__(self, folder: pathlib.Path = FOLDER):
        files = {f"/{path.relative_to(folder).as_posix()}": path for path in sorted(folder.rglob("*"))
                 if path.is_file() and path.suffix in TYPES}
        self.paths = files | {page: folder / name for page, name in PAGES.items()}
        """{path of the address: file}"""

    async def answer(self, request: Request) -> Response:
        """The file that a request's path names."""
        return self.file(request, self.paths[request.scope["path"]])

    def file(self, request: Request, path: pathlib.Path) -> Response:
        """A file, which the browser keeps as long as it is the same."""
        data = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"', "Cache-Control": "no-cache",
                   "Content-Type": TYPES[path.suffix]}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers)
