"""How many requests a second `mocoembed serve` answers, how long the slowest wait, and how much memory it takes.

    python -m benchmarks.serve_speed WORKSPACE
    python -m benchmarks.serve_speed WORKSPACE --sketch 3       # by turns with serve_sketch.py, the least there can be
    python -m benchmarks.serve_speed WORKSPACE --memory 10000   # MB after each 1,000 requests, of all kinds by turns

WORKSPACE has embeddings and, where there are many, an index (`python -m benchmarks.search_speed OUTPUT FOLDER --rows
50000` makes one with random rows behind those of FOLDER). Each of `--clients` connections sends one request after the
other: searches by a random row, thumbnails and large images of random rows, uploads of the collection's own files. The
clients run in this process, beside the server on the same cores. `start` is from the command until it is ready,
`computing` the server's own time for a request on all cores, `page` the first screen: a search and 60 thumbnails on 6
connections, as a browser asks for them.
"""

import asyncio
import contextlib
import functools
import json
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator

import click

SCREEN, CONNECTIONS, STEP = 60, 6, 1000


class Client:
    """One kept connection, which sends a request and reads its answer."""

    def __init__(self, port: int):
        self.port = port

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *exception):
        self.writer.close()

    async def ask(self, method: str, path: str, body: bytes = b"", kind: str = "image/jpeg") -> tuple[int, bytes]:
        """Status and body of an answer."""
        self.writer.write(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
                          f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        return int(head[9:12]), await self.reader.readexactly(int(length[1]) if length else 0)


def request_of(kind: str, rows: list[dict], images: list[bytes]) -> tuple:
    """What a client sends."""
    row = random.choice(rows)["row"]
    if kind == "rows":
        return "POST", "/api/search?k=50", json.dumps({"rows": [row]}).encode(), "application/json"
    if kind == "uploads":
        return "POST", "/api/search?k=50", random.choice(images)
    return "GET", f"/api/{kind}/{row}" if kind in ("images", "thumbnails") else f"/api/{kind}"


async def load(port: int, kind: str, clients: int, count: int, rows: list[dict], images: list[bytes]) -> dict:
    """Times of `count` requests by `clients` connections."""
    times, bad, left = [], [], iter(range(count))

    async def go():
        async with Client(port) as client:
            for _ in left:
                begun = time.perf_counter()
                status, _ = await client.ask(*request_of(kind, rows, images))
                times.append(time.perf_counter() - begun)
                if status != 200:
                    bad.append(status)

    begun = time.perf_counter()
    await asyncio.gather(*(go() for _ in range(clients)))
    seconds = time.perf_counter() - begun
    times.sort()
    return {"per_second": count / seconds, "median_ms": 1e3 * statistics.median(times),
            "p99_ms": 1e3 * times[int(0.99 * len(times))], "errors": len(bad)}


async def screen(port: int, row: int) -> float:
    """Seconds until a search and the thumbnails of its hits are there."""
    begun = time.perf_counter()
    async with Client(port) as client:
        _, answer = await client.ask("POST", f"/api/search?k={SCREEN}", json.dumps({"rows": [row]}).encode(),
                                     "application/json")
    left = iter([hit["row"] for hit in json.loads(answer)["queries"][0]["hits"]])

    async def go():
        async with Client(port) as client:
            for one in left:
                await client.ask("GET", f"/api/thumbnails/{one}")

    await asyncio.gather(*(go() for _ in range(CONNECTIONS)))
    return time.perf_counter() - begun


def busy(process: int) -> float:
    """Seconds of computing so far."""
    fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(process: int) -> float:
    """MB of memory."""
    text = pathlib.Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1e3


def remember(server: int, kinds: list[str], count: int, send: Callable[..., Awaitable[dict]]):
    """Print the memory after each `STEP` requests."""
    megabytes, errors = [resident(server)], 0
    for step in range(count // STEP):
        errors += asyncio.run(send(kinds[step % len(kinds)], count=STEP))["errors"]
        megabytes.append(resident(server))
    print(f"MB after 0, {STEP:,}, ... requests: {' '.join(f'{one:.0f}' for one in megabytes)}; errors {errors}")


async def ready(port: int):
    """Wait until the server has answered its own first query."""
    async with Client(port) as client:
        while (await client.ask("GET", "/api/ready"))[0] != 200:
            await asyncio.sleep(0.01)


async def facts(port: int) -> tuple[dict, list[dict], list[bytes]]:
    """What is served, rows whose images are there, and files to upload."""
    async with Client(port) as client:
        info = json.loads((await client.ask("GET", "/api/info"))[1])
        rows = json.loads((await client.ask("GET", "/api/rows?limit=1000"))[1])["rows"]
    rows = [row for row in rows if os.path.isfile(row["path"])]
    return info, rows, [pathlib.Path(row["path"]).read_bytes() for row in rows[:200]]


@contextlib.contextmanager
def serving(*command: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """A server that prints its address, and its port, once it is ready."""
    with subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True) as server:
        try:
            port = int(re.search(r":(\d+)/", server.stdout.readline())[1])
            asyncio.run(ready(port))
            yield server, port
        finally:
            server.terminate()


def measure(server: int, who: str, kinds: list[str], send: Callable[[str], Awaitable[dict]], count: int):
    """Print a line for each kind of request."""
    for kind in kinds:
        before = busy(server)
        found = asyncio.run(send(kind))
        each = 1e3 * (busy(server) - before) / count
        print(f"{who:<7}{kind:<10} {found['per_second']:6.0f}/s  median {found['median_ms']:5.1f} ms  p99 "
              f"{found['p99_ms']:5.1f} ms  errors {found['errors']}  computing {each:.2f} ms  "
              f"{resident(server):.0f} MB", flush=True)


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.argument("workspace")
@click.option("--clients", default=16, show_default=True)
@click.option("--requests", "count", default=1000, show_default=True)
@click.option("--kinds", default="rows,thumbnails,uploads", show_default=True)
@click.option("--memory", default=0, help="Requests between which the memory is told, in place of speed.")
@click.option("--sketch", default=0, help="Rounds, in each of which the server of serve_sketch.py follows ours.")
def main(workspace, clients, count, kinds, memory, sketch):
    """Measure and print."""
    for _ in range(max(1, sketch)):
        begun = time.perf_counter()
        with serving("mocoembed", "serve", "--workspace", workspace, "--port", "0", "--no-browser") as (server, port):
            seconds = time.perf_counter() - begun
            info, rows, images = asyncio.run(facts(port))
            print(f"{info['count']} rows of {info['dimension']}, index {info['index']['type']}; start "
                  f"{seconds:.2f} s; {resident(server.pid):.0f} MB")
            random.seed(0)
            send = functools.partial(load, clients=clients, rows=rows, images=images)
            if memory:
                remember(server.pid, kinds.split(","), memory, functools.partial(send, port))
                return
            screens = [1e3 * asyncio.run(screen(port, random.choice(rows)["row"])) for _ in range(5)]
            print(f"page: {screens[0]:.0f} ms, then {statistics.median(screens[1:]):.0f} ms")
            measure(server.pid, "ours", kinds.split(","), functools.partial(send, port, count=count), count)
        if sketch:
            with serving("benchmarks.serve_sketch", workspace) as (server, port):
                measure(server.pid, "sketch", kinds.split(","), functools.partial(send, port, count=count), count)


if __name__ == "__main__":
    main()
