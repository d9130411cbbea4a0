"""The description of the API in OpenAPI 3.1, served as /api/openapi.json and checked by the tests."""

from typing import Any

from mocoembed.serve.limits import MOST_JSON, MOST_UPLOAD
from mocoembed.serve.parameters import (
    DEEPEST,
    ID,
    IDS,
    MOST_FILTERS,
    MOST_HITS,
    MOST_LETTERS,
    MOST_QUERIES,
    MOST_ROWS,
    MOST_SIDE,
    ROWS,
)
from mocoembed.serve.thumbnails import LARGE, LARGEST
from mocoembed.version import __version__

Schema = dict[str, Any]

INTEGER: Schema = {"type": "integer"}
TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
OPEN: Schema = {"type": "object"}
SEVERAL: Schema = {"type": "array", "items": {**TEXT, "maxLength": MOST_LETTERS}, "maxItems": MOST_FILTERS}
LABEL: Schema = {"type": ["string", "null"]}

RECORD = {"row": INTEGER, "id": {**TEXT, "pattern": "^-?[0-9]+$"}, "path": TEXT, "label": LABEL, "width": INTEGER,
          "height": INTEGER}

WORDS = {400: "A parameter or the body is wrong.", 401: "The token is missing or wrong.",
         403: "The request comes from another site.",
         404: "There is no such row, image or page, or no image that the filters leave.",
         408: "The body came too slowly.", 409: "The embeddings file has been replaced, or this cannot be done for it.",
         410: "The image's file has been removed or changed.", 413: "The body is too large.",
         415: "The body is neither an image nor JSON.", 421: "The host name is not served here.",
         422: "The image cannot be decoded.", 429: "The server is busy.", 503: "The server is warming up."}
ALWAYS = (400, 401, 403, 404, 421)
BODIES = (408, 409, 413, 415, 422, 429)


def fields(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object with these fields."""
    return {"type": "object", "properties": required | (optional or {}), "required": list(required)}


def only(required: dict[str, Schema]) -> Schema:
    """An object with these fields and no others."""
    return {**fields(required), "additionalProperties": False}


def listed(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def several(items: Schema, most: int = MOST_QUERIES) -> Schema:
    """A list of one or more."""
    return {"type": "array", "items": items, "minItems": 1, "maxItems": most}


def parameter(name: str, about: str, schema: Schema, place: str = "query") -> Schema:
    """A parameter."""
    return {"name": name, "in": place, "description": about, "schema": schema, "required": place == "path"}


def bounded(least: int, most: int, default: int | None = None) -> Schema:
    """A whole number within bounds."""
    return {**INTEGER, "minimum": least, "maximum": most, **({} if default is None else {"default": default})}


VERSION = parameter("version", "Refuse the request (409) if the embeddings file has been replaced since.", TEXT)
CROP = parameter("crop", "X,Y,WIDTH,HEIGHT: search by this region, in pixels of the upright image.",
                 {**TEXT, "pattern": "^[0-9]{1,7},[0-9]{1,7},[1-9][0-9]{0,6},[1-9][0-9]{0,6}$"})
FILTERS = [parameter("label", "Only images with this label, or one of them.", SEVERAL),
           parameter("not_label", "No images with this label, or one of them.", SEVERAL),
           parameter("path", "Only images whose path matches this glob, or one of them.", SEVERAL),
           parameter("min_side", "Only images at least so many pixels wide and high.", bounded(0, MOST_SIDE, 0))]
WISHES = [parameter("k", "Number of hits.", bounded(1, MOST_HITS, 10)),
          parameter("offset", "Leave out so many hits.", bounded(0, DEEPEST, 0)), *FILTERS,
          parameter("min_score", "Only hits with this score or more.", NUMBER),
          parameter("unique", "Fold near-duplicates of a hit into it.", FLAG),
          parameter("diverse", "Hits that are unlike each other.", FLAG),
          parameter("exclude_self", "Leave out the query itself: images with its bytes, its row, or its selves.", FLAG),
          CROP, VERSION]
VECTOR = listed(NUMBER)
ROW = parameter("row", "Row of the embeddings file.", bounded(0, 2**53), "path")
PAGE = [parameter("offset", "Leave out so many.", bounded(0, 2**53, 0))]

ONE_ID: Schema = {**TEXT, "pattern": f"^{ID}$"}
EXAMPLE: Schema = {"anyOf": [bounded(0, 2**53), ONE_ID, VECTOR]}
JSON_QUERIES: Schema = {"oneOf": [
    only({"rows": several(bounded(0, 2**53))}), only({"ids": several(ONE_ID)}),
    only({"paths": several(TEXT)}), only({"vectors": several(VECTOR)}),
    only({"vectors": several(VECTOR), "selves": several(listed(bounded(0, 2**53)))}), only({"like": several(EXAMPLE)}),
    only({"like": several(EXAMPLE), "unlike": several(EXAMPLE)})]}
IMAGES: Schema = {kind: {"schema": {"type": "string", "format": "binary"}}
                  for kind in ("application/octet-stream", "image/*")}
IMAGE_BODY: Schema = {"required": True, "description": f"An image file of at most {MOST_UPLOAD} bytes.",
                      "content": IMAGES}
BODY: Schema = {"required": True,
                "description": f"An image file of at most {MOST_UPLOAD} bytes, or JSON of {MOST_JSON}.",
                "content": {"application/json": {"schema": JSON_QUERIES}, **IMAGES}}
MEMBER = fields({**RECORD, "similarity": NUMBER, "size": INTEGER, "identical": {"type": ["integer", "null"]}})
GROUPS = fields({"version": TEXT, "threshold": NUMBER, "auto": NUMBER, "least": NUMBER, "reason": TEXT,
                 "compared": TEXT, "bytes_known": FLAG, "total": INTEGER, "extra": INTEGER,
                 "groups": listed(fields({"members": listed(MEMBER)}))})
PROGRESS = fields({"done": INTEGER, "total": INTEGER})
MAP = fields({"version": TEXT, "map": TEXT, "method": TEXT, "provisional": FLAG, "label_names": listed(TEXT),
              "points": listed({**listed(INTEGER), "minItems": 2, "maxItems": 2}), "labels": listed(INTEGER),
              "agreement": {"type": ["array", "null"], "items": INTEGER}})
LABELS = listed(fields({"label": LABEL, "count": INTEGER}))
HEALTH = fields({"version": TEXT, "images": INTEGER, "labels": LABELS, "labels_total": INTEGER,
                 "suffixes": listed(fields({"suffix": TEXT, "count": INTEGER})), "failed_images": INTEGER,
                 "failed": listed(fields({"path": TEXT, "error": TEXT, "reason": TEXT})),
                 "neighbours_agree": {"type": ["number", "null"]}, "suspected_total": INTEGER,
                 "suspected_labels": listed(fields({**RECORD, "suggested": TEXT, "agreement": NUMBER})),
                 "outliers": listed(fields({**RECORD, "similarity": NUMBER}))})


def answers(schema: Schema, *more: int, media: str = "application/json", accepted: Schema | None = None) -> Schema:
    """The answers of an operation: 200, and refusals."""
    error = {"application/json": {"schema": fields({"error": TEXT})}}
    found: Schema = {"200": {"description": "The answer.", "content": {media: {"schema": schema}}}}
    if accepted is not None:
        found["202"] = {"description": "Not ready yet; ask again.",
                        "content": {"application/json": {"schema": accepted}}}
    if 410 in more:  # of a row, by its digest
        found["304"] = {"description": "It is what the browser has."}
    return {**found, **{str(status): {"description": WORDS[status], "content": error}
                        for status in sorted({*ALWAYS, *more})}}


def operation(about: str, parameters: list[Schema], responses: Schema, body: Schema | None = None) -> Schema:
    """One operation."""
    return {"summary": about, "parameters": parameters, "responses": responses,
            **({} if body is None else {"requestBody": body})}


def paths() -> Schema:
    """The operations of every path."""
    image: Schema = {"type": "string", "format": "binary"}
    hit = fields({"rank": INTEGER, "score": NUMBER, **RECORD}, {"folded": INTEGER, "folded_rows": listed(INTEGER)})
    hits = fields({"version": TEXT, "queries": listed(fields({"hits": listed(hit)}))})
    vectors = fields({"version": TEXT, "encoder": TEXT, "vectors": listed(VECTOR)}, {"selves": listed(listed(INTEGER))})
    selves = parameter("selves", "Also give the rows that each is: images with its bytes, and its own.", FLAG)
    rows = fields({"version": TEXT, "total": INTEGER, "rows": listed(fields(RECORD))})
    labels = fields({"version": TEXT, "total": INTEGER, "labels": LABELS})
    info = fields({"version": TEXT, "count": INTEGER, "dimension": INTEGER, "embeddings": TEXT, "root": TEXT,
                   "labels": LABELS, "labels_total": INTEGER, "failed": INTEGER, "features": TEXT, "normalized": FLAG,
                   "encoder": fields({"fingerprint": TEXT, "provenance": OPEN}), "index": OPEN, "searches_images": FLAG,
                   "map": {**fields({"version": TEXT, "method": TEXT, "provisional": FLAG}),
                           "type": ["object", "null"]},
                   "map_progress": {"type": ["string", "null"]}})
    status = fields({"status": TEXT})
    size = parameter("size", "Longer side in pixels, at most.", bounded(16, LARGEST, LARGE))
    sample = [parameter("rows", "These rows, with commas between them, and nothing else that is asked for.",
                        {**TEXT, "pattern": f"^{ROWS}$", "maxLength": MOST_LETTERS}),
              parameter("ids", "The same of images by their ids; those that are not there are left out.",
                        {**TEXT, "pattern": f"^{IDS}$", "maxLength": MOST_LETTERS}),
              parameter("sample", "So many at random instead.", bounded(0, MOST_ROWS, 0)),
              parameter("seed", "Of the sample.", bounded(0, 2**53, 0)),
              parameter("limit", "Number of rows.", bounded(1, MOST_ROWS, 100))]
    some_labels = [parameter("text", "Only those that contain it, in capitals or not.",
                             {**TEXT, "maxLength": MOST_LETTERS}), *PAGE,
                   parameter("limit", "Number of labels.", bounded(1, MOST_ROWS, 100)), VERSION]
    groups = [parameter("threshold", "Least cosine; by default, chosen from the collection.", NUMBER), *PAGE,
              parameter("limit", "Number of groups.", bounded(1, 200, 50)), VERSION]
    gets = {
        "/api/images/{row}": operation("An image as JPEG, without metadata.", [ROW, size, VERSION],
                                       answers(image, 409, 410, 422, 429, media="image/jpeg")),
        "/api/thumbnails/{row}": operation("The same with 320 pixels.", [ROW, VERSION],
                                           answers(image, 409, 410, 422, 429, media="image/jpeg")),
        "/api/rows": operation("Facts about images.", [*sample, *PAGE, *FILTERS, VERSION], answers(rows, 409, 429)),
        "/api/labels": operation("Labels with the numbers of their images.", some_labels, answers(labels, 409, 429)),
        "/api/info": operation("Facts about collection, encoder and index.", [], answers(info, 429)),
        "/api/duplicates": operation("Groups of near-duplicates.", groups,
                                     answers(GROUPS, 409, 429, accepted=PROGRESS)),
        "/api/map": operation("Places of all images in two dimensions.", [VERSION], answers(MAP, 409, 429)),
        "/api/health-report": operation("What the collection holds, and what looks wrong in it.", [VERSION],
                                        answers(HEALTH, 409, 429, accepted=PROGRESS)),
        "/api/live": operation("Whether the server runs.", [], answers(status)),
        "/api/ready": operation("Whether it has answered a first query.", [], answers(status, 503)),
        "/api/openapi.json": operation("This description.", [], answers(OPEN)),
        "/metrics": operation("Counts and times for Prometheus.", [], answers(TEXT, media="text/plain")),
    }
    return {"/api/search": {"post": operation("Nearest images of each query.", WISHES, answers(hits, *BODIES), BODY)},
            "/api/embed": {"post": operation("Vectors of images.", [CROP, selves, VERSION], answers(vectors, *BODIES),
                                             BODY)},
            "/api/preview": {"post": operation("The image of the body as JPEG, for browsers that cannot decode it.",
                                               [VERSION], answers(image, *BODIES, media="image/jpeg"), IMAGE_BODY)},
            **{path: {"get": one} for path, one in gets.items()}}


def description() -> Schema:
    """The whole description."""
    return {"openapi": "3.1.0", "info": {"title": "mocoembed", "version": __version__,
                                         "description": "Search a collection of images by example."},
            "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
            "security": [{}, {"token": []}], "paths": paths()}
