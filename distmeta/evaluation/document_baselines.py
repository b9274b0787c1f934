"""What a model that was meta-trained to learn while it reads has to beat, on the same passages.

no_adaptation           the initial model, which does not learn as it reads
naive                   the initial model with the same steps, at the rate that is best on validation documents
long_context            the initial model with everything read so far in its context, where that fits
meta_trained_no_steps   the meta-trained model, which does not learn as it reads
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from distmeta.evaluation.baselines import Row, Setting
from distmeta.evaluation.fine_tuning import candidates
from distmeta.evaluation.reading import can_read_whole, score_long_context
from distmeta.evaluation.scoring import WORST_LOSS

MORE_FACTORS = (0.03, 0.1, 10.0)  # of inner.lr, beside those of distmeta.evaluation.fine_tuning
TRIED_ON = 8  # episodes


def no_adaptation(s: Setting) -> Row | None:
    return s.score_all(s.untrained.without_steps, s.episodes), {}


def naive(s: Setting) -> Row | None:
    held = s.other_split
    loops = candidates(s.config, s.steps)
    of_recipe = next(loop for loop in loops if loop.lr == s.config.inner.lr)
    loops += [replace(of_recipe, lr=s.config.inner.lr * factor) for factor in MORE_FACTORS]
    losses: list[float] = []
    for loop in loops if held is not None else []:
        assert held is not None
        scored = s.score_all(replace(s.untrained, loop=loop), s.draw(held, 0, TRIED_ON))
        losses.append(float(np.mean([one.metrics()["loss"][0] for one in scored] or [WORST_LOSS])))
    loop = loops[int(np.argmin(losses))] if losses else of_recipe
    tried = [{"optimizer": one.optimizer, "lr": one.lr, "loss": loss} for one, loss in zip(loops, losses)]
    s.say(f"baseline naive: the initial model with {loop.steps} steps of {loop.optimizer} at lr {loop.lr:g}")
    about = {"optimizer": loop.optimizer, "lr": loop.lr, "steps": loop.steps, "tried": tried, "chosen_on": held}
    return s.score_all(replace(s.untrained, loop=loop), s.episodes), about


def long_context(s: Setting) -> Row | None:
    if not can_read_whole(s.scoring.model, s.config):
        return None
    s.say("baseline long_context: the initial model with all that it has read in its context")
    return s.gather(score_long_context(s.untrained, s.episodes, store=s.store)), {}


def meta_trained_no_steps(s: Setting) -> Row | None:
    return None if s.is_base else (s.score_all(s.scoring.without_steps, s.episodes), {})


BASELINES: dict[str, Callable[[Setting], Row | None]] = {
    "no_adaptation": no_adaptation,
    "naive": naive,
    "long_context": long_context,
    "meta_trained_no_steps": meta_trained_no_steps,
}
OF_BASE = {"no_adaptation": no_adaptation, "long_context": long_context}
