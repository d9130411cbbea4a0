"""The least that a server of the same answers can be: what `mocoembed serve` is measured against.

    python -m benchmarks.serve_sketch WORKSPACE

Starlette and uvicorn, as ours, and our decoder and encoder; but all vectors in memory, thumbnails kept without a limit,
and nothing of what a server needs: no checks of hosts, origins, sizes, digests or values, no deadlines, no limits of
simultaneous work, no batches, no metrics, no filters, no collection that is replaced. `serve_speed.py --sketch 3` runs
both.
"""

import functools
import io
import os
import socket

import click
import numpy as np
import uvicorn
from PIL import Image, ImageOps
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mocoembed.search.query import Searcher

THUMBNAIL, QUALITY = 320, 82


def app_of(workspace: str) -> Starlette:
    """The application."""
    searcher = Searcher.open(workspace, "cpu")
    pair, file = searcher.pair(), searcher.file
    vectors, ids, root = file.embeddings(), file.ids().tolist(), file.root
    paths = [os.fsdecode(os.path.join(root, path)) for path in file.paths()]
    labels = [file.label_names[one] for one in file.labels()]

    def hits(query: np.ndarray, k: int) -> dict:
        scores = vectors @ query
        best = np.argpartition(-scores, k)[:k]
        best = best[np.argsort(-scores[best])]
        return {"queries": [{"hits": [
            {"rank": rank, "score": score, "id": str(ids[row]), "row": row, "path": paths[row], "label": labels[row]}
            for rank, (row, score) in enumerate(zip(best.tolist(), scores[best].tolist()), 1)]}]}

    def found(data: bytes, k: int) -> dict:
        return hits(pair.embed([pair.pixels(data)])[0], k)

    @functools.cache
    def small(row: int) -> bytes:
        with Image.open(paths[row]) as image:
            image.draft("RGB", (THUMBNAIL, THUMBNAIL))
            image = ImageOps.exif_transpose(image).convert("RGB")
            image.thumbnail((THUMBNAIL, THUMBNAIL))
            image.save(data := io.BytesIO(), "JPEG", quality=QUALITY)
        return data.getvalue()

    async def search(request: Request) -> JSONResponse:
        k = int(request.query_params["k"])
        if request.headers["content-type"] == "application/json":
            (row,) = (await request.json())["rows"]
            return JSONResponse(hits(vectors[row], k))
        return JSONResponse(await run_in_threadpool(found, await request.body(), k))

    async def thumbnail(request: Request) -> Response:
        return Response(await run_in_threadpool(small, request.path_params["row"]), media_type="image/jpeg")

    async def ready(request: Request) -> JSONResponse:
        return JSONResponse({})

    return Starlette(routes=[Route("/api/search", search, methods=["POST"]), Route("/api/ready", ready),
                             Route("/api/thumbnails/{row:int}", thumbnail)])


@click.command()
@click.argument("workspace")
def main(workspace):
    """Serve, and print the address as `mocoembed serve` does."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else answers of two parts wait for 40 ms
        print(f"http://127.0.0.1:{listening.getsockname()[1]}/", flush=True)
        uvicorn.Server(uvicorn.Config(app_of(workspace), log_level="warning")).run([listening])


if __name__ == "__main__":
    main()
