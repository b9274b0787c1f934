"""After meta-training under letters: can the model classify what it never saw, and does it still know what it knew?

    python benchmarks/afterwards.py RUN --base MODEL_DIR --induction DIR/instruction_induction [--reviews DIR/arsc]

RUN: of recipe `llm`, trained on intents. Elsewhere: five classes an episode, letters drawn for each, from sets that the
run never saw: which of 24 instructions an input goes with, which product an Amazon review is of (23 classes), and
whether a kitchen's review is good (two classes). Known before: multiple-choice questions that need no examples, made of
the instruction set's answers, asked by lm-evaluation-harness (`pip install 'distmeta[harness]'`). Writes
benchmarks/results/afterwards.json. No row of the data is kept.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from records import RESULTS

import distmeta
from distmeta.bench.measure import setting
from distmeta.config import load_config
from distmeta.evaluation.metrics import interval
from distmeta.runs.checkpoint import write_text

QUESTIONS = {  # of a task of the instruction set, whose answers of other rows are the wrong choices
    "antonyms": "The opposite of {} is",
    "synonyms": "A word that means nearly the same as {} is",
    "singular_to_plural": "The plural of {} is",
    "larger_animal": "The larger animal of {} is the",
    "num_to_verbal": "The number {} in words is",
    "translation_en-fr": "The French word for {} is",
    "translation_en-es": "The Spanish word for {} is",
    "sum": "The sum of the numbers {} is",
}


def table(texts: list[str], labels: list[str], out: Path) -> Path:
    """All classes are to test with. A table has to have some to train on: these are never drawn."""
    none = [f"class {i % 6}" for i in range(72)]
    splits = ["test"] * len(texts) + ["train"] * len(none)
    pq.write_table(pa.table({"text": [*texts, *none], "label": [*labels, *none], "split": splits}), out)
    return out


def sets(options: argparse.Namespace, place: Path) -> dict[str, tuple[Path, int]]:
    """Tables of texts and labels, and how many classes an episode of each has."""
    also = pq.read_table(options.induction / "data.parquet").to_pydict()
    out = {"instructions of inputs": (table(also["text"], also["task"], place / "instructions.parquet"), 5)}
    if options.reviews is None:
        return out
    of = pq.read_table(options.reviews / "data.parquet").to_pydict()
    kitchen = [i for i, task in enumerate(of["task"]) if (task, of["part"][i]) == ("kitchen_housewares.t4", "test")]
    texts, labels = ([of[column][i] for i in kitchen] for column in ("text", "label"))
    return out | {
        "products of reviews": (table(of["text"], of["domain"], place / "products.parquet"), 5),
        "good or bad": (table(texts, labels, place / "kitchen.parquet"), 2),
    }


def elsewhere(run: Path, base: str, data: Path, ways: int, shots: int, episodes: int) -> dict[str, Any]:
    """Accuracy of the run and of the base in the context of the same examples."""
    asked: dict[str, Any] = {"ways": ways, "shots": shots, "episodes": episodes}
    ours = distmeta.evaluate(run, str(data), **asked).methods["meta_trained"]["accuracy"]
    config = load_config("llm", [f"data.path={data}", f"model.pretrained={base}", f"task.ways={ways}"])
    plain = distmeta.evaluate(config, base=base, baselines=False, **asked).methods["base_in_context"]["accuracy"]
    return {"meta_trained": ours, "base": plain}


def questions(induction: Path, each: int) -> list[dict[str, Any]]:
    """Rows of four choices, drawn by a fixed seed."""
    of = pq.read_table(induction / "data.parquet").to_pydict()
    rng, out = random.Random(0), []
    for task, words in QUESTIONS.items():
        rows = [(text, answers) for text, answers, name in zip(of["text"], of["answers"], of["task"]) if name == task]
        for text, answers in rng.sample(rows, each):
            wrong = sorted({other[0] for _, other in rows} - set(answers))
            if task == "larger_animal":
                wrong = [name for name in text.split(", ") if name not in answers]
            choices = [answers[0], *rng.sample(wrong, min(3, len(wrong)))]
            rng.shuffle(choices)
            question = words.format(text.replace(", ", " and ") if task == "larger_animal" else text)
            out.append({"question": question, "choices": choices, "answer": choices.index(answers[0])})
    return out


def asked(model: Any, rows: list[dict[str, Any]], place: Path) -> np.ndarray:
    """Whether the likeliest choice is the right one, as the harness says, [rows]."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (place / "known.yaml").write_text(json.dumps({
        "task": "known", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(place / "rows.jsonl")}},
        "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }))  # fmt: skip
    tasks = TaskManager(include_path=str(place), include_defaults=False)
    found = lm_eval.simple_evaluate(model=model, tasks=["known"], task_manager=tasks, bootstrap_iters=0)
    samples = sorted(found["samples"]["known"], key=lambda one: one["doc_id"])
    return np.array([float(one["acc"]) for one in samples])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--base", required=True)
    parser.add_argument("--reviews", type=Path)
    parser.add_argument("--induction", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--questions", type=int, default=40, help="of each of the eight kinds")
    options = parser.parse_args()
    from distmeta.export.harness import harness_model

    torch.set_num_threads(1)
    out = RESULTS / "afterwards.json"
    record: dict[str, Any] = {**setting({"runs": [0]}), "episodes": options.episodes, "elsewhere": {}}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        rows = questions(options.induction, options.questions)
        ours, plain = (asked(harness_model(source), rows, place) for source in (options.run, options.base))
        record["known"] = {
            "questions": len(rows), "kinds": list(QUESTIONS), "meta_trained": interval(ours), "base": interval(plain),
            "meta_trained less base": interval(ours - plain, (-1.0, 1.0)),
        }  # fmt: skip
        print({name: record["known"][name]["mean"] for name in ("base", "meta_trained")}, flush=True)
        write_text(out, json.dumps(record, indent=1))
        for name, (data, ways) in sets(options, place).items():
            for shots in (1, 5):
                found = elsewhere(options.run, options.base, data, ways, shots, options.episodes)
                record["elsewhere"].setdefault(name, {"ways": ways})[str(shots)] = found
                print(name, shots, {of: round(score["mean"], 3) for of, score in found.items()}, flush=True)
                write_text(out, json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
