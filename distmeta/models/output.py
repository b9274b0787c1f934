"""The loss of an output layer over a vocabulary, whose scores take more memory than the layers below it.

Letters: T tasks, n rows of a task, M tokens of the longest answer, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distmeta.models.recompute import recompute

NO_TOKEN = -100  # in the place of a target beyond an answer's end
SCORES = 1 << 26, 1 << 22  # numbers that are held at once, on a GPU and on a CPU


def token_losses(
    score: Callable[..., Tensor], vocabulary: int, states: Tensor, answer: Tensor, values: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """Of each token of `answer` [T, n, M] after states [T, n, M, D]: its negative log-likelihood, 0 beyond an answer's
    end, and whether it is the likeliest.

    score(states, *values) -> [.., V]; values: what else of it is differentiated. Scores that are more than SCORES
    numbers are made a block of tokens after the other, and again for each derivative (distmeta.models.recompute).
    """
    flat, targets = states.flatten(1, 2), answer.flatten(1)
    tokens, most = targets.shape[1], SCORES[states.device.type == "cpu"] // (len(answer) * vocabulary)
    step = tokens if tokens <= most else max(1, most)
    losses, hits = [], []
    for i in range(0, tokens, step):
        target = targets[:, i : i + step]

        def run(block: Tensor, *values: Tensor, target: Tensor = target) -> tuple[Tensor, Tensor]:
            scores = score(block.unsqueeze(2), *values).squeeze(2)
            loss = F.cross_entropy(scores.flatten(0, 1), target.flatten(), reduction="none", ignore_index=NO_TOKEN)
            return loss.view(target.shape), scores.argmax(-1) == target

        inputs = flat[:, i : i + step], *values
        loss, hit = run(*inputs) if step == tokens else recompute(run, *inputs)
        losses.append(loss)
        hits.append(hit)
    return torch.cat(losses, 1).view(answer.shape), torch.cat(hits, 1).view(answer.shape)
