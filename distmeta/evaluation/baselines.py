"""The baselines that a meta-learner has to beat, on the same episodes as the meta-trained model.

    no_adaptation    the meta-trained model before the first inner step; one that reads its support set: without it
    in_context       the meta-trained decoder reads the support set, and nothing is adapted
    base_zero_shot   the pretrained model as it is, from the prompt alone
    base_in_context  the pretrained model as it is reads the support set
    fine_tuned       the untrained weights, adapted by settings chosen on other tasks (evaluation.fine_tuning)
    multi_task       likewise, from weights trained on the pooled meta-train tasks for as many steps as the run has
    prototypes       nearest class mean of the untrained features

A row that does not apply, or that would be another one again, is left out; so is an answer without the support set by
letters that the episode draws, which would be chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from distmeta.config import Config
from distmeta.errors import InputError
from distmeta.evaluation.fine_tuning import best_way, effort_of
from distmeta.evaluation.pooled import train_pooled
from distmeta.evaluation.reading import score_documents
from distmeta.evaluation.regression import score_regression
from distmeta.evaluation.scoring import Scoring, score_episodes, score_prototypes
from distmeta.evaluation.texts import can_read, score_texts
from distmeta.models.language import LanguageModel
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.families import check_feasible
from distmeta.tasks.rows import Episode

if TYPE_CHECKING:
    from distmeta.tasks.store import TaskStore

Gather = Callable[[list[Any]], list[Any]]
Params = Mapping[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """What the methods of an evaluation have in common.

    scoring: of the main method, whose result on all ranks' episodes is `scored`; is_base: whether that is the
    untrained model. episodes: this rank's, of `split`. in_training: the configuration, whose episodes may be others.
    score: in the place of `score_episodes`, by ranks that all see the whole of an episode.
    """

    scoring: Scoring
    episodes: list[Episode]
    store: TaskStore
    split: str
    in_training: Config
    rank: int
    world: int
    gather: Gather
    score: Callable[..., list[Any]] | None
    say: Callable[[str], None]
    scored: Sequence[Any] = ()
    is_base: bool = False

    @property
    def config(self) -> Config:
        return self.scoring.config

    @property
    def steps(self) -> int:
        return self.scoring.loop.steps

    @property
    def untrained(self) -> Scoring:
        return replace(self.scoring, fast=self.scoring.model.fast, shared=self.scoring.model.shared)

    @property
    def text(self) -> bool:
        return self.config.task.family == "text_to_text"

    @property
    def reads_documents(self) -> bool:
        return self.config.task.family == "document"

    @property
    def says_labels(self) -> bool:
        """Whether a language model says the class of a text, by a letter or in words."""
        return self.config.task.labels != "head"

    @property
    def knows(self) -> bool:
        """Whether the model could answer without the support set, by the words of the task."""
        return self.text or "words" in (self.config.task.labels, self.config.model.head)

    @property
    def reads(self) -> bool:
        """Whether the language model reads the support set, whatever it adapts."""
        return (self.text or self.says_labels) and self.config.model.head == "context"

    @property
    def is_pretrained(self) -> bool:
        """Whether there is a pretrained model that is another than the main method's."""
        return self.config.model.pretrained is not None and (self.is_base or self.config.algorithm != "fine_tune")

    @property
    def other_split(self) -> str | None:
        """Where choices are made; None: data that was given to `evaluate` may have no other tasks."""
        return next((x for x in ("validation", "train") if x != self.split and self.can_draw(x, self.config)), None)

    def score_all(self, scoring: Scoring, episodes: Sequence[Episode], curve: bool = False, **how: Any) -> list[Any]:
        """Scores on all ranks' episodes. how: of `score_texts`, or in_context of `score_episodes`."""
        if self.reads_documents:
            return self.gather(score_documents(scoring, episodes, curve, store=self.store))
        if self.text:
            return self.gather(score_texts(scoring, episodes, curve, store=self.store, **how))
        if self.config.task.has_numbers:
            return self.gather(score_regression(scoring, episodes, curve))
        if self.score is not None:
            return self.gather(self.score(scoring, episodes, curve))
        return self.gather(score_episodes(scoring, episodes, curve, **how))

    def draw(self, split: str, first: int, count: int) -> list[Episode]:
        """This rank's share of a split's episodes first..first + count."""
        places = range(first + self.rank * count // self.world, first + (self.rank + 1) * count // self.world)
        return [sample_episode(self.store, self.config.task, self.config.run.seed, split, i) for i in places]

    def can_draw(self, split: str, config: Config) -> bool:
        """Whether a split has tasks, with the examples that episodes of `config` need."""
        try:
            check_feasible(self.store, config.task, [split])
        except InputError:
            return False
        return len(self.store.groups[split].ids) > 0


Row = tuple[Sequence[Any], dict[str, Any]]  # scores on all ranks' episodes, and what there is to say of the method


def no_adaptation(s: Setting) -> Row | None:
    if s.knows and s.is_base:
        return None  # base_zero_shot
    if s.knows and s.reads:
        return zero_shot(s, s.scoring), {}
    return ([one.at_start() for one in s.scored], {}) if s.steps else None


def in_context(s: Setting) -> Row | None:
    if s.is_base or s.reads or not could_read(s):
        return None
    s.say("in context: the meta-trained model reads the support set, and nothing is adapted")
    return read(s, s.scoring), {}


def base_zero_shot(s: Setting) -> Row | None:
    if not (s.knows and s.is_pretrained) or main_of(s) == "base_zero_shot":
        return None
    if s.is_base and not s.reads:
        return [one.at_start() for one in s.scored], {}
    s.say("baseline base_zero_shot: the model as it was pretrained, from the prompt alone")
    return zero_shot(s, s.untrained), {}


def base_in_context(s: Setting) -> Row | None:
    if not (s.is_pretrained and could_read(s)) or main_of(s) == "base_in_context":
        return None
    s.say("baseline base_in_context: the model as it was pretrained reads the support set")
    return read(s, s.untrained), {}


def fine_tuned(s: Setting) -> Row | None:
    if s.says_labels and not s.config.inner.steps:
        return None
    return adapted(s, "fine_tuned", s.scoring.model.fast, s.scoring.model.shared, 1)


def multi_task(s: Setting) -> Row | None:
    if s.is_base or s.score is not None or (s.says_labels and not s.config.inner.steps):
        return None
    if s.config.model.head == "words":  # pooled labels would teach the text tower nothing
        return None
    if not s.can_draw("train", s.in_training):
        return None
    s.say(f"baseline multi_task: {s.config.outer.steps} steps on pooled tasks")
    model = s.scoring.model
    with model.reading(False) if isinstance(model, LanguageModel) and s.text else nullcontext():
        weights = train_pooled(model, s.store, s.in_training, s.scoring.device)
    return adapted(s, "multi_task", *weights, least=0)


def prototypes(s: Setting) -> Row | None:
    if s.scoring.model.reads_sets:  # a row has no features of its own
        return None
    if s.score is not None or not s.config.task.has_classes or s.says_labels or main_of(s) == "prototypes":
        return None
    s.say("baseline prototypes")
    return s.gather(score_prototypes(s.untrained, s.episodes)), {}


OF_BASE = {"no_adaptation": no_adaptation, "base_zero_shot": base_zero_shot, "base_in_context": base_in_context}
BASELINES: dict[str, Callable[[Setting], Row | None]] = {
    "no_adaptation": no_adaptation,
    "in_context": in_context,
    "base_zero_shot": base_zero_shot,
    "base_in_context": base_in_context,
    "fine_tuned": fine_tuned,
    "multi_task": multi_task,
    "prototypes": prototypes,
}


def main_of(s: Setting) -> str:
    """The name of the main method: meta_trained, or of the untrained model what its inner loop makes of it."""
    if not s.is_base:
        return "meta_trained"
    if s.steps:
        return "base_adapted"
    if s.reads:
        return "base_in_context"
    if s.knows:
        return "base_zero_shot"
    return "prototypes" if s.scoring.model.prototype_head else "no_adaptation"


def adapted(s: Setting, name: str, fast: Params, shared: Params, least: int) -> Row:
    """Adapt from other initial weights in the way that is best on tasks which are not those scored."""
    scoring = replace(s.scoring, fast=dict(fast), shared=dict(shared))
    split = s.other_split
    effort = effort_of(s.in_training, s.steps)

    def curve_of(scoring: Scoring, first: int, count: int) -> list[Any]:
        assert split is not None
        how = {"in_context": False, "words": False} if s.text else {}
        return s.score_all(scoring, s.draw(split, first, count), True, **how)

    loop, about = best_way(scoring, effort, least, curve_of if split else None)
    on = f" (chosen on {about['episodes']} {split} episodes)" if split else ""
    s.say(f"baseline {name}: {loop.steps} steps of {loop.optimizer} at lr {loop.lr:g}{on}")
    how = {"in_context": False} if s.text else {}
    return s.score_all(replace(scoring, loop=loop), s.episodes, **how), about | {"chosen_on": split}


def zero_shot(s: Setting, scoring: Scoring) -> list[Any]:
    return s.score_all(scoring.without_steps, s.episodes, in_context=False)


def read(s: Setting, scoring: Scoring) -> list[Any]:
    """The language model reads the support set, and nothing is adapted."""
    model = scoring.model
    assert isinstance(model, LanguageModel)
    with model.reading():
        return s.score_all(scoring.without_steps, s.episodes, in_context=True)


def could_read(s: Setting) -> bool:
    """Whether there is a language model, with room for a support set before a question."""
    model = s.scoring.model
    return (s.text or s.says_labels) and isinstance(model, LanguageModel) and (s.reads or can_read(model, s.config))
