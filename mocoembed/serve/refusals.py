"""The log of requests that are refused: when, who, what kind of request, and why; nothing that the caller sent."""

import ipaddress
import re
import time
from collections import Counter
from collections.abc import Callable

from starlette.types import Scope

from mocoembed.notes import counted
from mocoembed.serve.answers import Refusal

PER_MINUTE = 20  # lines; the rest are counted
KNOWN = re.compile(r"/(api/[a-z-]{1,20}|metrics|login)?")  # paths that are told
DISCONNECTED = "disconnected"  # the reason when a caller has gone
QUIET = ("gone", "nothing selected", "no map", "warming up")  # say nothing about the caller: they are only counted


class RefusalLog:
    """Tells refusals by `note`, up to `PER_MINUTE` of them one by one."""

    def __init__(self, note: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._note, self._clock = note, clock
        self._begun, self._told = clock(), 0
        self._left_out: Counter[str] = Counter()  # reasons

    def __call__(self, scope: Scope, refusal: Refusal):
        """Note one."""
        if refusal.reason == DISCONNECTED:  # nobody was refused
            return
        if (now := self._clock()) - self._begun >= 60:
            self.tell_rest()
            self._begun, self._told = now, 0
        if refusal.reason in QUIET or self._told >= PER_MINUTE:
            self._left_out[refusal.reason] += 1
            return
        self._told += 1
        self._note(f"{time.strftime('%Y-%m-%d %H:%M:%S')} refused: {_what(scope)} from {_address(scope)}: "
                   f"{refusal.status} {refusal.reason}")

    def tell_rest(self):
        """Note how many were only counted since the last time, if there were any, and why they were refused."""
        if self._left_out:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self._left_out.items()))
            self._note(f"refused: {counted(self._left_out.total(), 'more request')} ({reasons})")
        self._left_out.clear()


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
