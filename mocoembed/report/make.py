"""A report: runs, workspaces and results -> one page that needs nothing else, for people to read, print and keep."""

import datetime
import json
import pathlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field

from mocoembed.config import ReportConfig
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import FormatError, UsageError
from mocoembed.evaluate.compare import KIND as COMPARISON
from mocoembed.evaluate.compare import SCHEMA as COMPARISON_SCHEMA
from mocoembed.evaluate.compare import name_of
from mocoembed.evaluate.result_file import require_result
from mocoembed.evaluate.words import words
from mocoembed.files import write_bytes
from mocoembed.notes import counted, say_nothing
from mocoembed.report.html import GENERATOR, Child, Element, element, page, percent, section, table
from mocoembed.report.images import map_section, neighbours_section, pairs_of
from mocoembed.report.results import interval_text, overview, result_section
from mocoembed.report.run import Run, is_run, read_run, run_section
from mocoembed.version import __version__
from mocoembed.workspace import Workspace

MAKE_ONE = "Make a result with: mocoembed knn --json > result.json"
LOOKED_AT = 4096  # bytes of a file that may be a report


@dataclass
class Sources:
    """What the report is of, as it was read."""

    runs: list[Run] = field(default_factory=list)
    results: dict[str, dict] = field(default_factory=dict)
    """Path -> result."""
    comparisons: dict[str, dict] = field(default_factory=dict)
    embeddings: list[pathlib.Path] = field(default_factory=list)
    """Of workspaces."""


@dataclass(frozen=True)
class ReportResult:
    """What `make_report` did."""

    path: pathlib.Path
    runs: int
    results: int
    """Results of evaluations, comparisons included."""
    size: int
    """Bytes of the page."""


def make_report(config: ReportConfig, note: Callable[[str], None] = say_nothing) -> ReportResult:
    """Write the page. `note` is told of what had to be left out.

    Raises `UsageError` for a missing source, a folder that is neither run nor workspace or a file that is there and is
    no report; `FormatError` for a file that is no result, is damaged or of a newer schema, or a run without a step.
    """
    path = pathlib.Path(config.html)
    require_report(path)
    sources = read_sources(config.sources or (config.workspace,))
    data = page(title_of(sources), *body_of(sources, config, note))
    write_bytes(path, data)
    return ReportResult(path, len(sources.runs), len(sources.results) + len(sources.comparisons), len(data))


def require_report(path: pathlib.Path):
    """Raise `UsageError` when there is something at `path` that is not a report."""
    if path.is_dir():
        raise UsageError(f"--html {path}: is a folder. Give the name of a file.")
    if path.exists():
        with open(path, "rb") as file:
            if f'content="{GENERATOR}"'.encode() not in file.read(LOOKED_AT):
                raise UsageError(f"--html {path}: exists and is not a report. Give another name, or delete it.")


def read_sources(paths: tuple[str, ...]) -> Sources:
    """All that was given, read and checked before anything is made of it."""
    found = Sources()
    for given in paths:
        path = pathlib.Path(given)
        if path.is_dir():
            _read_folder(path, found)
        else:
            _read_file(given, found)
    return found


def _read_folder(path: pathlib.Path, found: Sources):
    if is_run(path):
        found.runs.append(read_run(path))
        return
    workspace = Workspace(path)
    if workspace.embeddings.is_file():
        with EmbeddingFile(workspace.embeddings):
            found.embeddings.append(workspace.embeddings)
    if workspace.runs.is_dir() and any(workspace.runs.glob("*/checkpoint.json")):
        found.runs.append(read_run(workspace.newest_run()))
    elif not workspace.embeddings.is_file():
        raise UsageError(f"{path} is neither a run folder nor a workspace with a run or embeddings. Make them with: "
                         "mocoembed pretrain IMAGES")


def _read_file(given: str, found: Sources):
    path = pathlib.Path(given)
    if not path.exists():
        raise UsageError(f"{given} does not exist. Give a run folder, a workspace or a result. {MAKE_ONE}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, too
        raise FormatError(f"{given} is not JSON ({error}). {MAKE_ONE}") from error
    if isinstance(value, dict) and value.get("kind") == COMPARISON:
        if (schema := value.get("schema")) != COMPARISON_SCHEMA:
            raise FormatError(f"{given} has schema {schema} of comparisons; this version reads {COMPARISON_SCHEMA}. "
                              "Install a newer mocoembed.")
        found.comparisons[given] = value
    else:
        found.results[given] = require_result(value, given)


def title_of(sources: Sources) -> str:
    """What the page is called."""
    names = [run.path.name for run in sources.runs] + [name_of(path) for path in sources.results] \
        + [name_of(path) for path in sources.comparisons] + [path.parent.name for path in sources.embeddings]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(dict.fromkeys(names[:3]))}{more}: mocoembed report"


def body_of(sources: Sources, config: ReportConfig, note: Callable[[str], None]) -> list[Element]:
    """The parts of the page."""
    parts: list[Element | None] = []
    if sources.results:
        parts.append(_whole("results", lambda: section("Results", overview(sources.results), anchor="results")))
    parts += [_whole(str(run.path), lambda run=run: run_section(run)) for run in sources.runs]
    parts += [_whole(path, lambda path=path, result=result, place=place: result_section(place, path, result))
              for place, (path, result) in enumerate(sources.results.items())]
    parts += [_whole(path, lambda path=path, value=value: _comparison(path, value))
              for path, value in sources.comparisons.items()]
    pairs = _whole("results", lambda: pairs_of(sources.results, sources.embeddings,
                                             note if config.queries else say_nothing))
    parts += [neighbours_section(pair, config.queries, note) for pair in pairs]
    parts += [map_section(bank, note) for bank in dict.fromkeys(pair.bank for pair in pairs)]
    return [_header(sources), element("main", *_numbered(parts)), _footer(config)]


def _whole(path: str, make: Callable):
    """What `make` gives; `FormatError` where a file lacks what it should have."""
    try:
        return make()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: not whole, or changed by hand ({type(error).__name__}: {error}). Make it again. "
                          f"{MAKE_ONE}") from error


def _numbered(parts: list[Element | None]) -> list[Element]:
    """The parts that there are, each with an anchor, behind their contents."""
    there = [part for part in parts if part is not None]
    for place, part in enumerate(there):
        part.set("id", part.get("id") or f"part-{place + 1}")
        regions = [one for one in part.iter("div") if one.get("role") == "region"]
        for number, region in enumerate(regions, 1):  # each has a name of its own
            region.set("aria-label", f"{region.get('aria-label')}: {part[0].text}, table {number}")
    links = [element("li", element("a", part[0].text, href=f"#{part.get('id')}")) for part in there]
    contents = [element("nav", element("ul", *links), aria_label="Contents")] if len(there) > 1 else []
    return [*contents, *there]


def _header(sources: Sources) -> Element:
    told = [counted(len(found), noun) for found, noun in (
        (sources.runs, "pretraining run"), (sources.results, "result"), (sources.comparisons, "comparison")) if found]
    now = datetime.datetime.now(datetime.timezone.utc)
    return element("header", element("p", "mocoembed report", class_="brand"), element(
        "h1", title_of(sources).removesuffix(": mocoembed report")), element(
        "p", f"{', '.join(told) or 'embeddings'}; made on {now:%d %B %Y, %H:%M} UTC", class_="pale"))


def _footer(config: ReportConfig) -> Element:
    words = ["mocoembed", "report", *(config.sources or ("--workspace", config.workspace)), "--html", config.html,
             "--queries", str(config.queries)]
    return element("footer", element("p", f"mocoembed {__version__}. This page again, from the same files:"),
                   element("pre", element("code", shlex.join(words)), tabindex="0", aria_label="Command"))


def _comparison(path: str, value: dict) -> Element:
    rows: list[list[Child]] = [
        [name_of(one["second"]), name_of(one["first"]), words(one["measure"]), percent(one["value"]),
         interval_text(one), f"{one['mcnemar']['p']:.2g}" if one.get("mcnemar") else None, f"{one['n']:,}"]
        for one in value["differences"]]
    differs = "; ".join(value["differs"])
    warning = element("p", f"Not the same: {differs}", class_="warning") if differs else None
    return section(f"Comparison: {name_of(path)}", warning, table(
        ["result", "minus", "measure", "points", "95 %", "p (McNemar)", "n"], rows,
        "Differences on the same queries, in points", (3, 4, 5, 6)))
