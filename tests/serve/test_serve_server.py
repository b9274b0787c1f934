"""`distmeta serve` as a process of its own: what it refuses before it starts, its answers, its end."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest
import small
from serving import TEXTS, support

from distmeta.errors import InputError
from distmeta.evaluation.adapt import adapt
from distmeta.serve import server
from distmeta.serve.server import check_port, default_directory, is_loopback, limits_of, read_token

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def source(tmp_path_factory, words_csv):
    return small.checkpoint_of(tmp_path_factory.mktemp("run") / "checkpoints" / "step-000001", words_csv)


def test_another_host_needs_a_token(tmp_path, monkeypatch):
    monkeypatch.delenv(server.TOKEN, raising=False)
    for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
        assert is_loopback(host) and read_token(None, host) is None
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.org"):
        with pytest.raises(InputError, match="give a token by --token-file or DISTMETA_TOKEN"):
            read_token(None, host)
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    assert read_token(file, "0.0.0.0") == read_token(file, "127.0.0.1") == TOKEN
    monkeypatch.setenv(server.TOKEN, TOKEN)
    assert read_token(None, "0.0.0.0") == read_token(None, "127.0.0.1") == TOKEN
    for bad in ("short", "a token of some length", "\u00e9" * 20, ""):
        file.write_text(bad)
        with pytest.raises(InputError, match="at least 16 printable ASCII"):
            read_token(file, "0.0.0.0")
    with pytest.raises(InputError, match="not readable"):
        read_token(tmp_path / "absent", "127.0.0.1")


def test_limits_come_from_the_checkpoint_and_the_command_line(source):
    assert limits_of(source, []).seconds == 60
    assert limits_of(source, ["serve.seconds=2.5", "serve.tasks=3"]).tasks == 3
    with pytest.raises(InputError, match="what can be given is serve.memory_mb"):
        limits_of(source, ["inner.lr=1"])
    with pytest.raises(InputError, match="Did you mean 'seconds'"):
        limits_of(source, ["serve.second=1"])
    with pytest.raises(InputError, match="serve.tasks = 0"):
        limits_of(source, ["serve.tasks=0"])


def test_what_a_checkpoint_names_is_not_imported(source, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.yaml").write_text(
        (source / "config.yaml").read_text().replace("algorithm: maml", "algorithm: nowhere.to_be_seen")
    )
    assert "nowhere.to_be_seen" in (tmp_path / "theirs" / "config.yaml").read_text()
    assert limits_of(tmp_path / "theirs", []).seconds == 60
    assert limits_of(tmp_path / "theirs", ["serve.seconds=2.5"]).seconds == 2.5


def test_tasks_are_beside_what_they_were_adapted_from(source, tmp_path):
    assert default_directory(source) == source.parent.parent / "tasks"
    assert default_directory(tmp_path / "small") == tmp_path / "small-tasks"


def test_a_port_in_use_is_refused(monkeypatch):
    monkeypatch.setattr(server, "PORT_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(InputError, match="give another"):
        check_port("127.0.0.1", other.getsockname()[1])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def request(port: int, method: str, path: str, body=None, token=None, timeout: float = 60):
    data = None if body is None else json.dumps(body).encode()
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def started(source, tmp_path, port: int, *words: str, timeout: float = 240) -> subprocess.Popen:
    log = (tmp_path / "log").open("a")
    environment = {**os.environ, server.TOKEN: TOKEN}
    command = [*small.CLI, "serve", str(source), "--port", str(port), *words]
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    until = time.monotonic() + timeout
    while f"http://127.0.0.1:{port}" not in (tmp_path / "log").read_text():
        assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
        time.sleep(0.1)
    return process


@pytest.mark.slow
def test_a_server_answers_and_ends(source, tmp_path):
    port = free_port()
    process = started(source, tmp_path, port, "serve.body_mb=0.01")
    try:
        assert request(port, "GET", "/tasks")[0] == 401
        status, body = request(port, "POST", "/tasks", {"support": support(0)}, TOKEN)
        assert status == 201
        handle = json.loads(body)["task"]
        status, body = request(port, "POST", f"/tasks/{handle}/predict", {"inputs": TEXTS}, TOKEN)
        expected = adapt(source, support(0)).predict(TEXTS)
        assert status == 200
        for one, own in zip(json.loads(body)["predictions"], expected, strict=True):
            assert one["probabilities"] == pytest.approx(own["probabilities"], abs=1e-5)
        said = {"model": handle, "messages": [{"role": "user", "content": TEXTS[0]}], "temperature": 0, "stream": True}
        status, body = request(port, "POST", "/v1/chat/completions", said, TOKEN)
        first, done, _ = body.decode().split("\n\n")
        assert status == 200 and done == "data: [DONE]"
        assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["content"] == expected[0]["label"]
        assert request(port, "GET", "/tasks/..%2f..%2fetc%2fpasswd", token=TOKEN)[0] == 404
        assert unannounced(port, 200_000) == 413
        with socket.create_connection(("127.0.0.1", port)) as silent:  # sends half of a request, and waits
            silent.sendall(b"POST /tasks HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
            assert request(port, "GET", f"/tasks/{handle}", token=TOKEN, timeout=20)[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=90) == 143
        (told,) = [line for line in (tmp_path / "log").read_text().splitlines() if "interrupted" in line]
        assert str(default_directory(source)) in told
        assert (default_directory(source) / f"{handle}.safetensors").is_file()
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
    finally:
        process.kill()


def unannounced(port: int, size: int) -> int:
    """The status of a body sent in chunks, without Content-Length."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as peer:
        head = f"POST /tasks HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ntransfer-encoding: chunked\r\n\r\n"
        try:
            peer.sendall(head.encode() + b"1000\r\n" + b" " * 4096 + b"\r\n")
            for _ in range(size // 4096):
                peer.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
        except OSError:
            pass  # the server has closed, having answered
        return int(peer.recv(4096).split()[1])


@pytest.mark.long
def test_a_killed_server_comes_back_with_its_tasks(source, tmp_path):
    """SIGKILL, and on the same port again; then with two replicas, whose numbers are counted together."""
    port = free_port()
    words = ("--tasks", str(tmp_path / "tasks"))
    process = started(source, tmp_path, port, *words)
    handle = json.loads(request(port, "POST", "/tasks", {"support": support(0)}, TOKEN)[1])["task"]
    expected = request(port, "POST", f"/tasks/{handle}/predict", {"inputs": TEXTS}, TOKEN)
    process.kill()
    process.wait(timeout=60)
    (tmp_path / "log").write_text("")
    process = started(source, tmp_path, port, *words, "--replicas", "2")
    try:
        for _ in range(20):
            assert request(port, "POST", f"/tasks/{handle}/predict", {"inputs": TEXTS}, TOKEN) == expected
        text = request(port, "GET", "/metrics", token=TOKEN)[1].decode()
        assert 'distmeta_requests_total{endpoint="predict",status="200"} 20.0' in text
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=90) == 130
    finally:
        process.kill()
