"""The server: a `ServeConfig` -> an address that answers, until a signal ends it."""

import contextlib
import logging
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mocoembed.config.serve import ServeConfig
from mocoembed.errors import CollectionError, MocoembedError, UsageError
from mocoembed.notes import say_nothing
from mocoembed.serve.answers import Refusal, in_words, refused
from mocoembed.serve.connections import Connection
from mocoembed.serve.entering import login_of
from mocoembed.serve.refusals import RefusalLog
from mocoembed.serve.routes import routes_of
from mocoembed.serve.security import READS, Hosts, Security, Tokens
from mocoembed.serve.service import Service
from mocoembed.serve.static_files import StaticFiles

SECONDS_TO_FINISH = 30  # after SIGTERM
MOST_FILES = 65_536  # open at once, where the system sets no limit


class Watched:
    """ASGI middleware: counts and times requests."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 0

        async def watched_send(message: Message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched_send)
        finally:
            route = scope.get("route")
            self.service.metrics.request(route.path if route else "none", scope["method"], status,
                                         time.perf_counter() - begun)


def app_of(service: Service, tokens: Tokens, files: StaticFiles | None = None) -> ASGIApp:
    """The ASGI application of a service."""
    log, files = RefusalLog(service.note), files or StaticFiles()

    def tell(scope: Scope, refusal: Refusal):
        service.metrics.refusal(refusal.reason)
        log(scope, refusal)

    async def answer(request: Request, error: Exception) -> Response:
        refusal = refusal_of(error)
        tell(request.scope, refusal)
        if refusal.status == 500:
            service.note(f"A request failed: {type(error).__name__}: {error}")
        response = refused(refusal)
        if isinstance(error, HTTPException) and error.headers:
            response.headers.update(error.headers)
        if request.method not in READS:
            response.headers["Connection"] = "close"  # the rest of a body is not waited for
        return response

    @contextlib.asynccontextmanager
    async def lifespan(app):
        service.start()
        yield {"tell": tell}  # for connections, which refuse what is no request
        await service.stop()
        log.tell_rest()

    login = Route("/login", login_of(tokens, files, service.bodies, tell), methods=["GET", "POST"])
    app = Starlette(routes=[*routes_of(service, files), login], lifespan=lifespan,
                    exception_handlers={kind: answer for kind in (Refusal, HTTPException, MocoembedError, Exception)})
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # tracebacks; nothing of what others send
    app.router.redirect_slashes = False  # a redirection's address would come from the Host header
    return Watched(Security(app, Hosts(service.config), tokens, tell), service)


def refusal_of(error: Exception) -> Refusal:
    """What is answered to a request that failed with `error`."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UsageError):
        return Refusal(400, in_words(error), "parameter")
    if isinstance(error, CollectionError):
        return Refusal(422, str(error), "unreadable image")
    if isinstance(error, HTTPException):
        return Refusal(error.status_code, {404: "There is no such page.", 405: "This method is not allowed here."}.get(
            error.status_code, "The request cannot be answered."))
    return Refusal(500, "The server failed; its log says why.", "error")


def bound(config: ServeConfig) -> socket.socket:
    """A socket that listens on the address; `UsageError` when that is taken."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio asks which, for TCP_NODELAY
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((config.host, config.port))
    except OSError as error:
        listening.close()
        raise UsageError(f"--host {config.host} --port {config.port}: {error.strerror or error}. Give another one; "
                         "--port 0 is any that is free.") from error
    return listening


def allow_many_connections():
    """Raise the number of files that may be open to what the system allows: a connection is one."""
    with contextlib.suppress(ValueError, OSError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = max(soft, MOST_FILES) if hard == resource.RLIM_INFINITY else hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class Server:
    """A server whose port is taken; `run` answers until a signal comes, or `stop` is called on another thread."""

    def __init__(self, config: ServeConfig, note: Callable[[str], None] = say_nothing):
        """Raises what opening the files raises, and `UsageError` when the port is taken."""
        allow_many_connections()
        self._listening = bound(config)
        self.port = self._listening.getsockname()[1]
        try:
            self.service, self.tokens = Service(config, note), Tokens(config, self.port)
        except BaseException:
            self._listening.close()
            raise
        settings = uvicorn.Config(app_of(self.service, self.tokens), http=Connection, loop="asyncio", ws="none",
                                  lifespan="on", log_config=None, access_log=False, server_header=False,
                                  timeout_graceful_shutdown=SECONDS_TO_FINISH)
        self._server = _Uvicorn(settings)
        self.address = address_of(config, self.port, self.tokens.key)

    def run(self, answering: Callable[[str], None] = lambda address: None):
        """Answer requests. `answering(address)` is called once that begins."""
        self._server.answering = lambda: answering(self.address)
        self._server.run([self._listening])

    def stop(self):
        """Finish what is running, and end."""
        self._server.should_exit = True


def serve(config: ServeConfig, note: Callable[[str], None] = say_nothing,
          answering: Callable[[str], None] = lambda address: None):
    """Serve until SIGINT or SIGTERM. `answering(address)` is called once the server answers."""
    Server(config, note).run(answering)


def address_of(config: ServeConfig, port: int, key: str | None) -> str:
    """Where the page is; with the one-time key that opens it."""
    host = {"0.0.0.0": "localhost", "::": "localhost"}.get(config.host, config.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/{'' if key is None else f'login?key={key}'}"


class _Uvicorn(uvicorn.Server):
    answering: Callable[[], None]

    @contextlib.contextmanager
    def capture_signals(self):
        """Signals end the server, which is its usual end: uvicorn's own would kill the process with them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets=None):
        """As uvicorn's, and tells it."""
        await super().startup(sockets)
        self.answering()
