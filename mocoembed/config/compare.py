"""The settings of `mocoembed compare`."""

from dataclasses import dataclass

from mocoembed.errors import UsageError


@dataclass(frozen=True)
class CompareConfig:
    """Everything that `mocoembed compare` needs."""

    results: tuple[str, ...]
    """Results of evaluations: JSON files, as knn, linear and retrieval print with --json."""
    anyway: bool = False
    """Compare even if protocols or images differ, on the queries that both results have."""

    def __post_init__(self):
        if len(self.results) < 2:
            raise UsageError("There is nothing to compare. Give two or more results: mocoembed compare A.json B.json")
        if twice := [path for path in self.results if self.results.count(path) > 1]:
            raise UsageError(f"{twice[0]} is given twice. Give different results.")
