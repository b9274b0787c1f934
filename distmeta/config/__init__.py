"""The configuration of a run: its sections with their defaults, what does not go together, and how it is read."""

from distmeta.config.cluster import ClusterConfig
from distmeta.config.data import DataConfig, SourceConfig
from distmeta.config.eval import EvalConfig
from distmeta.config.inner import InnerConfig
from distmeta.config.loading import (
    RECIPES,
    ConfigSource,
    config_of,
    dump_config,
    load_config,
    make_config,
    recipe_names,
    recipe_path,
    with_changes,
)
from distmeta.config.parts import AugmentConfig, PrivacyConfig
from distmeta.config.sections import (
    Config,
    ModelConfig,
    OuterConfig,
    RunConfig,
    SamplingConfig,
)
from distmeta.config.task import TaskConfig
from distmeta.config.verbs import PretrainConfig, ServeConfig, TuneConfig

__all__ = [
    "RECIPES",
    "AugmentConfig",
    "ClusterConfig",
    "Config",
    "ConfigSource",
    "DataConfig",
    "EvalConfig",
    "InnerConfig",
    "ModelConfig",
    "OuterConfig",
    "PretrainConfig",
    "PrivacyConfig",
    "RunConfig",
    "SamplingConfig",
    "ServeConfig",
    "SourceConfig",
    "TaskConfig",
    "TuneConfig",
    "config_of",
    "dump_config",
    "load_config",
    "make_config",
    "recipe_names",
    "recipe_path",
    "with_changes",
]
