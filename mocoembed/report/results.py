"""Results of evaluations in a report: the JSON of `knn`, `linear`, `retrieval` ... -> tables, marks, confusion matrix.

In: results as `evaluate/result.py` writes them, whatever their task; what a result does not have is left out. Out: a
table of all of them, and a section for each.
"""

import math
import pathlib

from mocoembed.evaluate.compare import LEARNING, setting_of
from mocoembed.evaluate.result_file import value_of
from mocoembed.evaluate.words import TASKS, words
from mocoembed.notes import counted
from mocoembed.report.charts import bar, mark
from mocoembed.report.html import Child, Element, command, element, facts, percent, section, settings, short, table

SHOWN_CLASSES = 60  # in the table by class
MATRIX_CLASSES = 30  # whose confusion matrix is drawn
SHOWN_CONFUSIONS = 20
SHOWN_REPEATS = 40
SHADES = 10  # of the confusion matrix


def title_of(path: str, result: dict) -> str:
    """`kNN accuracy: cifar10`."""
    return f"{TASKS.get(result['task'], result['task'])}: {pathlib.Path(path).stem}"


def anchor_of(place: int) -> str:
    """Where the section of the result at that place stands."""
    return f"result-{place + 1}"


def measures_of(entry: dict) -> dict[str, dict]:
    """Measure -> value, ci95, method, n, for those that an entry of `results` or of the baselines has."""
    return {name: value for name in entry.get("values", entry) if (value := value_of(entry, name))}


def is_percent(result: dict, value: dict) -> bool:
    """Whether a value may stand on a scale from 0 to 100."""
    return result.get("unit") == "percent" and "unit" not in value


def interval_text(value: dict, digits: int = 2) -> str:
    """`86.1 to 90.5`; empty without an interval."""
    interval = value.get("ci95")
    return f"{percent(interval[0], digits)} to {percent(interval[1], digits)}" if interval else ""


def best_baseline(result: dict, name: str) -> tuple[str, float] | None:
    """The baseline that has most of a measure."""
    found = [(one.get("name", ""), value["value"]) for one in result.get("baselines") or []
             if (value := value_of(one, name)) and value.get("value") is not None]
    return max(found, key=lambda one: one[1]) if found else None


def overview(results: dict[str, dict]) -> Element | None:
    """A line for each result: its first measure with interval and best baseline."""
    rows: list[list[Child]] = []
    for place, (path, result) in enumerate(results.items()):
        entry = result["results"][0]
        for name, value in list(measures_of(entry).items())[:1 if is_percent(result, value_in(entry)) else 2]:
            baseline = best_baseline(result, name) if is_percent(result, value) else None
            rows.append([element("a", title_of(path, result), href=f"#{anchor_of(place)}"), words(name),
                         percent(value["value"]), interval_text(value),
                         mark(value["value"], value.get("ci95"), baseline and baseline[1])
                         if is_percent(result, value) else value.get("unit"),
                         f"{percent(baseline[1])} {baseline[0]}" if baseline else None, setting_of(entry),
                         f"{value.get('n'):,}"])
    if not rows:
        return None
    return table(["result", "measure", "value", "95 %", "0 to 100 %; line: best baseline", "best baseline", "setting",
                  "n"], rows, "The first measure of each", (2, 3, 7))


def value_in(entry: dict) -> dict:
    """The first measure of an entry."""
    return next(iter(measures_of(entry).values()), {})


def result_section(place: int, path: str, result: dict) -> Element:
    """Everything about one result."""
    parts = [_measures(result), _baselines(result), _per_class(result), _confusion(result), _choice(result),
             _repeats(result)]
    return section(title_of(path, result), facts(_about(result)),
                   element("div", *(one for one in parts if one is not None), class_="parts"), _settings(result),
                   command(result.get("command")), anchor=anchor_of(place))


def _about(result: dict):
    encoder, data = result["encoder"], result["data"]
    named = (encoder.get("provenance") or {}).get("name")
    yield "encoder", element("span", f"{named}, " if named else None,
                             element("code", str(encoder.get("fingerprint"))[:12]))
    yield "features", f"{encoder.get('features')}, dimension {encoder.get('dimension')}"
    names = ("training images", "test images") if result["task"] in LEARNING else ("bank", "queries")
    sides = [(name, data[side]) for name, side in zip(names, ("bank", "queries"))]
    if data["queries"] == data["bank"]:
        del sides[1]
    for name, side in sides:
        yield (name if len(sides) > 1 else "images"), element(
            "span", f"{side['count']:,} of {side['path']}, identity ", element("code", str(side.get("identity"))[:12]))
        yield ("unlabelled" if len(sides) == 1 else f"unlabelled in {name}"), side.get("unlabelled") or None
    yield "classes", str(data.get("classes")) if result.get("per_class") else None
    yield "copies", _overlap(data.get("overlap"))
    yield "computed on", f"{result.get('device')} in {result.get('seconds', 0):.1f} s"
    yield "versions", ", ".join(f"{name} {one}" for name, one in (result.get("versions") or {}).items())


def _overlap(found: dict | None) -> str | None:
    if not found or not (found.get("identical") or found.get("near")):
        return None
    near = f", {found['near']} near-duplicates or copies (cosine {found['near_threshold']:g} or more)" \
        if found.get("near") else ""
    return f"{found.get('identical') or 0} queries with the bytes of another image{near}"


def _measures(result: dict) -> Element:
    rows: list[list[Child]] = []
    entries, chances = result["results"], False
    for entry in entries:
        for name, value in measures_of(entry).items():
            chance = value.get("chance")
            chances |= chance is not None
            rows.append([words(name), setting_of(entry) if len(entries) > 1 else None, percent(value["value"]),
                         interval_text(value), percent(chance) if chance is not None else None,
                         mark(value["value"], value.get("ci95"), chance) if is_percent(result, value)
                         else value.get("unit"), f"{value.get('n'):,}"])
    kept = [column for column, there in enumerate((True, len(entries) > 1, True, True, chances, True, True)) if there]
    header = ["measure", "setting", "value", "95 %", "chance", "0 to 100 %" if result.get("unit") else "unit", "n"]
    methods = {value["method"] for entry in entries for value in measures_of(entry).values() if value.get("method")}
    made = table([header[i] for i in kept], [[row[i] for i in kept] for row in rows],
                 "In percent" if result.get("unit") == "percent" else "Each in its own unit",
                 [place for place, i in enumerate(kept) if i in (2, 3, 4, 6)])
    note = element("p", f"Intervals: {'; '.join(sorted(methods))}.", class_="pale") if methods else None
    return section("Measures", made, note, level=3)


def _baselines(result: dict) -> Element | None:
    """The first measure of the encoder and of what needs no training, on one scale."""
    found = [(one.get("name", ""), measures_of(one)) for one in result.get("baselines") or []]
    shared = [name for name in measures_of(result["results"][0]) if any(name in values for _, values in found)]
    if not shared:
        return None
    rows: list[list[Child]] = []
    for number, (who, values) in enumerate([("the encoder", measures_of(result["results"][0])), *found]):
        first = values.get(shared[0], {})
        drawn = mark(first.get("value"), first.get("ci95"), None, "c0" if number == 0 else "other") \
            if first and is_percent(result, first) and result.get("unit") else None
        rows.append([who, percent(first.get("value")), interval_text(first), drawn,
                     *(percent(values.get(name, {}).get("value")) for name in shared[1:])])
    kept = [i for i in range(len(rows[0])) if i not in (2, 3) or any(row[i] not in (None, "") for row in rows)]
    header = ["vectors", words(shared[0]), "95 %", "0 to 100 %", *map(words, shared[1:])]
    return section("Beside what needs no training", table(
        [header[i] for i in kept], [[row[i] for i in kept] for row in rows], "The same protocol, other vectors",
        [place for place, i in enumerate(kept) if i not in (0, 3)]), level=3)


def _choice(result: dict) -> Element | None:
    protocol = result["protocol"]
    if not protocol.get("chosen"):
        return None
    chosen = facts((words(name), short(value)) for name, value in protocol["chosen"].items())
    scores = [one for one in protocol.get("scores") or [] if isinstance(one, dict)]
    names = list(scores[0]) if scores else []
    tried = table([words(name) for name in names], [[short(one.get(name)) for name in names] for one in scores],
                  "Tried on the held-out part", range(len(names)))
    edge = element("p", "The choice stands at the edge of the grid; a wider one may do better.", class_="warning") \
        if protocol.get("at_edge") else None
    told = element("summary", f"{counted(len(scores), 'setting')} tried")
    return section("What was chosen", chosen, edge,
                   element("details", told, tried, class_="printed") if scores else None, level=3)


def _per_class(result: dict) -> Element | None:
    classes = list((result.get("per_class") or {}).items())
    if not classes:
        return None
    told = [name for name in classes[0][1] if name != "count"]
    caption, shown = f"{len(classes)} classes", classes
    if len(classes) > SHOWN_CLASSES:
        shown = sorted(classes, key=lambda one: _sortable(one[1].get(told[0])))[:SHOWN_CLASSES]
        caption = f"The {SHOWN_CLASSES} of {len(classes)} classes with the lowest {words(told[0])}"
    rows = [[name, f"{one['count']:,}", percent(one.get(told[0])), bar(one.get(told[0])),
             *(percent(one.get(measure)) for measure in told[1:])] for name, one in shown]
    return section("By class", table(["class", "images", words(told[0]), "0 to 100 %", *map(words, told[1:])], rows,
                                     caption, [1, 2, *range(4, 3 + len(told))]), level=3)


def _sortable(value: float | None) -> float:
    return math.inf if value is None else value


def _confusion(result: dict) -> Element | None:
    found = result.get("confusion")
    if not found:
        return None
    names, counts = found["classes"], found["counts"]
    wrong = sorted(((count, names[i], names[j]) for i, row in enumerate(counts) for j, count in enumerate(row)
                    if i != j and count), key=lambda one: (-one[0], one[1], one[2]))[:SHOWN_CONFUSIONS]
    most = table(["true class", "taken for", "images", "of the class"],
                 [[true, taken, f"{count:,}", f"{100 * count / sum(counts[names.index(true)]):.1f} %"]
                  for count, true, taken in wrong], "The most frequent confusions", (2, 3)) if wrong else None
    return section("Confusion matrix", matrix(names, counts) if len(names) <= MATRIX_CLASSES else None,
                   most if len(names) > MATRIX_CLASSES or most is None else element(
                       "details", element("summary", "As a list"), most), level=3)


def matrix(names: list[str], counts: list[list[int]]) -> Element:
    """The confusion matrix as a table, each cell shaded by its share of the row."""
    head = element("tr", element("th", "true class, taken for", scope="col"), *(
        element("th", element("span", name), scope="col", class_="turned") for name in names))
    body = []
    for i, (name, row) in enumerate(zip(names, counts)):
        total = max(1, sum(row))
        body.append(element("tr", element("th", name, scope="row"), *(
            element("td", str(count) if count else "·", class_=f"cell h{math.ceil(SHADES * count / total)}"
                    + (" right" if i == j else "")) for j, count in enumerate(row))))
    caption = "Numbers of images: a row for each true class, a column for what they are taken for; shaded by row"
    made = element("table", element("caption", caption), element("thead", head), element("tbody", *body),
                   class_="matrix")
    return element("div", made, class_="scrolls", tabindex="0", role="region", aria_label=caption)


def _repeats(result: dict) -> Element | None:
    solver, repeats = result.get("solver"), [_numbers(one) for one in result.get("repeats") or []
                                             if isinstance(one, dict)]
    names = list(repeats[0]) if repeats else []
    rows: list[list[Child]] = [[f"{one[name]:.5g}" if name in one else "–" for name in names]
                               for one in repeats[:SHOWN_REPEATS]]
    unconverged = element("p", f"{solver.get('unconverged')} fits did not converge.", class_="warning") \
        if solver and solver.get("converged") is False else None
    if not rows and not solver:
        return None
    told = {"solver" if name == "name" else name: value for name, value in (solver or {}).items()}
    return section("Fits" if solver else "Repeats", unconverged, settings(told) if solver else None,
                   table([words(name) for name in names], rows, "Seeds and folds" if solver else "Seeds",
                         range(len(names))) if rows else None, level=3)


def _numbers(repeat: dict) -> dict[str, float]:
    """The numbers of a seed, with those of its first setting where it has several, as in kNN."""
    first = (repeat.get("results") or [{}])[0]
    return {name: value for name, value in {**repeat, **first}.items()
            if isinstance(value, int | float) and not isinstance(value, bool)}


def _settings(result: dict) -> Element:
    protocol = result["protocol"]
    return element("details", element("summary", f"Protocol: {protocol['name']}"),
                   settings({"digest": str(protocol.get("digest"))[:16], **protocol["settings"]}), class_="printed")
