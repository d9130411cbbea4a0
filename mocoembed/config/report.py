"""The settings of `mocoembed report`."""

from dataclasses import dataclass

from mocoembed.checks import at_least, require
from mocoembed.config.pretrain import DEFAULT_WORKSPACE
from mocoembed.errors import UsageError


@dataclass(frozen=True)
class ReportConfig:
    """Everything that `mocoembed report` needs."""

    sources: tuple[str, ...] = ()
    """Run folders, workspaces and results of evaluations (JSON files); none: the workspace."""
    html: str = "report.html"
    """File to write the page to; a report that is there is replaced, any other file is not."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder that holds the results of every command, where the next command finds them."""
    queries: int = 6
    """Number of images whose nearest neighbours are shown, drawn at random; 0: none."""

    def __post_init__(self):
        at_least(self, 0, "queries")
        require(self, "html", self.html.lower().endswith((".html", ".htm")), "a name that ends in .html")
        if twice := [path for path in self.sources if self.sources.count(path) > 1]:
            raise UsageError(f"{twice[0]} is given twice. Give different runs and results.")
