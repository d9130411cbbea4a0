"""The settings of `mocoembed push`, and those of `search` that name a Milvus collection in place of an index."""

import contextlib
import difflib
import math
import re
import shlex
from dataclasses import dataclass

from mocoembed.checks import one_of, option_name, require
from mocoembed.config.pretrain import DEFAULT_WORKSPACE
from mocoembed.errors import UsageError

DEFAULT_COLLECTION = "images"
# Milvus's types for vectors of floats. Milvus Lite has LITE_INDEX_TYPES alone.
INDEX_TYPES = ("AUTOINDEX", "FLAT", "HNSW", "HNSW_SQ", "HNSW_PQ", "HNSW_PRQ", "IVF_FLAT", "IVF_SQ8", "IVF_PQ",
               "IVF_RABITQ", "SCANN", "DISKANN", "GPU_BRUTE_FORCE", "GPU_CAGRA", "GPU_IVF_FLAT", "GPU_IVF_PQ")
LITE_INDEX_TYPES = ("AUTOINDEX", "FLAT", "HNSW", "HNSW_SQ", "IVF_FLAT", "IVF_SQ8")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
RANGES = {"M": (2, 2048), "efConstruction": (1, 2**31 - 1), "nlist": (1, 65_536), "m": (1, 32_768), "nbits": (1, 64),
          "ef": (1, 2**31 - 1), "nprobe": (1, 65_536), "search_list": (1, 65_535), "reorder_k": (1, 2**31 - 1)}
# Parameters of any of these types beside those. Milvus Lite says nothing of a name that it does not know.
OTHERS = ("sq_type", "refine", "refine_type", "refine_k", "nrq", "rbq_query_bits", "rbq_bits_query", "with_raw_data",
          "max_empty_result_buckets", "search_list_size", "max_degree", "pq_code_budget_gb_ratio",
          "search_cache_budget_gb_ratio", "beam_width_ratio", "intermediate_graph_degree", "graph_degree", "build_algo",
          "cache_dataset_on_device", "adapt_for_cpu", "itopk_size", "search_width", "min_iterations", "max_iterations",
          "team_size", "level")
PARAMETER = re.compile(r"[A-Za-z_][\w.]*=\S+")


def parameters(given: tuple[str, ...]) -> dict[str, int | float | bool | str]:
    """`("M=16", "refine=true")` -> `{"M": 16, "refine": True}`."""
    found: dict[str, int | float | bool | str] = {}
    for name, _, text in (one.partition("=") for one in given):
        value: int | float | bool | str = {"true": True, "false": False}.get(text.lower(), text)
        for kind in (int, float):
            if isinstance(value, str):
                with contextlib.suppress(ValueError):
                    value = kind(text)
        found[name] = value
    return found


def is_server(uri: str) -> bool:
    """Whether this is the address of a server and not a local file of Milvus Lite."""
    return uri.startswith(("http://", "https://", "tcp://", "unix:"))


def push_command(uri: str, collection: str, embeddings="EMBEDDINGS") -> str:
    """What fills a collection from an embeddings file, as it is typed."""
    return shlex.join(["mocoembed", "push", str(embeddings), "--to", uri, "--collection", collection])


def _check(config, *names: str):
    """Raise `UsageError` for a name that Milvus does not take and for parameters that are none."""
    require(config, "collection", bool(NAME.fullmatch(config.collection)),
            "letters, digits and _, without a digit in front")
    if config.to is not None and not is_server(config.to):
        require(config, "to", config.to.endswith(".db") and "://" not in config.to,
                "a server's address (http://host:19530) or a local file whose name ends in .db")
    for name in names:
        for one in getattr(config, name):
            if not PARAMETER.fullmatch(one):
                raise UsageError(f"{option_name(name)} {one}: must be KEY=VALUE with a name of Milvus, such as "
                                 "M=16, nlist=1024, ef=128 or nprobe=32.")
            (key, value), = parameters((one,)).items()
            is_local = config.to is None or not is_server(config.to)
            if is_local and key not in RANGES and key not in OTHERS:
                near = difflib.get_close_matches(key, [*RANGES, *OTHERS], cutoff=0.4) or RANGES
                raise UsageError(f"{option_name(name)} {one}: Milvus Lite has no parameter {key}. Perhaps it is "
                                 f"{' or '.join(near)}.")
            least, most = RANGES.get(key, (0, 0))
            if most and not (type(value) is int and least <= value <= most):
                raise UsageError(f"{option_name(name)} {one}: {key} must be a whole number from {least} to {most}.")


@dataclass(frozen=True)
class PushConfig:
    """Everything that `mocoembed push` needs."""

    embeddings: tuple[str, ...] = ()
    """Embeddings files; by default, embeddings.h5 in the workspace."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder that holds the results of every command, where the next command finds them."""
    to: str | None = None
    """Milvus: address of a server (http://host:19530), or local file of Milvus Lite (NAME.db); by default, milvus.db in
    the workspace. A server's token is read from the environment variable MILVUS_TOKEN."""
    collection: str = DEFAULT_COLLECTION
    """Milvus collection; it is created if it does not exist."""
    index_type: str | None = None
    """Type of Milvus's index, such as FLAT, HNSW, IVF_FLAT, IVF_SQ8 or DISKANN; by default, that of the collection;
    for a new one FLAT in a local file, and AUTOINDEX on a server."""
    param: tuple[str, ...] = ()
    """Parameter for building Milvus's index, such as M=16, efConstruction=200 or nlist=1024. May be given again."""
    search_param: tuple[str, ...] = ()
    """Parameter for searching, such as ef=128 or nprobe=32: the recall is measured with it, and `search` uses it. May
    be given again."""
    fresh: bool = False
    """Delete the collection first if it exists."""
    timeout: float = 60.0
    """Timeout in seconds: how long one request may take."""

    def __post_init__(self):
        if self.index_type is not None:
            one_of(self, "index_type", INDEX_TYPES)
        _check(self, "param", "search_param")
        require(self, "timeout", 0 < self.timeout < math.inf, "more than 0")
        require(self, "param", not self.param or self.index_type is not None, "given together with --index-type")


@dataclass(frozen=True)
class MilvusConfig:
    """The Milvus collection that `mocoembed search` searches in place of an index."""

    to: str | None = None
    """Search a Milvus collection made by `mocoembed push`: address of the server, or local file of Milvus Lite."""
    collection: str = DEFAULT_COLLECTION
    """Milvus collection, with --to."""
    search_param: tuple[str, ...] = ()
    """Parameter of Milvus's index, with --to, such as ef=128 or nprobe=32; by default, as given to push. May be given
    again."""

    def __post_init__(self):
        _check(self, "search_param")
        if self.to is None and (self.search_param or self.collection != DEFAULT_COLLECTION):
            raise UsageError("--collection and --search-param belong to a Milvus collection. Name it with --to, for "
                             "example: --to http://host:19530")
