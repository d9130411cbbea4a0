"""The API under /api: requests -> answers. `docs/serving.md` and `openapi` describe it."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mocoembed.search.exact import require_queries
from mocoembed.serve import metrics
from mocoembed.serve.answers import Json, Refusal
from mocoembed.serve.collection import Collection, Wanted
from mocoembed.serve.copies import Copies
from mocoembed.serve.health import report
from mocoembed.serve.jobs import Job
from mocoembed.serve.limits import MOST_JSON, MOST_UPLOAD
from mocoembed.serve.openapi import description
from mocoembed.serve.parameters import (
    MOST_ROWS,
    MOST_SIDE,
    REPEATED,
    SEARCH,
    Asked,
    allow,
    asked_of,
    crop_of,
    exclusive,
    filter_of,
    flag,
    integer,
    json_of,
    number,
    require_version,
    rows_of,
    wanted_of,
)
from mocoembed.serve.points import Points
from mocoembed.serve.service import Service
from mocoembed.serve.static_files import StaticFiles
from mocoembed.serve.thumbnails import LARGE, LARGE_QUALITY, LARGEST, jpeg_of, original, shown

MOST_GROUPS = 200
SHORT = 64  # bytes of JSON that hold no more than some ten queries
ROWS_OF = ("rows", "ids", "sample", "seed", "offset", "limit", "min_side")  # beside REPEATED
SECONDS_OF_JOB = 0.5  # that a request waits for one
IMAGE_TYPES = ("image/", "application/octet-stream")
KEEP = "private, max-age=86400, immutable"  # of what is asked for with its version


def routes_of(service: Service, files: StaticFiles) -> list[Route]:
    """All routes; GET is also HEAD."""
    api = Api(service)
    return [  # those that are asked for most come first: they are looked through in this order
        Route("/api/thumbnails/{row:int}", api.thumbnail), Route("/api/search", api.search, methods=["POST"]),
        Route("/api/images/{row:int}", api.image), Route("/api/embed", api.embed, methods=["POST"]),
        Route("/api/preview", api.preview, methods=["POST"]),
        Route("/api/rows", api.rows), Route("/api/labels", api.labels), Route("/api/info", api.info),
        Route("/api/duplicates", api.duplicates), Route("/api/health-report", api.health_report),
        Route("/api/openapi.json", api.openapi), Route("/api/map", api.map),
        Route("/api/live", api.live), Route("/api/ready", api.is_ready), Route("/metrics", api.metrics),
        *(Route(path, files.answer) for path in files.paths),
    ]


class Api:
    """The handlers of the API."""

    def __init__(self, service: Service):
        self.service, self._points = service, Points()

    def _asked_of(self, request: Request, *names: str) -> tuple[Collection, QueryParams]:
        """What is served now, and the parameters: those with `names`, and `version`, which must be that of now."""
        given, collection = request.query_params, self.service.following.current
        allow(given, *names, "version")
        require_version(given, collection)
        return collection, given

    # ---------------------------------------------------------------------------------------------- search

    async def search(self, request: Request) -> Response:
        """Hits for an image in the body, or for what JSON names."""
        collection, given = self._asked_of(request, *SEARCH)
        wanted, crop = wanted_of(given), crop_of(given)
        if _is_json(request) and not crop:
            async with self.service.bodies.body(request, MOST_JSON) as data:
                return await self._found(collection, wanted, lambda: asked_of(json_of(data), collection),
                                         len(data) <= SHORT)
        asked = await self._asked(request, collection, crop, wanted.exclude_self)
        return await self._found(collection, wanted, lambda: asked, len(asked.vectors) == 1)

    async def _found(self, collection: Collection, wanted: Wanted, asked: Callable[[], Asked],
                     are_few: bool) -> Response:
        """The hits of what is asked; `are_few`: at most some ten queries."""
        async with self.service.searches.turn():
            if are_few and wanted.is_plain and collection.is_small:
                return _answer(collection, asked(), wanted)
            return await self.service.run(lambda: _answer(collection, asked(), wanted))

    async def _asked(self, request: Request, collection: Collection, crop: tuple[int, ...],
                     of_self: bool = False) -> Asked:
        if not _is_json(request):
            async with self.service.bodies.body(request, MOST_UPLOAD) as data:
                vector = await self.service.embedded(collection, data, crop)
                if not of_self:
                    return Asked(vector[None], [np.empty(0, np.int64)])
                async with self.service.searches.turn():
                    return Asked(vector[None], [await self.service.run(collection.same_bytes, data)])
        async with self.service.bodies.body(request, MOST_JSON) as data, self.service.searches.turn():
            asked = await self.service.run(lambda: asked_of(json_of(data), collection))
        return await self._cropped(collection, asked, crop) if crop else asked

    async def _cropped(self, collection: Collection, asked: Asked, crop: tuple[int, ...]) -> Asked:
        """The query is a region of an image of the collection."""
        if asked.rows is None or len(asked.rows) != 1:
            raise Refusal(400, "crop needs an image in the body, or one row, id or path.", "parameter")
        async with self.service.images.turn():
            data = await self.service.decode(original, collection, asked.rows[0])
        vector = await self.service.embedded(collection, data, crop)
        return replace(asked, vectors=vector[None])

    async def preview(self, request: Request) -> Response:
        """The image of the body as JPEG, for browsers that cannot decode its format."""
        collection, _ = self._asked_of(request)
        if _is_json(request):
            raise Refusal(415, "The body must be an image.", "type")
        async with self.service.bodies.body(request, MOST_UPLOAD) as data, self.service.decoded.turn():
            made = await self.service.decode(jpeg_of, collection, data, "The image 'query'", LARGEST, LARGE_QUALITY)
        return Response(made, media_type="image/jpeg")

    async def embed(self, request: Request) -> Response:
        """Vectors of an image in the body, or of what JSON names."""
        collection, given = self._asked_of(request, "crop", "selves")
        with_selves = flag(given, "selves")
        asked = await self._asked(request, collection, crop_of(given), with_selves)
        vectors = require_queries(collection.file, asked.vectors).tolist()
        answer = {"version": collection.version, "encoder": collection.file.fingerprint, "vectors": vectors}
        if with_selves:
            async with self.service.searches.turn():
                answer["selves"] = await self.service.run(_selves, collection, asked)
        return Json(answer)

    # ---------------------------------------------------------------------------------------------- images

    async def image(self, request: Request) -> Response:
        """The image of a row, large."""
        collection, given = self._asked_of(request, "size")
        side = integer(given, "size", LARGE, 16, LARGEST)

        def made(collection: Collection, row: int) -> bytes:
            return shown(collection, row, side, LARGE_QUALITY)

        return await self._jpeg(request, collection, str(side), made)

    async def thumbnail(self, request: Request) -> Response:
        """The image of a row, small."""
        return await self._jpeg(request, self._asked_of(request)[0], "thumbnail", self.service.thumbnails.get)

    async def _jpeg(self, request: Request, collection: Collection, kind: str,
                    made: Callable[[Collection, int], bytes]) -> Response:
        row = _row(request, collection)
        headers = {"Cache-Control": KEEP if "version" in request.query_params else "private, no-cache"}
        if digest := collection.digest(row):
            headers["ETag"] = f'"{digest[:32]}-{kind}"'
        if digest and request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        async with self.service.images.turn():
            data = await self.service.decode(made, collection, row)
        return Response(data, headers=headers, media_type="image/jpeg")

    # ----------------------------------------------------------------------------------------------- facts

    async def rows(self, request: Request) -> Response:
        """What is known of images: a random sample, or those that a filter selects."""
        collection, given = self._asked_of(request, *ROWS_OF, *REPEATED)
        sample = integer(given, "sample", 0, 0, MOST_ROWS)
        seed, offset = integer(given, "seed", 0, 0, 2**53), integer(given, "offset", 0, 0, 2**53)
        limit = integer(given, "limit", 100, 1, MOST_ROWS)
        exclusive(given, ("rows", "ids"), ("sample", "seed", "offset", "limit", "min_side", *REPEATED))
        exclusive(given, ("sample",), ("offset", "limit"))
        wanted = Wanted(filter=filter_of(given), min_side=integer(given, "min_side", 0, 0, MOST_SIDE))

        def found() -> dict[str, Any]:
            if (named := rows_of(given, collection)) is not None:
                return {"version": collection.version, "total": len(named), "rows": collection.facts(named)}
            mask = collection.mask(wanted)
            rows = np.arange(len(collection)) if mask is None else np.flatnonzero(mask)
            total = len(rows)
            if sample:
                rows = np.random.default_rng(seed).permutation(rows)[:sample]
            else:
                rows = rows[offset:offset + limit]
            return {"version": collection.version, "total": total, "rows": collection.facts(rows.tolist())}

        async with self.service.searches.turn():
            return Json(await self.service.run(found))

    async def duplicates(self, request: Request) -> Response:
        """Groups of near-duplicates; 202 with the progress while they are looked for."""
        collection, given = self._asked_of(request, "threshold", "offset", "limit")
        threshold = number(given, "threshold", math.nan) if "threshold" in given else None
        offset, limit = integer(given, "offset", 0, 0, 2**53), integer(given, "limit", 50, 1, MOST_GROUPS)
        return await self._of_job("copies", collection, Copies, Copies.groups, threshold, offset, limit)

    async def health_report(self, request: Request) -> Response:
        """What the collection holds, and what looks wrong in it; 202 while it is looked at."""
        collection, _ = self._asked_of(request)
        return await self._of_job("health", collection, report)

    async def _of_job(self, kind: str, collection: Collection, work: Callable[[Collection, Job], Any],
                      made: Callable[..., dict] = lambda found: found, *arguments: Any) -> Response:
        """`made(result, *arguments)` of a job's result; 202 while it is not there. Who asks the same shares both."""
        job, slow = self.service.job(kind, collection, work), self.service.slow[kind]
        if not (job.wait(0) or await slow.answer(job, lambda: self.service.run(job.wait, SECONDS_OF_JOB))):
            return Json({"done": job.done, "total": job.total}, 202, {"Retry-After": "1"})
        return Json(await slow.answer((job, *arguments), lambda: self.service.run(made, job.result(), *arguments)))

    async def openapi(self, request: Request) -> Response:
        """The description of the API."""
        allow(request.query_params)
        return Json(description())

    async def map(self, request: Request) -> Response:
        """The points of the map."""
        collection, _ = self._asked_of(request)
        async with self.service.searches.turn():
            state = await self.service.run(self._points.state, collection)
        data = await self.service.slow["map"].answer(state, lambda: self.service.run(self._points.answer, collection))
        return Response(data, media_type="application/json")

    async def labels(self, request: Request) -> Response:
        """Labels with the numbers of their images; with `text`, those that contain it."""
        collection, given = self._asked_of(request, "text", "offset", "limit")
        offset, limit = integer(given, "offset", 0, 0, 2**53), integer(given, "limit", 100, 1, MOST_ROWS)
        async with self.service.searches.turn():
            found = await self.service.run(collection.label_counts, given.get("text", ""))
        return Json({"version": collection.version, "total": len(found), "labels": found[offset:offset + limit]})

    async def info(self, request: Request) -> Response:
        """Facts about collection, encoder and index."""
        allow(request.query_params)
        collection, mapping = self.service.following.current, self.service.mapping
        progress = mapping and mapping.progress

        def found() -> dict[str, Any]:
            return {**collection.info(), "map": self._points.facts(collection), "map_progress": progress}

        async with self.service.searches.turn():
            return Json(await self.service.run(found))

    async def live(self, request: Request) -> Response:
        """Whether the server runs."""
        return Json({"status": "live"})

    async def is_ready(self, request: Request) -> Response:
        """Whether it answers quickly by now."""
        if not self.service.ready:
            raise Refusal(503, "The server is warming up.", "warming up")
        return Json({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Counts and times for Prometheus."""
        collection = self.service.following.current
        age = metrics.age_of(collection.files()[0])
        gauges = {"mocoembed_images": ("Images of the collection.", float(len(collection))),
                  "mocoembed_index_age_seconds": (
                      "Seconds since the index was written; without one, the embeddings file.", age),
                  "mocoembed_ready": ("Whether the first query has been answered.", float(self.service.ready))}
        return Response(self.service.metrics.text(gauges), headers={"Content-Type": metrics.TYPE})


def _answer(collection: Collection, asked: Asked, wanted: Wanted) -> Response:
    excluded = asked.selves if wanted.exclude_self or asked.is_balance else ()
    hits = collection.search(asked.vectors, wanted, excluded)
    return Json({"version": collection.version, "queries": [{"hits": some} for some in hits]})


def _selves(collection: Collection, asked: Asked) -> list[list[int]]:
    """For each query, the rows that it is, with those of the same bytes."""
    selves = asked.selves if asked.rows is None else [collection.same_bytes(None, row) for row in asked.rows]
    return [rows.tolist() for rows in selves]


def _is_json(request: Request) -> bool:
    """Whether the body is JSON; a `Refusal` (415) for what is neither that nor an image."""
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if kind == "application/json":
        return True
    if kind.startswith(IMAGE_TYPES):
        return False
    raise Refusal(415, "The body must be an image (image/jpeg, ... or application/octet-stream) or application/json.",
                  "type")


def _row(request: Request, collection: Collection) -> int:
    row = request.path_params["row"]
    if row >= len(collection):
        raise Refusal(404, collection.no_row(str(row) if row < 2**63 else "so large"), "unknown row")
    return row


