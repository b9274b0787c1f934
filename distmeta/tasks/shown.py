"""What a model sees of an episode, as text: for eyes, in `distmeta config --show-prompt` and in a run's directory."""

from __future__ import annotations

from distmeta.config import Config
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.prompts import label_tokens, prompt_of
from distmeta.tasks.rows import Rows
from distmeta.tasks.store import TaskStore
from distmeta.tasks.tokenizer import load_tokenizer

FILE = "prompt.txt"  # in the run directory
ROWS = 3
ANSWER = "⇒"  # stands between what the model is given and what it is to say


def shown(store: TaskStore, config: Config) -> str:
    """The first examples of the first training episode, decoded: special tokens included, cut where the model's are.

    What the model is to say follows the sign ANSWER; where it reads its support set these examples are one context.
    """
    episode = sample_episode(store, config.task, config.run.seed, "train", 0)
    if config.model.dimensions is not None:
        return "\n".join(dict.fromkeys(store.text(int(row)) for row in episode.support.rows[:ROWS]))
    tokenizer = load_tokenizer(store.tokenizer_file)
    rows = [tokens_of(episode.support, i) for i in range(min(ROWS, len(episode.support.labels)))]

    def words(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False)

    if config.task.is_language:
        begins, found = episode.support.labels.tolist(), []
        heads, later = episode.support.heads, episode.support.later
        together = config.model.head == "context" and heads is not None
        for i, ids in enumerate(rows):
            asked, answer = ids[: begins[i]], ids[begins[i] :]
            if together and i and heads is not None and later is not None:
                asked = [*later.tolist(), *asked[heads[i] :]]
            found.append(f"{words(asked)}{ANSWER}{words(answer)}")
        return ("" if together else "\n").join(found)
    labels = episode.support.labels.tolist()
    if config.task.labels != "head":
        prompt, tokens = prompt_of(config.task.prompt, tokenizer), label_tokens(config, tokenizer)
        names = [words(list(name)) for name in tokens.of(episode.label_names)]
        each = (f"{words(ids)}{ANSWER}{names[label]}{prompt.after}" for ids, label in zip(rows, labels, strict=False))
        return words(list(tokens.start)) + "".join(each)
    return "\n".join(
        f"{words(ids)}{ANSWER} {episode.label_names[label]}" for ids, label in zip(rows, labels, strict=False)
    )


def tokens_of(rows: Rows, number: int) -> list[int]:
    """The tokens of one example."""
    return list(rows.tokens[rows.offsets[number] : rows.offsets[number + 1]].tolist())
