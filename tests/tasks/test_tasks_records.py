"""Text-to-text data: every layout gives the same records, a bad row is one line, tokens are prompt and answer."""

import json

import pytest
import small
from tokenizers import Tokenizer

from distmeta.errors import InputError
from distmeta.tasks.build import build_store
from distmeta.tasks.counts import Counts
from distmeta.tasks.episodes.episode import sample_episode
from distmeta.tasks.records import Encoder, Record, parse
from distmeta.tasks.store import open_store
from distmeta.tasks.tokenizer import train_tokenizer

TASKS = {
    f"task{t}": [Record(f"say {word}{i}", (f"{word}{i} it is", f"{word}{i}"), instruction=f"repeat {t}")
                 for i, word in enumerate("abcdefgh")]
    for t in range(5)
}  # fmt: skip


def configured(path, **data):
    return small.config(
        path, "gpt2", task={"family": "text_to_text", "shots": 2, "queries": 3},
        model={"max_tokens": 40, "answer_tokens": 12, "tokenizer": data.pop("tokenizer", "word")}, data=data,
    )  # fmt: skip


def store_of(path, **data):
    config = configured(path, **data)
    return open_store(build_store(config.data, config.task, config.model)), config


def in_table(folder):
    path = folder / "all.jsonl"
    rows = [
        {"input": r.input, "target": list(r.answers), "instruction": r.instruction, "task": task}
        for task, records in TASKS.items() for r in records
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    return path, {}


def in_natural_instructions(folder):
    for task, records in TASKS.items():
        instances = [{"id": str(i), "input": r.input, "output": list(r.answers)} for i, r in enumerate(records)]
        content = {"Definition": [records[0].instruction], "Instances": instances}
        (folder / f"{task}.json").write_text(json.dumps(content))
    return folder, {"layout": "natural_instructions"}


def in_crossfit(folder):
    for task, records in TASKS.items():
        for split, part in (("train", records[:4]), ("dev", records[4:6]), ("test", records[6:])):
            lines = [f"{r.input}\t{r.answers[0]}" for r in part]
            (folder / f"{task}_16_100_{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder, {"layout": "crossfit"}


def test_crossfit_lines_end_at_line_feeds_alone(tmp_path):
    lines = [f"in{i} a\x0cb\u2028c\tout{i}" for i in range(40)]
    for split in ("train", "test"):
        content = "\ufeff" + "\r\n\r\n".join(f"{line} {split}" for line in lines)
        (tmp_path / f"task-{split}_16_100_{split}.tsv").write_bytes(content.encode())
    store, _ = store_of(tmp_path, layout="crossfit")
    assert store.rows == 80 and parse(store.text(0)).input.endswith("a\x0cb\u2028c")
    (tmp_path / "latin_16_100_train.tsv").write_bytes(b"caf\xe9\ta\n")
    with pytest.raises(InputError, match="line 1: not UTF-8"):
        store_of(tmp_path, layout="crossfit")


def in_metaicl(folder):
    path = folder / "all.jsonl"
    rows = [
        {"task": task, "input": r.input, "output": r.answers[0], "options": []}
        for task, records in TASKS.items() for r in records
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    return path, {"layout": "metaicl"}


@pytest.mark.parametrize("write", [in_table, in_natural_instructions, in_crossfit, in_metaicl])
def test_every_layout_gives_the_same_tasks(write, tmp_path):
    path, data = write(tmp_path)
    store, _ = store_of(path, **data)
    assert store.tasks == list(TASKS) and store.rows == 40
    found = {task: set() for task in TASKS}
    for row in range(store.rows):
        found[store.tasks[store.task_ids[row]]].add(parse(store.text(row)))
    whole = write in (in_table, in_natural_instructions)
    for task, records in TASKS.items():
        expected = {r if whole else Record(r.input, r.answers[:1]) for r in records}
        assert found[task] == expected


@pytest.mark.parametrize("level", ["word", "bpe"])
def test_a_row_is_its_prompt_and_then_its_first_answer(level, tmp_path):
    path, data = in_table(tmp_path)
    store, config = store_of(path, tokenizer=level, **data)
    tokenizer = Tokenizer.from_file(str(store.tokenizer_file))
    episode = sample_episode(store, config.task, 0, "train", 0)
    for i, row in enumerate(episode.support.rows):
        tokens = store.tokens[store.offsets[row] : store.offsets[row + 1]].tolist()
        begin = int(episode.support.labels[i])
        record = parse(store.text(row))
        assert tokens[-1] == store.end_id
        assert tokenizer.decode(tokens[begin:-1]).strip() == record.answers[0]
        if level == "bpe":
            assert tokenizer.decode(tokens[:begin]).startswith(record.prompt()[:8])


def test_options_and_instructions_that_only_later_rows_have_are_read(tmp_path):
    path = tmp_path / "late.jsonl"
    plain = [{"task": task, "input": f"q {i}", "target": "yes"} for task in "abc" for i in range(5)]
    late = [{**row, "task": "d", "options": ["yes", "no"], "instruction": "say yes or no"} for row in plain[:5]]
    for rows in (plain + late, late + plain):
        path.write_text("\n".join(map(json.dumps, rows)))
        store, _ = store_of(path)
        found = {(r.options, r.instruction) for r in (parse(store.text(i)) for i in range(store.rows))}
        assert found == {((), ""), (("yes", "no"), "say yes or no")}


def test_instructions_can_be_left_out(tmp_path):
    path, data = in_table(tmp_path)
    config = configured(path, **data)
    bare = config.task.model_copy(update={"instructions": False})
    told, untold = (open_store(build_store(config.data, task, config.model)) for task in (config.task, bare))
    assert untold.key != told.key and untold.offsets[-1] < told.offsets[-1]


def test_a_long_prompt_is_cut_and_its_boundary_and_answer_kept():
    config = small.config(architecture="gpt2", model={"max_tokens": 16, "answer_tokens": 4})
    for level in ("word", "bpe"):
        encoder = Encoder(train_tokenizer(["a b c d e"] * 3, level, 300), config.model)
        short, long = encoder.prompts(["a b", " ".join("abcde" * 40)])
        assert len(long) == 12 and long[-1] == short[-1] and short[-1] not in short[:-1]
        counts = Counts()
        cut, whole = encoder.answers(["e d c b a e d c", "e d"], counts)
        assert len(cut) == 4 and encoder.end not in cut  # a model is not taught to end there
        assert whole[-1] == encoder.end and counts.cut_answers == 1


def test_an_answer_that_fills_its_room_without_its_end_is_cut():
    for tokens, is_cut in ((2, True), (3, False)):
        config = small.config(architecture="gpt2", model={"max_tokens": 16, "answer_tokens": tokens})
        counts = Counts()
        (answer,) = Encoder(train_tokenizer(["a b c"] * 3, "word", 300), config.model).answers(["a b"], counts)
        assert 0 < len(answer) <= tokens and bool(counts.cut_answers) is is_cut


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"input": "a", "target": "b\ud83d", "task": "t"}, r"line 2: the example has half of a surrogate pair"),
        ({"input": "a", "target": "b", "options": ["b", "\ud83d"], "task": "t"}, r"line 2: the example has half"),
        ({"input": "a", "target": [], "task": "t"}, r"line 2: 'target' \(data.target\) is empty"),
        ({"input": "a", "target": " ", "task": "t"}, r"line 2: 'target' \(data.target\) is empty"),
        ({"input": "", "target": "b", "task": "t"}, r"line 2: 'input' \(data.input\) is empty"),
        ({"input": "a", "target": {"b": 1}, "task": "t"}, r"line 2: 'target' \(data.target\) is .*; it must hold text"),
        ({"input": 3, "target": "b", "task": "t"}, r"line 2: 'input' \(data.input\) is 3; it must hold text"),
        (
            {"input": "a", "target": "maybe", "options": ["yes", "no"], "task": "t"},
            r"line 2: 'target' \(data.target\) is \"maybe\", which is none of the options",
        ),
        ({"input": "a", "task": "t"}, r"line 2: no 'target' \(data.target\)"),
        ({"input": "a", "target": "b", "task": ""}, r"line 2: column 'task' \(data.task\) is empty"),
    ],
)
def test_a_bad_row_is_one_line(row, says, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in [{"input": "a", "target": "b", "task": "t"}, row]))
    with pytest.raises(InputError, match=says):
        store_of(path)


def test_files_that_are_not_of_the_layout_are_one_line(tmp_path):
    (tmp_path / "a.json").write_text('{"Definition": "x"}')
    with pytest.raises(InputError, match=r"a.json: no task of Natural Instructions; it needs Definition and Instances"):
        store_of(tmp_path, layout="natural_instructions")
    (tmp_path / "b_train.tsv").write_text("no tab here\n")
    with pytest.raises(InputError, match=r"b_train.tsv line 1: no tab between input and answer"):
        store_of(tmp_path / "b_train.tsv", layout="crossfit")
    (tmp_path / "c.csv").write_text("input,answer,task\na,b,t\n")
    with pytest.raises(InputError, match=r"no column 'target' \(data.target\)"):
        store_of(tmp_path / "c.csv")


def test_the_built_in_questions_ask_for_every_part_in_every_split():
    config = small.config(architecture="gpt2", task={"family": "text_to_text"}, model={"answer_tokens": 4})
    store = open_store(build_store(config.data, config.task, config.model))
    parts = {"person", "city", "number", "colour", "thing", "day"}
    names = {split: [store.tasks[i] for i in groups.ids] for split, groups in store.groups.items()}
    assert sum(map(len, names.values())) == len({n for found in names.values() for n in found}) == 36
    for found in names.values():
        assert {part for name in found for part in name.split()} == parts
    for row in range(0, store.rows, 97):
        record = parse(store.text(row))
        assert all(word in record.input.split() for word in record.answers[0].split())


def test_a_long_prompt_loses_its_middle_and_a_prompt_of_no_token_is_refused():
    words = train_tokenizer(["a b c d e"] * 3, "word", 300)
    config = small.config(architecture="gpt2", model={"max_tokens": 8, "answer_tokens": 4})
    encoder = Encoder(words, config.model)
    counts = Counts()
    assert words.decode(encoder.prompts(["a b c d e", "d"], counts)[0]) == "a e"
    assert (counts.rows, counts.cut) == (2, 1)
    with pytest.raises(InputError, match="no token for the prompt; raise model.max_tokens"):
        Encoder(words, config.model.model_copy(update={"max_tokens": 6}))
