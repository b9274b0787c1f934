"""A source that grows while a run learns from it: files that come late change nothing but the clock."""

import csv
import json
import shutil
import threading
import time

import pytest
import small
import torch

from distmeta.config import TaskConfig, make_config
from distmeta.config.trees import merge
from distmeta.drive.collect import collecting
from distmeta.errors import InputError
from distmeta.learner.worker import learn
from distmeta.runs.checkpoint import resolve
from distmeta.tasks.build import build_store
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.store import open_store
from distmeta.tasks.stream import Stream, join
from distmeta.tasks.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def files(tmp_path_factory, words_csv):
    """Three files of whole tasks: six of the ten, then two each. The later ones say nothing of splits."""
    place = tmp_path_factory.mktemp("files")
    with words_csv.open() as file:
        rows = list(csv.DictReader(file))
    tasks = sorted({row["task"] for row in rows})
    for name, some in (("1.csv", tasks[:6]), ("2.csv", tasks[6:8]), ("3.csv", tasks[8:])):
        split = {task: ["train", "train", "validation", "train", "test", "test"][i] for i, task in enumerate(some)}
        write(place / name, [row | ({"split": split[row["task"]]} if name == "1.csv" else {}) for row in rows
                             if row["task"] in some])  # fmt: skip
    return place


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def settings(place, follow=2.0, **more):
    return small.config(
        place, algorithm="online", data={"path": str(place), "follow": follow}, task={"arrive_every": 6},
        outer={"steps": 40}, run={"checkpoint_every": 2}, eval={"episodes": 4, "baselines": False}, **more,
    )  # fmt: skip


def weights(run):
    return (resolve(run) / "meta.safetensors").read_bytes()


def follow(config, run, say=lambda line: None):
    """A run of one rank, without Ray, as the driver has it."""
    run.mkdir(exist_ok=True)
    store = build_store(config.data, config.task, config.model)
    with collecting(config, run, store, say) as stream:
        learn(config, run, store, [], 0, 1, torch.device("cpu"), stream=stream)


@pytest.fixture(scope="module")
def complete(files, one_rank, tmp_path_factory):
    """The run on a directory in which all files are from the beginning."""
    place = tmp_path_factory.mktemp("complete")
    follow(settings(files), place / "run")
    return place / "run"


def test_joined_stores_are_read_as_the_stores_they_are_of(files):
    config = settings(files)
    first = open_store(build_store(config.data, config.task, config.model))
    assert first.tasks == [f"task{i}" for i in range(6)]
    later = [
        open_store(build_store(config.data.model_copy(update={"path": str(files / name), "follow": None}), config.task,
                               config.model, tokenizer_file=first.tokenizer_file, labels=first.labels, only="train"))
        for name in ("2.csv", "3.csv")
    ]  # fmt: skip
    joined = join([first, *later])
    assert joined.rows == first.rows + sum(store.rows for store in later)
    assert [len(joined.groups[split].ids) for split in ("train", "validation", "test")] == [7, 1, 2]
    words = load_tokenizer(first.tokenizer_file)
    met = set()
    for i in range(200):
        episode = sample_episode(joined, config.task.model_copy(update={"arrive_every": 0}), 0, "train", i)
        met.add(episode.task)
        for part in (episode.support, episode.query):
            for j, row in enumerate(part.rows):
                tokens = part.tokens[part.offsets[j] : part.offsets[j + 1]]
                assert words.decode(tokens.tolist()) == words.decode(words.encode(joined.text(row)).ids)
                assert joined.labels[joined.label_ids[row]] == episode.label_names[part.labels[j]]
                assert joined.tasks[joined.task_ids[row]] == episode.task
    assert met == {joined.tasks[i] for i in joined.groups["train"].ids} and "task9" in met


def test_a_run_takes_the_tasks_in_the_order_of_files_and_ends_with_them(complete):
    records = small.records(complete)
    arrived = [task["task"] for record in records for task in record.get("arrivals", [])]
    assert arrived[3:] == ["task6", "task7", "task8", "task9"] and len(set(arrived)) == 7
    assert len(records) == 7 * 6 // 4  # every task's episodes, in whole meta-steps of four
    told = json.loads((complete / "evaluation_details.json").read_text())["arrivals"]
    assert told["tasks"] == arrived and len(told["cumulative_regret"]) == 7


def test_an_index_needs_the_same_files_whatever_has_come(complete):
    stream = Stream(complete / "stream.json", TaskConfig(arrive_every=6), 1.0)
    needs = [(0, 1), (17, 1), (18, 2), (29, 2), (30, 3), (41, 3)]
    assert [(i, len(stream.at(i).stores)) for i, _ in needs] == needs
    assert [(i, len(stream.at(i).stores)) for i, _ in reversed(needs)] == needs[::-1]  # all are open now


def test_files_that_come_late_change_nothing(files, complete, tmp_path, one_rank):
    place = tmp_path / "files"
    place.mkdir()
    shutil.copy(files / "1.csv", place)

    def later():
        until = time.monotonic() + 60
        for name, steps in (("2.csv", 2), ("3.csv", 6)):
            written = tmp_path / "run" / "metrics.jsonl"
            while not (written.exists() and len(small.records(written.parent)) >= steps) and time.monotonic() < until:
                time.sleep(0.05)
            with (place / name).open("w") as file:  # not at once: a file is taken when it is whole
                content = (files / name).read_text()
                file.write(content[:50])
                file.flush()
                time.sleep(0.3)
                file.write(content[50:])

    thread = threading.Thread(target=later)
    thread.start()
    follow(settings(place, follow=6.0), tmp_path / "run")
    thread.join()
    assert weights(tmp_path / "run") == weights(complete)
    assert small.records(tmp_path / "run") == small.records(complete)
    assert sum(r["source_s"] for r in map(json.loads, (tmp_path / "run" / "metrics.jsonl").open())) > 0.5  # it waited


def test_a_run_that_ended_goes_on_when_there_is_more(files, complete, tmp_path, one_rank):
    place = tmp_path / "files"
    place.mkdir()
    run = tmp_path / "run"
    for name, steps in (("1.csv", 4), ("2.csv", 7), ("3.csv", 10)):
        shutil.copy(files / name, place)
        follow(settings(place, follow=1.5), run)
        assert len(small.records(run)) == steps
    assert weights(run) == weights(complete)
    assert small.records(run) == small.records(complete)


FAMILIES = {
    "document": ({"model": {"max_tokens": 16}, "task": {"chunks": 2, "chunk_tokens": 4, "context_tokens": 4},
                  "inner": {"steps": 1}}, "gpt2"),
    "text_to_text": ({"task": {"shots": 2, "queries": 2}, "model": {"answer_tokens": 4}}, "gpt2"),
    "regression": ({"task": {"shots": 2, "queries": 2}, "model": {"dimensions": [1, 1], "max_tokens": 4}}, "mlp"),
}  # fmt: skip


def rows_of(family, task, rows=8):
    """Rows of a task of its own: one text, questions with their answers, or points of a line."""
    for i in range(rows):
        text = f"{small.PLENTY[task]} {small.PLENTY[(task + i) % 7]} thing"
        yield {
            "document": {"text": f"{text} is here"},
            "text_to_text": {"input": text, "target": small.PLENTY[task]},
            "regression": {"input": [float(i)], "target": [float(i * task)]},
        }[family] | {"task": f"task{task}"}


def write_tasks(file, family, tasks, splits=("train",), rows=8):
    chosen = {task: splits[i % len(splits)] for i, task in enumerate(tasks)}
    lines = [row | ({"split": chosen[task]} if len(splits) > 1 else {})
             for task in tasks for row in rows_of(family, task, rows)]  # fmt: skip
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_with_tasks_can_be_streamed(family, tmp_path, one_rank):
    """In pieces, each as its file comes, and undisturbed: the same bytes; no task is drawn before it is there."""
    files, growing, run = (tmp_path / name for name in ("files", "growing", "run"))
    files.mkdir()
    growing.mkdir()
    write_tasks(files / "1.jsonl", family, range(4), ("train", "validation", "train", "test"))
    write_tasks(files / "2.jsonl", family, [4, 5])
    write_tasks(files / "3.jsonl", family, [6])
    if family == "document":  # too short for a passage: it is never drawn, and no time passes for it
        short = "".join(json.dumps({"text": "a", "task": f"short{i}"}) + "\n" for i in range(2))
        (files / "2.jsonl").write_text(short + (files / "2.jsonl").read_text())
    sections, architecture = FAMILIES[family]

    def configured(path):
        return small.config(path, architecture, **merge({
            "algorithm": "maml", "data": {"follow": 0.6}, "task": {"family": family, "arrive_every": 4},
            "outer": {"steps": 9}, "run": {"checkpoint_every": 1}, "eval": {"episodes": 2, "baselines": False},
        }, sections))  # fmt: skip

    follow(configured(files), tmp_path / "whole")
    steps = []
    for name in ("1.jsonl", "2.jsonl", "3.jsonl"):
        shutil.copy(files / name, growing)
        follow(configured(growing), run)
        steps.append(len(small.records(run)))
    assert steps == [2, 4, 5]  # two tasks, two more, one more, four episodes apart, in meta-steps of four
    assert weights(run) == weights(tmp_path / "whole")
    assert small.records(run) == small.records(tmp_path / "whole")
    stream = Stream(run / "stream.json", configured(growing).task, 1.0)
    episodes = [sample_episode(stream.at(i), configured(growing).task, 0, "train", i) for i in range(60)]
    numbers = [int(episode.task[-1]) for episode in episodes]
    assert all(number <= [0, 2, 4, 5, 6][min(4, i // 4)] for i, number in enumerate(numbers))
    assert len(set(numbers)) == 5
    if family == "document":  # each passage is of its own document's words
        words = load_tokenizer(stream.at(0).tokenizer_file)
        for number, episode in zip(numbers, episodes, strict=True):
            text = " ".join(row["text"] for row in rows_of(family, number))
            assert words.decode(episode.query.tokens.tolist()) in text


def test_what_cannot_be_used_is_named_and_left_out(files, complete, tmp_path, one_rank):
    place = tmp_path / "files"
    shutil.copytree(files, place)
    with (files / "2.csv").open() as file:
        rows = list(csv.DictReader(file))
    write(place / "2again.csv", rows)
    write(place / "2labels.csv", [{**row, "task": "new", "label": "perhaps"} for row in rows])
    write(place / "2short.csv", [{**row, "task": "few"} for row in rows[:3]])
    write(place / "0.csv.new", rows)  # not a name of a data file
    (place / "2empty.csv").touch()
    lines = []

    def early(line):
        lines.append(line)
        if "2.csv" in line:
            write(place / "0.csv", [{**row, "task": "early"} for row in rows])

    config = settings(place, follow=3.0)
    follow(config, tmp_path / "run", early)
    state = json.loads((tmp_path / "run" / "stream.json").read_text())
    assert [name.rpartition("/")[2] for name in state["files"]] == ["1.csv", "2.csv", "3.csv"]
    left = {name.rpartition("/")[2]: reason for name, reason in state["left_out"].items()}
    assert "'task6' is in an earlier file" in left["2again.csv"] and "perhaps" in left["2labels.csv"]
    assert "class 'no'" in left["2short.csv"] or "class 'yes'" in left["2short.csv"]
    assert "comes before" in left["0.csv"] and set(left) == {"2again.csv", "2labels.csv", "2short.csv", "0.csv"}
    assert sum("is left out" in line for line in lines) == 4
    assert weights(tmp_path / "run") == weights(complete)


def test_a_source_whose_driver_is_gone_is_not_waited_for_without_end(files, tmp_path):
    config = settings(files)
    store = build_store(config.data, config.task, config.model)
    with collecting(config, tmp_path, store, lambda line: None) as stream:
        pass
    stream.timeout_s = 0.6
    with pytest.raises(TimeoutError, match="is the driver alive"):
        stream.wait(10_000)


def test_those_who_wait_are_told_of_a_source_that_is_gone(files, tmp_path):
    place = tmp_path / "files"
    shutil.copytree(files, place)
    config = settings(place)
    store = build_store(config.data, config.task, config.model)
    with collecting(config, tmp_path, store, lambda line: None) as stream:
        shutil.rmtree(place)
        with pytest.raises(InputError, match="data.follow: .*no such file or directory"):
            stream.wait(10_000)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"data": {"follow": 5.0}}, "data.path"),
        ({"data": {"follow": 5.0, "path": "some"}, "task": {"arrive_every": 0}}, "task.arrive_every"),
        ({"data": {"follow": 5.0, "path": "some"}, "sampling": {"actors": "auto"}}, "sampling.actors"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, says):
    with pytest.raises(InputError, match=says):
        make_config({"algorithm": "online", "task": {"arrive_every": 6}, **wrong})
