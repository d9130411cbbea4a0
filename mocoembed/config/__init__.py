"""One frozen dataclass per command.

The docstring under a field is the help text of the option of the same name; its default is written here alone.
Values are checked when a config is made: a wrong one raises `UsageError` naming the option, the value and what
is allowed.
"""

from mocoembed.config.classify import ClassifyConfig
from mocoembed.config.commands import (
    ConvertConfig,
    DemoConfig,
    DuplicatesConfig,
    EmbedConfig,
    ExportConfig,
    InfoConfig,
    SearchConfig,
)
from mocoembed.config.compare import CompareConfig
from mocoembed.config.finetune import FinetuneConfig
from mocoembed.config.index import IndexConfig
from mocoembed.config.knn import KnnConfig
from mocoembed.config.linear import LinearConfig
from mocoembed.config.map import MapConfig
from mocoembed.config.pretrain import PretrainConfig
from mocoembed.config.probe import ProbeConfig
from mocoembed.config.push import MilvusConfig, PushConfig
from mocoembed.config.rankme import RankmeConfig
from mocoembed.config.report import ReportConfig
from mocoembed.config.retrieval import RetrievalConfig
from mocoembed.config.serve import ServeConfig

__all__ = ["ClassifyConfig", "CompareConfig", "ConvertConfig", "DemoConfig", "DuplicatesConfig", "EmbedConfig",
           "ExportConfig", "FinetuneConfig", "IndexConfig", "InfoConfig", "KnnConfig", "LinearConfig", "MapConfig",
           "MilvusConfig", "PretrainConfig", "ProbeConfig", "PushConfig", "RankmeConfig", "ReportConfig",
           "RetrievalConfig",
           "SearchConfig", "ServeConfig"]
