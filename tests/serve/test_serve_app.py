"""The service over ASGI, in this process: tasks, predictions, limits, refusals."""

import asyncio
import json
import os
import time

import pytest
import small
from serving import TEXTS, Server, ask, support

from distmeta.evaluation.adapt import adapt
from distmeta.serve.batches import Base
from distmeta.serve.metrics import forget_the_dead
from distmeta.serve.tasks import Refused, TaskStore
from distmeta.serve.worker import Worker

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def source(tmp_path_factory, words_csv):
    return small.checkpoint_of(tmp_path_factory.mktemp("run") / "step-000001", words_csv, inner={"adapt": "lora"})


@pytest.fixture(scope="module")
def base(source):
    return Base(source)


@pytest.fixture
def server(base, tmp_path):
    with Server(base, tmp_path / "tasks") as started:
        yield started


def test_a_task_predicts_what_adapt_predicts(server, source):
    answer = server.ask("POST", "/tasks", {"support": support(0)})
    own = adapt(source, support(0))
    assert answer.status == 201
    assert answer.json["labels"] == own.labels
    assert answer.json["support_loss"] == pytest.approx(own.inner_losses, abs=1e-5)
    handle = answer.json["task"]
    for one, expected in zip(server.predict(handle), own.predict(TEXTS), strict=True):
        assert one["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
        assert one["label"] == expected["label"]
    assert server.ask("GET", "/tasks").json == {"tasks": [handle]}
    assert server.ask("GET", f"/tasks/{handle}").json == answer.json
    assert server.ask("DELETE", f"/tasks/{handle}").status == 204
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/predict")):
        body = {"inputs": TEXTS} if method == "POST" else None
        assert server.ask(method, f"/tasks/{handle}{path}", body).status == 404
    assert server.ask("GET", "/tasks").json == {"tasks": []}


def test_the_same_support_set_is_adapted_to_once(server, monkeypatch):
    adapted = []
    adapt_to = server.service.base.adapt
    monkeypatch.setattr(server.service.base, "adapt", lambda several: adapted.extend(several) or adapt_to(several))

    async def many():
        return await asyncio.gather(*(ask(server.app, "POST", "/tasks", {"support": support(n % 2)}) for n in range(8)))

    answers = asyncio.run(many())
    assert {a.status for a in answers} == {201} and len({a.json["task"] for a in answers}) == 2
    assert server.ask("POST", "/tasks", {"support": support(0)}).status == 200
    assert len(adapted) == 2
    assert server.ask("POST", "/tasks", {"support": support(0), "steps": 1}).status == 201  # another task
    assert len(adapted) == 3


def test_different_tasks_at_once_are_one_batch_each_with_its_own_answer(base, tmp_path):
    with Server(base, tmp_path, wait_ms=500, batch_tasks=3) as server:
        handles = [server.add(support(n)) for n in range(6)]
        alone = [server.predict(handle) for handle in handles]

        async def many():
            return await asyncio.gather(
                *(ask(server.app, "POST", f"/tasks/{h}/predict", {"inputs": TEXTS}) for h in handles * 2)
            )

        found = asyncio.run(many())
        for answer, expected in zip(found, alone * 2, strict=True):
            for one, other in zip(answer.json["predictions"], expected, strict=True):
                assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
        text = server.ask("GET", "/metrics").body.decode()
        assert 'distmeta_batch_size_sum{kind="predict"} 18.0' in text
        assert 'distmeta_batch_size_count{kind="predict"} 7.0' in text  # six alone, then twelve as one


def test_evicted_tasks_are_read_again_and_a_new_server_has_them(base, tmp_path):
    with Server(base, tmp_path) as first:
        handles = [first.add(support(n)) for n in range(4)]
        expected = [first.predict(handle) for handle in handles]
        size = first.ask("GET", f"/tasks/{handles[0]}").json["bytes"]
    with Server(base, tmp_path, memory_mb=2.5 * size / 2**20) as second:  # two fit
        assert second.ask("GET", "/tasks").json["tasks"] == sorted(handles)
        for _ in range(2):
            assert [second.predict(handle) for handle in handles] == expected
            assert second.service.store.in_memory == (2, 2 * size)
            assert list(second.service.store._kept) == handles[2:]  # the one that was used longest ago goes
        second.predict(handles[2])
        second.predict(handles[0])
        assert list(second.service.store._kept) == [handles[2], handles[0]]
        assert second.ask("POST", "/tasks", {"support": support(1)}).status == 200  # known, not adapted to again
    with Server(base, tmp_path, memory_mb=0) as third:
        assert [third.predict(handle) for handle in handles] == expected
        assert third.service.store.in_memory == (0, 0)


def test_two_servers_may_share_a_directory(base, tmp_path):
    with Server(base, tmp_path) as one, Server(base, tmp_path) as two:
        handle = one.add(support(0))
        assert two.predict(handle) == one.predict(handle)
        assert two.ask("DELETE", f"/tasks/{handle}").status == 204
        assert one.ask("POST", f"/tasks/{handle}/predict", {"inputs": TEXTS}).status == 404


def test_a_task_of_another_checkpoint_is_refused(base, tmp_path, words_csv):
    other = Base(small.checkpoint_of(tmp_path / "step-000001", words_csv, run={"seed": 1}))
    with Server(other, tmp_path / "tasks") as one:
        handle = one.add(support(0))
    with Server(base, tmp_path / "tasks") as server:
        answer = server.ask("POST", f"/tasks/{handle}/predict", {"inputs": TEXTS})
        assert answer.status == 409 and base.checkpoint in answer.error and other.checkpoint in answer.error
        assert server.add(support(0)) != handle
        assert server.ask("DELETE", f"/tasks/{handle}").status == 204


@pytest.mark.parametrize("harm", ["truncated", "changed", "empty"])
def test_a_damaged_file_is_said_and_mended_by_its_support_set(harm, base, tmp_path):
    with Server(base, tmp_path) as server:
        handle = server.add(support(0))
        expected = server.predict(handle)
    file = tmp_path / f"{handle}.safetensors"
    whole = file.read_bytes()
    file.write_bytes({"truncated": whole[:-9], "changed": whole[:-1] + bytes([whole[-1] ^ 1]), "empty": b""}[harm])
    with Server(base, tmp_path) as server:
        answer = server.ask("POST", f"/tasks/{handle}/predict", {"inputs": TEXTS})
        assert answer.status == 500 and "damaged" in answer.error
        assert server.add(support(0)) == handle and server.predict(handle) == expected
    assert file.read_bytes() == whole  # the same support set gives the same bytes
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", file.name]


ROW = {"text": "red", "label": "yes"}
BAD = {
    "not JSON": (b"{", 400, "not JSON"),
    "no number": (b'{"support": NaN}', 400, "not JSON"),
    "deep": (b"[" * 100_000, 400, "not JSON"),
    "not text": (b"\xff\xfe", 400, "not JSON"),
    "a list": ([], 400, "give an object"),
    "nothing": ({}, 400, "support is missing"),
    "unknown key": ({"suport": []}, 400, "Did you mean 'support'"),
    "no rows": ({"support": []}, 400, "something in it"),
    "no dictionary": ({"support": ["red"]}, 400, "example 0"),
    "no label": ({"support": [{"text": "red"}]}, 400, "no 'label'"),
    "deep row": (b'{"support": [{"text": ' + b"[" * 900 + b"]" * 900 + b"}]}", 400, "a list of 1"),
    "empty text": ({"support": [{**ROW, "text": " "}]}, 400, "not a text"),
    "number": ({"support": [{**ROW, "text": 3}]}, 400, "not a text"),
    "true": ({"support": [{**ROW, "label": True}]}, 400, "not a text"),
    "half": (b'{"support": [{"text": "\\ud800", "label": "yes"}]}', 400, "surrogate"),
    "more columns": ({"support": [{**ROW, "path": "x"}]}, 400, 'has "path"'),
    "one label": ({"support": [ROW]}, 400, "one label only"),
    "unknown label": ({"support": [ROW, {"text": "red", "label": "perhaps"}]}, 400, "perhaps"),
    "steps": ({"support": support(0), "steps": 10**9}, 400, "serve.steps"),
    "no steps": ({"support": support(0), "steps": True}, 400, "steps is true"),
    "rows": ({"support": [ROW] * 9}, 413, "serve.rows"),
    "characters": ({"support": [{**ROW, "text": "red " * 20}]}, 413, "serve.characters"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_support_sets(case, base, tmp_path):
    body, status, words = BAD[case]
    with Server(base, tmp_path, rows=8, characters=60) as server:
        answer = server.ask("POST", "/tasks", body)
        assert answer.status == status and words in answer.error
        assert server.ask("GET", "/tasks").json == {"tasks": []}
        assert server.ask("GET", "/health").json["status"] == "ok"


def test_bad_inputs(base, tmp_path):
    with Server(base, tmp_path, inputs=3, characters=60) as server:
        path = f"/tasks/{server.add(support(0))}/predict"
        for body, status in (
            ({"inputs": ["red"] * 4}, 413), ({"inputs": ["r" * 61]}, 413), ({"inputs": "red"}, 400),
            ({"inputs": [""]}, 400), ({"inputs": [None]}, 400), ({"inputs": []}, 400), ({"input": ["red"]}, 400),
        ):  # fmt: skip
            answer = server.ask("POST", path, body)
            assert answer.status == status and answer.error


def test_no_more_of_a_long_body_is_read_than_may_be(base, tmp_path):
    with Server(base, tmp_path, body_mb=0.01) as server:
        announced = server.ask("POST", "/tasks", b" " * 20_000)
        streamed = server.ask("POST", "/tasks", chunks=[b" " * 4000] * 100)
        for answer, read in ((announced, 0), (streamed, 12_000)):
            assert answer.status == 413 and "serve.body_mb" in answer.error
            assert answer.headers["x-read"] == str(read) and answer.headers["connection"] == "close"
        lying = server.ask("POST", "/tasks", chunks=[b" " * 4000] * 100, headers={"content-length": "1"})
        assert lying.status == 413


def test_a_slow_client_ends_in_time_and_blocks_nobody(base, tmp_path):
    with Server(base, tmp_path, seconds=1.5) as server:
        handle = server.add(support(0))

        async def both():
            slow = asyncio.create_task(ask(server.app, "POST", "/tasks", chunks=[b" "] * 100, pause_s=0.1))
            await asyncio.sleep(0.1)
            began = time.monotonic()
            quick = await ask(server.app, "POST", f"/tasks/{handle}/predict", {"inputs": TEXTS})
            waited = time.monotonic() - began
            return await slow, quick, waited

        slow, quick, waited = asyncio.run(both())
        assert slow.status == 504 and "serve.seconds" in slow.error
        assert quick.status == 200 and waited < 1.5


def test_a_busy_model_refuses_and_times_out(base, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "predict", lambda several: time.sleep(1.0) or [[] for _ in several])
    with Server(base, tmp_path, seconds=0.4, waiting=2, batch_tasks=1, wait_ms=0) as server:
        handle = server.add(support(0))

        async def many():
            return await asyncio.gather(
                *(ask(server.app, "POST", f"/tasks/{handle}/predict", {"inputs": TEXTS}) for _ in range(12))
            )

        found = [answer.status for answer in asyncio.run(many())]
        assert set(found) == {503, 504}
        assert server.ask("GET", "/health").status == 200


def test_a_worker_ends_after_what_waits():
    done = []

    def work(items):
        time.sleep(0.05)
        done.extend(items)
        return items

    worker = Worker({"work": work}, most=2, wait_s=0.01, waiting=4)
    for item in range(3):
        worker.submit("work", item)
    worker.close()
    assert done == [0, 1, 2] and not worker.alive
    with pytest.raises(Refused, match="4 requests wait already"):
        for item in range(9):
            worker.submit("work", item)


def test_work_that_fails_together_is_done_one_by_one():
    def work(items):
        if "bad" in items:
            raise ValueError("bad")
        return items

    worker = Worker({"work": work}, most=3, wait_s=0.5, waiting=9)
    good, bad, other = (worker.submit("work", item) for item in ("good", "bad", "other"))
    assert good.result(5) == "good" and other.result(5) == "other" and str(bad.exception(5)) == "bad"
    worker.close()


def test_the_number_of_tasks_is_limited(base, tmp_path):
    with Server(base, tmp_path, tasks=2) as server:
        handles = [server.add(support(n)) for n in range(2)]
        answer = server.ask("POST", "/tasks", {"support": support(2)})
        assert answer.status == 507 and "2" in answer.error
        assert server.add(support(1)) == handles[1]  # is there already
        assert server.ask("DELETE", f"/tasks/{handles[0]}").status == 204
        server.add(support(2))


def test_a_token_is_asked_for(base, tmp_path):
    with Server(base, tmp_path, token=TOKEN) as server:
        for given in (
            None,
            "Bearer",
            f"Bearer {TOKEN}x",
            f"Basic {TOKEN}",
            TOKEN,
            "Bearer \xff",
            f"Bearer {TOKEN[:-1]}",
        ):
            headers = {} if given is None else {"authorization": given}
            for where in ("GET /tasks", "POST /tasks", "GET /metrics", f"DELETE /tasks/{'a' * 32}"):
                method, path = where.split()
                answer = server.ask(method, path, {"support": support(0)}, headers=headers)
                assert answer.status == 401 and TOKEN not in answer.error and answer.headers["x-read"] == "0"
        good = {"authorization": f"Bearer {TOKEN}"}
        assert server.ask("POST", "/tasks", {"support": support(0)}, headers=good).status == 201
        assert server.ask("GET", "/health").status == 200  # of a load balancer


HOSTILE = ["../../etc/passwd", "..", ".", "%2e%2e%2fsecret", "a" * 31, "a" * 33, "A" * 32, "a" * 32 + "\n", "0" * 5000,
           "a" * 30 + "/.", ".lock", "*", "secret"]  # fmt: skip


@pytest.mark.parametrize("handle", HOSTILE)
def test_hostile_handles(handle, server, tmp_path):
    secret = tmp_path / "secret.safetensors"
    secret.write_text("secret")
    for method, tail in (("GET", ""), ("DELETE", ""), ("POST", "/predict")):
        answer = server.ask(method, f"/tasks/{handle}{tail}", {"inputs": TEXTS} if tail else None)
        assert answer.status in (404, 405, 307) and b"secret" not in answer.body.replace(handle.encode(), b"")
    assert secret.read_text() == "secret"
    with pytest.raises(Refused, match="no task"):
        server.service.store.delete(handle)


def test_unknown_paths_and_methods_are_one_line_too(server):
    assert server.ask("GET", "/nothing").status == 404 and server.ask("GET", "/nothing").error
    assert server.ask("PUT", "/tasks").status == 405 and server.ask("PUT", "/tasks").error


def test_metrics_count(server):
    handle = server.add(support(0))
    server.predict(handle)
    server.ask("GET", f"/tasks/{'a' * 32}")
    lines = server.ask("GET", "/metrics").body.decode().splitlines()
    size = server.ask("GET", f"/tasks/{handle}").json["bytes"]
    for line in (
        'distmeta_requests_total{endpoint="add",status="201"} 1.0',
        'distmeta_requests_total{endpoint="show",status="404"} 1.0',
        'distmeta_errors_total{status="404"} 1.0',
        'distmeta_request_seconds_count{endpoint="predict"} 1.0',
        'distmeta_batch_size_count{kind="adapt"} 1.0',
        "distmeta_tasks_in_memory 1.0",
        f"distmeta_tasks_memory_bytes {float(size)}",
        "distmeta_tasks_on_disk 1",
    ):
        assert line in lines


def test_gauges_of_dead_replicas_are_forgotten(tmp_path):
    for pid in (os.getpid(), 2**22 + 1):
        (tmp_path / f"gauge_livesum_{pid}.db").touch()
    forget_the_dead(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [f"gauge_livesum_{os.getpid()}.db"]


def test_listing_goes_on_where_it_ended(server, monkeypatch):
    monkeypatch.setattr("distmeta.serve.app.LISTED", 2)
    handles = sorted(server.add(support(n)) for n in range(3))
    first = server.ask("GET", "/tasks").json
    assert first["tasks"] == handles[:2]
    assert server.ask("GET", first["more"]).json == {"tasks": handles[2:]}


def test_a_crash_in_the_middle_of_writing_leaves_no_task(base, tmp_path, monkeypatch):
    def fails(*words):
        raise OSError("disk full")

    with Server(base, tmp_path) as server:
        monkeypatch.setattr(os, "replace", fails)
        assert server.ask("POST", "/tasks", {"support": support(0)}).status == 507
        monkeypatch.undo()
        store = TaskStore(tmp_path, base.checkpoint, 1e6, 9, base.device)
        assert store.list() == [] and [file.name for file in tmp_path.iterdir()] == [".lock"]
        server.add(support(0))


def test_json_of_answers_is_json(server):
    handle = server.add([{"text": "red ☂", "label": "yes"}, {"text": "blue", "label": "no"}])
    assert json.loads(json.dumps(server.predict(handle, ["☂ 😀"])))[0]["label"] in ("yes", "no")


def test_a_document_is_followed(tmp_path):
    """More of a text gives another task, which is what reading all of it at once gives."""
    source = small.checkpoint_of(
        tmp_path / "step-000001", None, architecture="gpt2", model={"max_tokens": 11}, outer={"base": "freeze"},
        task={"family": "document", "chunks": 4, "chunk_tokens": 6, "context_tokens": 5, "shots": 5, "queries": 10},
        inner={"steps": 3, "lr": 0.3, "adapt": "mlp"},
    )  # fmt: skip
    lines = ["anna kesu lends vo .\n", "boris milo owes vo .\n", "anna kesu lends vo .\n", "anna kesu lends vo .\n"]
    with Server(Base(source), tmp_path / "tasks") as server:
        first = server.ask("POST", "/tasks", {"support": [{"text": "".join(lines[:2])}]}).json
        more = server.ask("POST", f"/tasks/{first['task']}/more", {"support": [{"text": "".join(lines[2:])}]})
        again = server.ask("POST", f"/tasks/{first['task']}/more", {"support": [{"text": "".join(lines[2:])}]})
        assert (more.status, again.status) == (201, 200)
        assert more.json == again.json
        assert more.json["task"] != first["task"]
        whole = adapt(source, [{"text": "".join(lines)}])
        assert more.json["steps"] == len(whole.inner_losses)
        assert more.json["support_loss"] == pytest.approx(whole.inner_losses, abs=1e-5)
        scores = server.ask("POST", f"/tasks/{more.json['task']}/predict", {"inputs": ["anna kesu"]}).json
        assert scores["predictions"] == whole.predict(["anna kesu"])
        body = {"model": more.json["task"], "prompt": "anna kesu", "max_tokens": 3, "temperature": 0}
        said = server.ask("POST", "/v1/completions", body)
        assert said.status == 200
        assert said.json["choices"][0]["text"].split() == whole.continue_text("anna kesu", 3).split()
        bad = {"support": [{"text": "x", "label": "y"}]}
        assert server.ask("POST", "/tasks", bad).status == 400
        assert server.ask("POST", "/tasks", {"support": [{"text": "x"}], "steps": 2}).status == 400


def test_a_task_rejects_as_predict_or_reject_does(server, source):
    from distmeta import predict_or_reject

    rows = [{**row, "text": f"{row['text']} {word}"} for word in ("thing", "one") for row in support(0)]
    handle = server.ask("POST", "/tasks", {"support": rows}).json["task"]
    expected = predict_or_reject(adapt(source, rows), TEXTS, 0.5)
    for _ in range(2):  # the second time from memory
        answer = server.ask("POST", f"/tasks/{handle}/predict", {"inputs": TEXTS, "reject": 0.5})
        assert answer.status == 200, answer.body
        said = [(one["label"], one["typicality"]) for one in answer.json["predictions"]]
        assert said == [(one["label"], one["typicality"]) for one in expected]
    for rate, reason in ((0.001, "give a higher rate"), (True, "reject is true"), (2, "give a share")):
        answer = server.ask("POST", f"/tasks/{handle}/predict", {"inputs": TEXTS, "reject": rate})
        assert (answer.status, reason in answer.error) == (400, True), answer.body


def test_a_task_without_class_means_is_not_refined(server):
    handle = server.ask("POST", "/tasks", {"support": support(0)}).json["task"]
    for more, reason in (
        ({"refine": 2}, "refine moves class means"), ({"refine": -1}, "refine is -1"), ({"refine": True}, "refine is"),
        ({"refine": 2, "reject": 0.5}, "leave one of them out"),
    ):  # fmt: skip
        answer = server.ask("POST", f"/tasks/{handle}/predict", {"inputs": TEXTS, **more})
        assert (answer.status, reason in answer.error) == (400, True), answer.body


def test_more_is_for_documents_alone(server):
    handle = server.ask("POST", "/tasks", {"support": support(0)}).json["task"]
    answer = server.ask("POST", f"/tasks/{handle}/more", {"support": support(1)})
    assert answer.status == 400
    assert "more is for a document" in answer.error


def test_a_task_explains_as_explain_does(server, source, tmp_path):
    from distmeta.evaluation.influence import explain

    handle = server.ask("POST", "/tasks", {"support": support(0)}).json["task"]
    answer = server.ask("POST", f"/tasks/{handle}/explain", {"inputs": TEXTS[:2]})
    assert answer.status == 200, answer.body
    own = adapt(source, support(0))
    for one, expected in zip(answer.json["explanations"], explain(own, TEXTS[:2]), strict=True):
        assert one["prediction"]["label"] == expected["prediction"]["label"]
        influences = {each["row"]: each["influence"] for each in one["influences"]}
        assert influences == pytest.approx({e["row"]: e["influence"] for e in expected["influences"]}, abs=1e-4)
    assert server.predict(handle)  # as before
