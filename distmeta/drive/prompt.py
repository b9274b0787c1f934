"""task.prompt=auto: the choice is made once, before anything else of a run, which has it in its configuration."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distmeta.config import Config, with_changes
from distmeta.errors import InputError, cut
from distmeta.runs import checkpoint as checkpoints
from distmeta.runs.directory import newest_of

FILE = "prompt.json"  # in the run directory: what was measured
TIMEOUT_S = 600.0


def with_prompt(
    config: Config, prepare: Callable[[Config], Path], resume: bool = False, say: Callable[[str], None] = print
) -> tuple[Config, dict[str, Any]]:
    """`config` with plain or chat in the place of auto, and how it was chosen; {} where nothing was.

    prepare: the task store of a configuration. The model is run in a process of its own, whose memory ends with it. A
    run that is continued keeps what was chosen. Raises InputError.
    """
    if config.task.prompt != "auto":
        return config, {}
    base = Path(config.cluster.storage or ".") / (config.run.dir or f"runs/{config.run.name}")
    before = newest_of(base, numbered=config.run.dir is None) if resume else None
    if before is not None:
        return chosen(config, checkpoints.read_config(before / "config.yaml").task.prompt), {}
    choice = measured(chosen(config, "plain"), prepare, say)
    say(f"task.prompt: {sentence(choice)}")
    return chosen(config, choice["chosen"]), choice


def chosen(config: Config, style: str) -> Config:
    return with_changes(config, "task", prompt=style)


def measured(plain: Config, prepare: Callable[[Config], Path], say: Callable[[str], None]) -> dict[str, Any]:
    """{"chosen": ..., and the scores of both styles, or "reason": why there was nothing to choose}."""
    from distmeta.evaluation.prompts import EPISODES, better
    from distmeta.tasks.families import check_feasible
    from distmeta.tasks.prompts import check_chat
    from distmeta.tasks.store import open_store

    try:
        check_chat(chosen(plain, "chat"))
    except InputError as error:
        return {"chosen": "plain", "reason": str(error).removeprefix("task.prompt = chat: ")}
    path = prepare(plain)
    store = open_store(path)
    if len(store.groups["validation"].ids) == 0:
        return {"chosen": "plain", "reason": "there are no meta-validation tasks to choose by"}
    check_feasible(store, plain.of_evaluation().task, ["validation"])
    say("task.prompt = auto: the untrained model reads some validation tasks, in plain and in chat")
    words = [sys.executable, "-m", "distmeta.evaluation.prompts", str(path)]
    content = json.dumps(plain.model_dump(mode="json"))
    try:
        done = subprocess.run(words, input=content, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        stderr = (error.stderr or b"") if isinstance(error.stderr, str | bytes) else b""
        lines = (stderr.decode() if isinstance(stderr, bytes) else stderr).strip().splitlines()
        why = cut(lines[-1].removeprefix("distmeta.errors.InputError: "), 300) if lines else str(error)
        raise InputError(f"task.prompt = auto cannot be chosen ({why}); set task.prompt=plain or chat") from None
    scores = json.loads(done.stdout.splitlines()[-1])
    return {"chosen": better(scores), "scores": scores, "split": "validation", "episodes": EPISODES}


def sentence(choice: dict[str, Any]) -> str:
    """What was chosen, and why, for a person."""
    if "reason" in choice:
        return f"{choice['chosen']}, since {choice['reason']}"
    name = "accuracy" if "accuracy" in choice["scores"]["plain"] else "token_f1"
    scores = ", ".join(f"{style} {of[name]:.3f}" for style, of in choice["scores"].items())
    return f"{choice['chosen']} ({name} of the untrained model in context: {scores}, {choice['episodes']} episodes)"
