"""How many steps' fast weights are kept where those of all would be too many: a tree of snapshots.

With K steps, w of them are kept on each of L levels, w^L >= K: on the way back the steps between two that are kept are
run again from the first of them, keeping w of their own, and so on. w L fast weights are held at once instead of K, and
a step is run at most L - 1 times more (Griewank 1992, doi 10.1080/10556789208805505, has the binomial optimum; a
uniform tree is within a few snapshots of it and needs no table).
"""

from __future__ import annotations

from .loop import InnerLoop


def width(inner: InnerLoop, steps: int, step_bytes: int) -> int:
    """How many steps are kept on a level, the fewest levels being chosen whose snapshots fit.

    step_bytes: of what is kept of a step. They fit in `inner.snapshots`, or, where that is 0, in `inner.budget_mb`;
    where no number of levels does, the one that holds the least is chosen. memory="unroll" keeps all.
    """
    if inner.memory == "unroll" or steps < 3:
        return max(1, steps)
    room = inner.snapshots or int(inner.budget_mb * 2**20 // max(1, step_bytes))
    trees: list[int] = []
    while not trees or trees[-1] > 2:
        trees.append(_root(steps, len(trees) + 1))
        if held(trees[-1], steps) <= room:
            return trees[-1]
    return min(trees, key=lambda w: held(w, steps))


def held(width: int, steps: int) -> int:
    """Snapshots that are held at once, at most."""
    return width * levels(width, steps)


def levels(width: int, steps: int) -> int:
    """How often a step is run forward."""
    count, reach = 1, width
    while reach < steps:
        count, reach = count + 1, reach * width
    return count


def _root(steps: int, degree: int) -> int:
    """The least w with w^degree >= steps."""
    w = max(1, round(steps ** (1 / degree)) - 1)
    while w**degree < steps:
        w += 1
    return int(w)
