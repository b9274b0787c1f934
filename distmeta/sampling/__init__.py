"""From tasks to episodes: the pure episode function, collation, the sampler actor and the ordered window."""

from distmeta.sampling.collate import collate
from distmeta.sampling.episode import Episode, Rows, sample_episode
from distmeta.sampling.sampler import Sampler, start_samplers
from distmeta.sampling.window import EpisodeWindow, SamplerTimeout

__all__ = [
    "Episode",
    "EpisodeWindow",
    "Rows",
    "Sampler",
    "SamplerTimeout",
    "collate",
    "sample_episode",
    "start_samplers",
]
