"""The code of a language model's card writes a prompt as task.prompt does, and answers as `predict`."""

import json
import re

import pytest
import small

from distmeta.evaluation.adapt import adapt
from distmeta.export.export import export

SUPPORT = [{"input": "hot hot", "target": "red", "instruction": "Say it."},
           {"input": "a cold thing", "target": "blue", "instruction": "Say it."}]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    small.decoder(folder / "m")
    rows = [{"input": f"{word} thing", "target": word, "task": f"t{t}"} for t in range(6) for word in small.PLENTY]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize("style", ["bare", "plain", "chat"])
@pytest.mark.parametrize("algorithm", ["in_context", "fomaml"])
def test_the_code_answers_as_predict(algorithm, style, folder, tmp_path, monkeypatch):
    source = small.checkpoint_of(
        tmp_path / "step-000001", folder / "rows.jsonl", algorithm=algorithm,
        task={"family": "text_to_text", "shots": 2, "queries": 2, "prompt": style}, outer={"base": "freeze"},
        inner={"adapt": "lora", "steps": int(algorithm == "fomaml"), "lr": 0.5},
        model={"pretrained": str(folder / "m"), "max_tokens": 70, "answer_tokens": 8},
    )  # fmt: skip
    adapted = adapt(source, SUPPORT)
    adapted.save(tmp_path / "adapted")
    export(tmp_path / "adapted", tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    space: dict = {}
    exec(re.search(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.S)[1], space)
    asked = ("Say it.\na hot thing",) if style == "bare" else ("a hot thing", "Say it.")
    given = asked[:1] if algorithm == "in_context" else asked
    assert space["answer"](*given) == adapted.predict(["a hot thing"])[0]["text"]
