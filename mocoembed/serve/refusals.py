"""The log of requests that are refused: when, who, what kind of request, and why; nothing that the caller sent."""

import ipaddress
import re
import time
from collections.abc import Callable

from starlette.types import Scope

from mocoembed.notes import counted
from mocoembed.serve.answers import Refusal

PER_MINUTE = 20  # lines; the rest are counted
KNOWN = re.compile(r"/(api/[a-z-]{1,20}|metrics|login)?")  # paths that are told
DISCONNECTED = "disconnected"  # the reason when a caller has gone
QUIET = (DISCONNECTED, "gone", "nothing selected", "no map", "warming up")  # reasons that say nothing about the caller


class RefusalLog:
    """Tells refusals by `note`, up to `PER_MINUTE` of them one by one."""

    def __init__(self, note: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._note, self._clock = note, clock
        self._begun, self._told, self._left_out = clock(), 0, 0

    def __call__(self, scope: Scope, refusal: Refusal):
        """Note one."""
        if refusal.reason in QUIET:
            return
        if (now := self._clock()) - self._begun >= 60:
            self.tell_rest()
            self._begun, self._told = now, 0
        if self._told >= PER_MINUTE:
            self._left_out += 1
            return
        self._told += 1
        self._note(f"{time.strftime('%Y-%m-%d %H:%M:%S')} refused: {_what(scope)} from {_address(scope)}: "
                   f"{refusal.status} {refusal.reason}")

    def tell_rest(self):
        """Note how many were left out since the last time, if there were any."""
        if self._left_out:
            self._note(f"refused: {counted(self._left_out, 'more request')} within a minute")
        self._left_out = 0


def _what(scope: Scope) -> str:
    """The kind of request; that of a head which is none, or not whole, is not known."""
    if "path" not in scope:
        return "a connection"
    route = scope.get("route")
    return f"{scope['method']} {route.path if route else scope['path'] if KNOWN.fullmatch(scope['path']) else 'a path'}"


def _address(scope: Scope) -> str:
    """The caller's address; behind a proxy it comes from a header, which may hold anything."""
    try:
        return str(ipaddress.ip_address(scope["client"][0]))
    except (KeyError, TypeError, ValueError):
        return "unknown"
