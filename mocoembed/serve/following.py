"""The collection that is served now: when its files are replaced, the new one takes over without a failed request."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

from mocoembed.config.serve import ServeConfig
from mocoembed.errors import MocoembedError
from mocoembed.serve.collection import Collection


class Following:
    """`use()` gives the collection of now; `look()` opens another one if its files have been replaced."""

    def __init__(self, config: ServeConfig, note: Callable[[str], None]):
        self._config, self._note = config, note
        self._lock = threading.Lock()
        self._users: dict[int, int] = {}
        self._old: dict[int, Collection] = {}
        self._seen: tuple = ()
        self.current = self._open()

    def _open(self) -> Collection:
        collection = Collection(self._config, self._note)
        self._seen = _state(collection)
        return collection

    @contextlib.contextmanager
    def use(self, collection: Collection | None = None) -> Iterator[Collection]:
        """The collection of now, or one that is in use; it stays open while the block runs."""
        with self._lock:
            collection = collection or self.current
            self._users[id(collection)] = self._users.get(id(collection), 0) + 1
        try:
            yield collection
        finally:
            with self._lock:
                self._users[id(collection)] -= 1
            self._close_unused()

    def _close_unused(self):
        with self._lock:
            unused = [key for key in self._old if not self._users.get(key)]
            closing = [self._old.pop(key) for key in unused]
            for key in unused:
                self._users.pop(key, None)
        for collection in closing:
            collection.close()

    def look(self) -> bool:
        """Take over the files if they have been replaced; whether they were. What cannot be opened is told once."""
        state = _state(self.current)
        if state == self._seen:
            return False
        self._seen = state
        try:
            new = self._open()
        except (MocoembedError, OSError) as error:
            self._note(f"The files have been replaced and cannot be opened; the old ones are served on. {error}")
            return False
        with self._lock:
            self._old[id(self.current)] = self.current
            self.current = new
        self._close_unused()
        self._note(f"The files have been replaced: {len(new)} images are served now.")
        return True

    def close(self):
        """Close the files."""
        self.current.close()


def _state(collection: Collection) -> tuple:
    """What changes when a file does."""
    found: list[tuple | None] = []
    for path in collection.files():
        try:
            status = os.stat(path)
            found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
        except OSError:
            found.append(None)
    return tuple(found)
