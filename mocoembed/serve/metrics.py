"""Counts and times for Prometheus, in its text format (version 0.0.4)."""

import bisect
import threading
import time
from collections import Counter

TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32)


class Histogram:
    """How many values were at most each bound."""

    def __init__(self, bounds: tuple[float, ...]):
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float):
        """Count a value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str = "") -> list[str]:
        """Its lines, with `labels` such as `route="/"`."""
        found, so_far = [], 0
        for bound, count in zip([*self.bounds, "+Inf"], self.counts):
            so_far += count
            found.append(f'{name}_bucket{{{labels}{"," if labels else ""}le="{bound}"}} {so_far}')
        braces = f"{{{labels}}}" if labels else ""
        return [*found, f"{name}_sum{braces} {self.total:.9g}", f"{name}_count{braces} {so_far}"]


class Metrics:
    """What happened since the start."""

    def __init__(self):
        self._lock = threading.Lock()
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.seconds: dict[str, Histogram] = {}
        self.batches = Histogram(SIZES)
        self.refused: Counter[str] = Counter()

    def request(self, route: str, method: str, status: int, seconds: float):
        """Count a request that was answered."""
        with self._lock:
            self.requests[route, method, status] += 1
            self.seconds.setdefault(route, Histogram(SECONDS)).add(seconds)

    def batch(self, size: int):
        """Count a batch of images that were embedded together."""
        with self._lock:
            self.batches.add(size)

    def refusal(self, reason: str):
        """Count a request that was refused."""
        with self._lock:
            self.refused[reason] += 1

    def text(self, gauges: dict[str, tuple[str, float]]) -> str:
        """All of it, with `gauges`: {name: (help, value)}."""
        with self._lock:
            lines = ["# HELP mocoembed_requests_total Requests that were answered.",
                     "# TYPE mocoembed_requests_total counter"]
            lines += [f'mocoembed_requests_total{{route="{route}",method="{method}",status="{status}"}} {count}'
                      for (route, method, status), count in sorted(self.requests.items())]
            lines += ["# HELP mocoembed_refused_total Requests that were refused, by reason.",
                      "# TYPE mocoembed_refused_total counter"]
            lines += [f'mocoembed_refused_total{{reason="{reason}"}} {count}'
                      for reason, count in sorted(self.refused.items())]
            lines += ["# HELP mocoembed_request_seconds Seconds until a request was answered.",
                      "# TYPE mocoembed_request_seconds histogram"]
            for route, histogram in sorted(self.seconds.items()):
                lines += histogram.lines("mocoembed_request_seconds", f'route="{route}"')
            lines += ["# HELP mocoembed_batch_size Images that were embedded together.",
                      "# TYPE mocoembed_batch_size histogram", *self.batches.lines("mocoembed_batch_size")]
        for name, (about, value) in gauges.items():
            lines += [f"# HELP {name} {about}", f"# TYPE {name} gauge", f"{name} {value:.9g}"]
        return "\n".join(lines) + "\n"


def age_of(path) -> float:
    """Seconds since a file was written; 0 for one that is gone."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return 0.0
