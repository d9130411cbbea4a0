"""Queries that cannot be used: told at once, left out of the results, and an error in the end."""

from collections.abc import Callable

from mocoembed.errors import CollectionError, MocoembedError
from mocoembed.notes import counted


class LeftOut:
    """Of `total` queries, those that are left out; a single query is not, its error is raised."""

    def __init__(self, total: int, note: Callable[[str], None], noun: str = "query"):
        self.total, self.note, self.noun = total, note, noun
        self.reasons: list[str] = []

    def add(self, error: MocoembedError):
        """Leave a query out because of `error`."""
        if self.total == 1:
            raise error
        self.note(str(error))
        self.reasons.append(str(error))

    def raise_if_any(self):
        """Raise `CollectionError` if some were left out; call it after the last result."""
        if self.reasons:
            raise CollectionError(f"{len(self.reasons)} of {counted(self.total, self.noun)} left out, the first of "
                                  f"them: {self.reasons[0]}")
