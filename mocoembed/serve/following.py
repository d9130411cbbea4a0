"""The collection that is served now: when its files are replaced, the new one takes over without a failed request."""

from collections.abc import Callable

from mocoembed.config import SearchConfig
from mocoembed.config.serve import ServeConfig
from mocoembed.errors import UsageError
from mocoembed.search.queries import STANDARD_INPUT
from mocoembed.search.query import Searcher
from mocoembed.serve.collection import Collection


class Following:
    """`current` is the collection of now; `look` opens another one if its files have been replaced.

    A request takes `current` once. Its files stay open for as long as a request holds it.
    """

    def __init__(self, config: ServeConfig, note: Callable[[str], None]):
        self._root, self._note = config.root, note
        self._searcher = _searcher(SearchConfig((STANDARD_INPUT,), config.workspace, index=config.index,
                                                embeddings=config.embeddings, root=config.root), note)
        self.current = Collection(self._searcher.pair(), config.root)

    def look(self, warm_up: Callable[[Collection], None]) -> bool:
        """Take over the files if they have been replaced, after `warm_up` of the collection; whether they were.

        What cannot be opened is told once.
        """
        if (pair := self._searcher.pair()) is self.current.pair:
            return False
        collection = Collection(pair, self._root)
        warm_up(collection)
        self.current = collection
        self._note(f"The files have been replaced: {len(self.current):,} images are served now.")
        return True

    def close(self):
        """Close the files."""
        self._searcher.close()


def _searcher(files: SearchConfig, note: Callable[[str], None]) -> Searcher:
    """The searcher; without an encoder where there is none, so that the collection can be looked at anyway."""
    try:
        return Searcher(files, note)
    except (UsageError, ImportError) as error:
        searcher = Searcher(files, note, encoder=False)  # raises again what does not come from the encoder
        reason = error if isinstance(error, UsageError) else (
            f"There is no graph of the encoder in {files.workspace}; without one, it needs the package {error.name}.")
        note(f"{reason}\nUntil then, images of the collection can be searched for, and no others.")
        return searcher
