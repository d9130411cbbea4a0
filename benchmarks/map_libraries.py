"""Seconds, memory and faithfulness of a map: `mocoembed map` beside openTSNE, umap-learn and PaCMAP on their own.

    python -m benchmarks.map_libraries embeddings.h5 [mocoembed opentsne umap pacmap]

Each is run with its default settings in a process of its own, which counts the seconds of the clock and of the
processor, and the most memory it had. Trustworthiness (scikit-learn's, 10 neighbours) is that of a random sample of
4,000 images; the accuracy is that of the vote of the 10 nearest others among all images, on the map.
"""

import json
import resource
import subprocess
import sys
import time

import numpy as np

SAMPLE, NEIGHBOURS = 4_000, 10


def places_of(library: str, path: str) -> np.ndarray:
    """(N, 2): the map that a library makes of the vectors of a file."""
    from mocoembed.embed.store import EmbeddingFile

    if library == "mocoembed":
        from mocoembed.config import MapConfig
        from mocoembed.search.map import make_map
        from mocoembed.search.map_file import read_map

        return read_map(make_map(MapConfig(path, fresh=True)).path).places
    with EmbeddingFile(path) as file:
        vectors = file.embeddings[:]
    if library == "opentsne":
        from openTSNE import TSNE

        return np.asarray(TSNE(n_jobs=-1, random_state=0).fit(vectors))
    if library == "umap":
        from umap import UMAP

        return UMAP().fit_transform(vectors)
    from pacmap import PaCMAP

    return PaCMAP().fit_transform(vectors)


def measure(library: str, path: str) -> dict:
    """What one library needs and gives; to be called in a process of its own."""
    begun = time.perf_counter()
    places = np.asarray(places_of(library, path), np.float32)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found = {"seconds": time.perf_counter() - begun, "processor": usage.ru_utime + usage.ru_stime,
             "MB": usage.ru_maxrss / 1e3}
    return {**found, **faithfulness(places, path)}


def faithfulness(places: np.ndarray, path: str) -> dict:
    """Trustworthiness of a sample, and the accuracy of the neighbours' vote on the map."""
    from sklearn.manifold import trustworthiness
    from sklearn.neighbors import NearestNeighbors

    from mocoembed.embed.store import EmbeddingFile

    with EmbeddingFile(path) as file:
        rows = np.sort(np.random.default_rng(0).choice(len(file), min(SAMPLE, len(file)), replace=False))
        vectors, labels = file.embeddings[rows], file.labels()
    search = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(places)
    near = search.kneighbors(places[rows], return_distance=False)[:, 1:]
    votes = [np.bincount(labels[some] + 1).argmax() - 1 for some in near]
    return {"trustworthiness": trustworthiness(vectors, places[rows], n_neighbors=NEIGHBOURS),
            "accuracy": float((np.array(votes) == labels[rows]).mean())}


def main():
    """Print a line for each library."""
    path, *libraries = sys.argv[1:]
    for library in libraries or ["mocoembed", "opentsne", "umap", "pacmap"]:
        script = ("import json; from benchmarks.map_libraries import measure; "
                  f"print(json.dumps(measure({library!r}, {path!r})))")
        found = json.loads(subprocess.run([sys.executable, "-c", script], check=True, text=True,
                                          stdout=subprocess.PIPE).stdout.splitlines()[-1])
        print(f"{library:<10} {found['seconds']:6.0f} s  {found['processor']:6.0f} s of processor  "
              f"{found['MB']:6.0f} MB  trustworthiness {found['trustworthiness']:.3f}  "
              f"accuracy {100 * found['accuracy']:.1f} %", flush=True)


if __name__ == "__main__":
    main()
