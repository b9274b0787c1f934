"""From tasks to episodes: the pure episode function, collation, the sampler actor and the ordered window."""

from distmeta.tasks.episodes.collate import collate
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.episodes.sampler import Sampler, start_samplers
from distmeta.tasks.episodes.window import EpisodeWindow, SamplerTimeout
from distmeta.tasks.rows import Episode, Rows

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
