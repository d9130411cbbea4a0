"""mocoembed: pretrain image encoders with Momentum Contrast, and put them to work.

    images -> decode -> two random crops -> [device] flip, jitter, grey, blur, normalise -> x_q, x_k
    x_q -> encoder_q -> q          x_k -> shuffle -> encoder_k -> unshuffle -> k
    (q, k, queue, T) -> InfoNCE -> backward on encoder_q -> step; encoder_k <- m encoder_k + (1 - m) encoder_q
    checkpoint -> encoder.safetensors (frozen query encoder, preprocessing and provenance inside)
    images x encoder -> embeddings.h5 -> embeddings.faiss -> hits (rank, score, path, label)
    embeddings.h5 x labels -> kNN accuracy

Every command is a function of its config: `mocoembed.knn_accuracy(mocoembed.KnnConfig(bank="embeddings.h5"))`.
Importing this module loads no torch, faiss or h5py; the functions are imported when they are first used.
"""

import importlib

from mocoembed.version import __version__

# public name -> the module that has it
_HOMES = {
    "PretrainConfig": "config", "ExportConfig": "config", "EmbedConfig": "config", "IndexConfig": "config",
    "SearchConfig": "config", "KnnConfig": "config", "InfoConfig": "config",
    "ConvertConfig": "config", "DuplicatesConfig": "config",
    "MocoembedError": "errors",
    "pretrain": "train.loop", "export_encoder": "train.export", "embed_images": "embed.extract",
    "load_encoder": "embed.in_memory",
    "EmbeddingFile": "embed.store", "build_index": "search.build", "search_images": "search.query",
    "Searcher": "search.query", "Filter": "search.filters", "iterate_search": "search.query",
    "knn_accuracy": "evaluate.knn.accuracy",
    "RetrievalConfig": "config", "measure_retrieval": "evaluate.retrieval.measure",
    "LinearConfig": "config", "linear_accuracy": "evaluate.linear.accuracy",
    "ProbeConfig": "config", "probe_accuracy": "evaluate.images.probe",
    "RankmeConfig": "config", "measure_unlabelled": "evaluate.unlabelled",
    "FinetuneConfig": "config", "finetune": "evaluate.images.finetune",
    "ClassifyConfig": "config", "classify_images": "search.classify",
    "CompareConfig": "config", "compare_results": "evaluate.compare",
    "ReportConfig": "config", "make_report": "report.make",
    "describe": "info",
    "convert_embeddings": "embed.convert", "find_duplicates": "search.duplicates",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'mocoembed' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mocoembed.{_HOMES[name]}"), name)
