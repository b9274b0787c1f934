"""OpenAI's routes, asked by its own Python client over HTTP: what a task says, as it is said, and what is refused."""

import concurrent.futures
import contextlib
import json
import math
import re
import time
from pathlib import Path

import openai
import pytest
import serving
import small
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from distmeta.evaluation.adapt import adapt
from distmeta.models.generate import sampler
from distmeta.serve import answers
from distmeta.serve.answers import Settings, label_answers
from distmeta.serve.batches import Base
from distmeta.serve.pieces import Growing

TOKEN = "a-token-of-some-length"
SUPPORT = [{"input": "hot hot", "target": "red", "instruction": "Say it."},
           {"input": "a cold thing", "target": "blue", "instruction": "Say it."}]  # fmt: skip
ASK = [{"role": "user", "content": "a hot thing"}]
KINDS = {
    "gradients": {"inner": {"adapt": "all", "lr": 0.05}},
    "in_context": {"algorithm": "in_context", "inner": {"adapt": "lora", "steps": 0}},
    "chat_in_context": {"algorithm": "in_context", "inner": {"adapt": "lora", "steps": 0},
                        "task": {"family": "text_to_text", "prompt": "chat"}},
    "encoder_decoder": {"architecture": "t5", "inner": {"adapt": "all", "lr": 1.0, "steps": 5}},
    "letters": {"algorithm": "in_context", "inner": {"adapt": "lora", "steps": 0},
                "task": {"labels": "letters"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A checkpoint of a kind, made once."""
    folder, made = tmp_path_factory.mktemp("sources"), {}
    (folder / "data.jsonl").write_text("\n".join(json.dumps({"task": f"t{t}", "input": f"{word} thing", "target": word})
                                                 for t in range(6) for word in small.PLENTY))  # fmt: skip
    small.decoder(folder / "model")

    def source(kind):
        if kind not in made:
            words = dict(KINDS[kind])
            data, task = folder / "data.jsonl", words.pop("task", {"family": "text_to_text"})
            if "labels" in task:
                data = small.write_domains(folder / "words.csv")
            model = {} if "architecture" in words else {"pretrained": str(folder / "model"), "max_tokens": 60}
            made[kind] = small.checkpoint_of(
                folder / kind / "step-000001", data, task=task, model={"answer_tokens": 8, **model}, **words
            )
        return made[kind]

    source.pretrained = folder / "model"
    return source


@pytest.fixture(scope="module")
def base(sources):
    return Base(sources("gradients"))


@contextlib.contextmanager
def asked(base, folder, **limits):
    """A client of a service, and a task's handle."""
    with serving.Server(base, folder / "tasks", token=TOKEN, **limits) as server, serving.listening(server.app) as at:
        rows = serving.support(0) if base.config.task.family != "text_to_text" else SUPPORT
        (task,) = base.adapt([base.asked(rows)])
        server.service.store.put(task)
        with openai.OpenAI(base_url=f"{at}/v1", api_key=TOKEN, max_retries=0, timeout=60) as client:
            client.server = server.service
            yield client, task.handle


@pytest.fixture(scope="module")
def client(base, tmp_path_factory):
    with asked(base, tmp_path_factory.mktemp("client")) as found:
        yield found


def streamed(events):
    """The text of a stream, and the reason of its end; for each choice."""
    texts, ends = {}, {}
    for event in events:
        for choice in event.choices:
            said = choice.text if hasattr(choice, "text") else choice.delta.content or ""
            texts[choice.index] = texts.get(choice.index, "") + said
            ends[choice.index] = choice.finish_reason
    return texts, ends


@pytest.mark.parametrize("kind", ["gradients", "chat_in_context", "encoder_decoder"])
def test_greedy_answers_are_those_of_predict(kind, sources, tmp_path):
    inputs = ["a hot thing", "cold", "so round and flat a thing"]
    with asked(Base(sources(kind)), tmp_path) as (client, handle):
        expected = [one["text"] for one in adapt(sources(kind), SUPPORT).predict(inputs)]
        given = {"model": handle, "prompt": inputs, "temperature": 0, "max_tokens": 8}
        whole = client.completions.create(**given)
        texts, ends = streamed(client.completions.create(**given, stream=True))
    assert [choice.text.strip() for choice in whole.choices] == expected and any(expected)
    assert [choice.text for choice in whole.choices] == [texts[i] for i in range(3)]
    assert [choice.finish_reason for choice in whole.choices] == [ends[i] for i in range(3)]
    assert set(ends.values()) <= {"stop", "length"} and whole.model == handle


def test_turns_go_on_where_a_support_set_in_the_models_template_ends(sources):
    base = Base(sources("chat_in_context"))
    (task,) = base.adapt([base.asked(SUPPORT)])
    turns = [*ASK, {"role": "assistant", "content": "red"}, {"role": "user", "content": "cold"}]
    stock = AutoTokenizer.from_pretrained(sources.pretrained)
    support = [{"role": role, "content": row[name]} for row in SUPPORT
               for role, name in (("user", "input"), ("assistant", "target"))]  # fmt: skip
    support[0]["content"] = "Say it.\n\nhot hot"
    whole = stock.apply_chat_template(support + turns, add_generation_prompt=True, return_dict=False)
    before = int(task.params["context_kept"].sum())
    assert answers.Language(base).prompt(task, turns) == whole[before:]
    alone = stock.apply_chat_template([*support, *ASK], add_generation_prompt=True, return_dict=False)
    assert answers.Language(base).prompt(task, "a hot thing") == alone[before:]


def in_transformers(base, handle, store, pretrained):
    """transformers' own model with the weights of a task that adapts all of them."""
    whole = AutoModelForCausalLM.from_pretrained(pretrained)
    params = {**base.start.shared, **store.get(handle).params}
    weights = {f"model.{name.removeprefix('backbone.')}": value for name, value in params.items() if "backbone" in name}
    missing, unknown = whole.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"] and not unknown
    whole.lm_head.weight.data = params["output_weight"].clone()
    return whole


def test_a_chat_is_the_models_own_template_and_its_logprobs_are_transformers(base, client, sources):
    client, handle = client
    turns = [*ASK, {"role": "assistant", "content": "red"}, {"role": "user", "content": "cold 日本"}]
    said = client.chat.completions.create(
        model=handle, messages=turns, temperature=0, max_completion_tokens=6, logprobs=True, top_logprobs=3
    )
    stock = AutoTokenizer.from_pretrained(sources.pretrained)
    turns = [{**turns[0], "content": "Say it.\na hot thing"}, *turns[1:]]  # the task's instruction, before the first
    ids = stock.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    whole = in_transformers(base, handle, client.server.store, sources.pretrained)
    expected = whole.generate(
        torch.tensor([ids]), max_new_tokens=6, do_sample=False, eos_token_id=[1, 2], pad_token_id=1, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    scored = said.choices[0].logprobs.content
    assert said.usage.prompt_tokens == len(ids) and len(scored) > 1
    answer = expected.sequences[0, len(ids) :].tolist()
    assert said.choices[0].message.content == stock.decode(answer, skip_special_tokens=True)
    for token, logits, one in zip(answer, expected.logits, scored, strict=False):
        values = logits[0].log_softmax(-1)
        assert one.logprob == pytest.approx(values[token].item(), abs=1e-5)
        assert [of.logprob for of in one.top_logprobs] == pytest.approx(values.topk(3).values.tolist(), abs=1e-5)
        assert bytes(one.bytes) == bytes(one.top_logprobs[0].bytes)


def test_a_system_turn_takes_the_place_of_the_tasks_instruction(base, client, sources):
    client, handle = client
    stock = AutoTokenizer.from_pretrained(sources.pretrained)
    turns = [{"role": "developer", "content": "Be short."}, *ASK]
    said = client.chat.completions.create(model=handle, messages=turns, max_completion_tokens=1)
    turns[0]["role"] = "system"
    assert said.usage.prompt_tokens == len(stock.apply_chat_template(turns, add_generation_prompt=True)["input_ids"])


def test_without_a_template_turns_are_examples(sources, tmp_path):
    base = Base(sources("in_context"))
    base.tokenizer.__dict__["named"] = {"eos_token": "</s>"}
    with asked(base, tmp_path) as (client, handle):
        language, task = client.server.openai.language, client.server.store.get(handle)
        turns = [*ASK, {"role": "assistant", "content": "red"}, {"role": "user", "content": "cold"}]
        text = "Say it.\na hot thing\nred</s>Say it.\ncold\n"
        assert base.tokenizer.decode(language.prompt(task, turns), skip_special_tokens=False) == text
        turns = [{"role": "system", "content": "Be short."}, *ASK]
        assert base.tokenizer.decode(language.prompt(task, turns)) == "Be short.\na hot thing\n"
        assert language.prompt(task, ASK) == language.prompt(task, "a hot thing")
        assert client.chat.completions.create(model=handle, messages=turns, max_tokens=2).choices[0].finish_reason


def test_a_seed_repeats_and_each_choice_is_a_draw_of_its_own(client):
    client, handle = client
    given = {"model": handle, "messages": ASK, "max_completion_tokens": 8, "n": 3}
    texts = [[c.message.content for c in client.chat.completions.create(**given, seed=seed).choices] for seed in (5, 6)]
    assert len({*texts[0], *texts[1]}) == 6
    assert streamed(client.chat.completions.create(**given, seed=5, stream=True))[0] == dict(enumerate(texts[0]))
    assert len({client.chat.completions.create(**given).choices[0].message.content for _ in range(3)}) == 3
    narrow = [client.chat.completions.create(**given, top_p=1e-6).choices[i].message.content for i in range(3)]
    assert narrow == [client.chat.completions.create(**given, temperature=0).choices[0].message.content] * 3


def speaking(monkeypatch, base, text):
    """Whatever the model is asked, it says `text`, a token for each byte, and ends."""
    ids = [base.tokenizer.token_to_id(letter) for letter in base.tokenizer.encode(text).tokens]

    def sampler(*settings):
        left = iter([*ids, 1, 1])
        return lambda scores: torch.full_like(scores[:, 0], next(left), dtype=torch.int64)

    monkeypatch.setattr(answers, "sampler", sampler)
    return len(ids)


def test_a_stream_never_splits_a_character_and_comes_token_by_token(base, client, monkeypatch):
    client, handle = client
    text = "é日本 🎉?"
    count = speaking(monkeypatch, base, text)
    assert count == 2 + 3 + 3 + 1 + 4 + 1
    events = list(client.chat.completions.create(
        model=handle, messages=ASK, stream=True, max_tokens=40, logprobs=True, stream_options={"include_usage": True},
    ))  # fmt: skip
    pieces = [event.choices[0].delta.content for event in events[:-1]]
    assert [piece for piece in pieces if piece] == list(text)
    assert events[0].choices[0].delta.role == "assistant" and events[-2].choices[0].finish_reason == "stop"
    scored = [one for event in events[:-1] for one in event.choices[0].logprobs.content]
    assert bytes(byte for one in scored for byte in one.bytes).decode() == text
    assert events[-1].choices == [] and events[-1].usage.completion_tokens == count + 1  # the end token
    said = client.completions.create(model=handle, prompt="hot", max_tokens=9, logprobs=0)  # within the last character
    assert said.choices[0].text == "é日本 " and said.choices[0].finish_reason == "length"
    assert said.choices[0].logprobs.text_offset == [0, 0, 1, 1, 1, 2, 2, 2, 3]
    said = client.completions.create(model=handle, prompt="hot", max_tokens=11)
    assert said.choices[0].text == "é日本 \ufffd"  # nothing is dropped at the end


@pytest.mark.parametrize(
    ("said", "stop", "text"),
    [
        ("abce abcdef", "cd", "abce ab"), ("abcdef", ["d", "cde"], "abc"), ("ab cdef", ["ef", "b c"], "a"),
        ("a日本", "本", "a日"), ("abcdef", ["", "x"], "abcdef"),
    ],
)  # fmt: skip
def test_a_stop_sequence_ends_an_answer_wherever_its_tokens_end(said, stop, text, base, client, monkeypatch):
    client, handle = client
    speaking(monkeypatch, base, said)
    given = {"model": handle, "prompt": "hot", "max_tokens": 40, "stop": stop, "logprobs": 1}
    whole = client.completions.create(**given)
    texts, ends = streamed(client.completions.create(**given, stream=True))
    assert whole.choices[0].text == texts[0] == text and ends[0] == whole.choices[0].finish_reason == "stop"
    scored = whole.choices[0].logprobs
    assert len(scored.tokens) == len(text.encode()) and scored.text_offset[-1] == len(text) - 1


def test_what_is_held_back_for_a_stop_sequence_leaves_when_it_is_none(base):
    growing = Growing(base.tokenizer, ["cde"])
    pieces = [growing.add(base.tokenizer.token_to_id(letter)).text for letter in "abcdfcd"]
    assert pieces == ["a", "b", "", "", "cdf", "", ""]
    assert growing.end("length").text == "cd"
    piece = Growing(base.tokenizer, ["A", " A"]).add(base.tokenizer.token_to_id("ĠA"))  # one token ends both
    assert (piece.text, piece.finish) == ("", "stop")


def test_a_task_that_classifies_says_a_label(sources, tmp_path):
    base = Base(sources("letters"))
    (one_each,) = base.adapt([base.asked(serving.support(0, each=1))])
    assert one_each.about["support_loss"] == [0.0]
    with asked(base, tmp_path) as (client, handle):
        (expected,) = adapt(sources("letters"), serving.support(0)).predict(["so hot"])
        given = {"model": handle, "messages": [{"role": "user", "content": "so hot"}]}
        said = client.chat.completions.create(**given, temperature=0, logprobs=True, top_logprobs=2)
        assert said.choices[0].message.content == expected["label"] and said.choices[0].finish_reason == "stop"
        scored = {one.token: math.exp(one.logprob) for one in said.choices[0].logprobs.content[0].top_logprobs}
        assert scored == pytest.approx(expected["probabilities"], abs=1e-4)
        drawn = client.completions.create(model=handle, prompt="so hot", n=32, seed=0)
        assert {choice.text for choice in drawn.choices} == {"yes", "no"}
        assert streamed(client.chat.completions.create(**given, temperature=0, stream=True))[0] == {
            0: expected["label"]
        }
        with pytest.raises(openai.BadRequestError, match="give that alone, as one user turn"):
            client.chat.completions.create(model=handle, messages=[{"role": "system", "content": "x"}, *ASK])


BAD = {
    "unknown": ({"top_k": 3}, "top_k is no parameter"), "near": ({"temprature": 1}, "Did you mean 'temperature'"),
    "not done": ({"presence_penalty": 0.5}, "presence_penalty is 0.5, which this server does not do"),
    "tools": ({"tools": [{"type": "function"}]}, "tools is a list of 1"),
    "hot": ({"temperature": 3}, "temperature is 3: "), "text": ({"temperature": "1"}, 'temperature is "1": '),
    "true": ({"n": True}, "n is true: "), "five": ({"stop": list("abcde")}, "stop is a list of 5: "),
    "long": ({"max_tokens": 99}, "max_tokens is 99, the limit is 50"),
    "role": ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    "top": ({"top_logprobs": 2}, "top_logprobs is 2, which needs logprobs: true"),
    "order": ({"messages": [*ASK, *ASK]}, "by turns"), "none": ({"messages": []}, "messages"),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text alone"),
    "empty": ({"messages": [{"role": "user", "content": " "}]}, "not a text"),
    "characters": ({"messages": [{"role": "user", "content": "x" * 2001}]}, "serve.characters"),
    "context": ({"messages": [{"role": "user", "content": "x" * 1990}]}, "the model reads 1024 tokens: 2"),
    "answers": ({"n": 9}, "9 answers at once, the limit is 4"), "model": ({"model": "gpt-4"}, "no task 'gpt-4'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def narrow(base, tmp_path_factory):
    limits = {"answers": 4, "max_tokens": 50, "characters": 2000}
    with asked(base, tmp_path_factory.mktemp("narrow"), **limits) as found:
        yield found


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_done_is_refused_by_its_name(case, narrow):
    client, handle = narrow
    more, says = BAD[case]
    body = {"model": handle, "messages": ASK, **more}
    status = {"model": 404, "answers": 413, "characters": 413}.get(case, 400)
    with pytest.raises(openai.APIStatusError, match=says) as refused:
        client.post("/chat/completions", body=body, cast_to=object)
    assert refused.value.status_code == status and refused.value.type == "invalid_request_error"
    assert refused.value.code == {"model": "model_not_found", "answers": "request_too_large",
                                  "characters": "request_too_large"}.get(case)  # fmt: skip


def test_what_changes_nothing_is_taken(narrow):
    client, handle = narrow
    said = client.chat.completions.create(
        model=handle, messages=[{"role": "user", "content": [{"type": "text", "text": "hot"}]}], user="me", n=1,
        presence_penalty=0, response_format={"type": "text"}, tools=[], max_tokens=2, top_p=None,
    )  # fmt: skip
    assert said.usage.completion_tokens <= 2
    again = [*ASK, said.choices[0].message, *ASK]  # a conversation goes on with the message as it came
    if said.choices[0].message.content.strip():
        assert client.chat.completions.create(model=handle, messages=again, max_tokens=2).usage.prompt_tokens > 0
    long = "x" * (1024 - len("Say it.\n\n") - 3)  # there is room for 3 tokens, and 16 were not asked for
    assert client.completions.create(model=handle, prompt=long).usage.completion_tokens <= 3
    with pytest.raises(openai.BadRequestError, match="of the prompt and max_tokens = 4 are more"):
        client.completions.create(model=handle, prompt=long, max_tokens=4)
    assert len(client.chat.completions.create(model=handle, messages=ASK).choices) == 1  # as long as serve.max_tokens


def test_tasks_are_the_models(narrow):
    client, handle = narrow
    assert [of.id for of in client.models.list()] == [handle] and client.models.retrieve(handle).created > 1.7e9
    with pytest.raises(openai.NotFoundError, match="no task"):
        client.models.retrieve("0" * 32)
    with pytest.raises(openai.AuthenticationError, match="Authorization: Bearer"):
        client.with_options(api_key="another").models.list()
    with pytest.raises(openai.NotFoundError, match="Not Found"):
        client.embeddings.create(model=handle, input="hot", encoding_format="float")


class Slow:
    """A model of which each step takes `seconds`; how many it has made."""

    def __init__(self, monkeypatch, seconds=0.02):
        self.steps, step = 0, answers.Generation.step

        def counted(generation):
            self.steps += 1
            time.sleep(seconds)
            made = step(generation)
            generation.running = torch.ones_like(generation.running)  # no answer ends
            return made

        monkeypatch.setattr(answers.Generation, "step", counted)

    def rests(self):
        """Whether nothing is generated any more, soon."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            before = self.steps
            time.sleep(0.2)
            if self.steps == before:
                return True
        return False


@pytest.mark.parametrize("stream", [True, False])
def test_an_abandoned_answer_frees_the_model(stream, base, tmp_path, monkeypatch):
    with asked(base, tmp_path, answers=1) as (client, handle):
        slow = Slow(monkeypatch)
        given = {"model": handle, "messages": ASK, "temperature": 0, "max_tokens": 900}
        if stream:
            events = client.chat.completions.create(**given, stream=True)
            next(events)
            events.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=0.5).chat.completions.create(**given)
        assert slow.rests() and 0 < slow.steps < 900 and client.server.worker.streams == 0
        assert client.chat.completions.create(model=handle, messages=ASK, max_tokens=1).choices
        if stream:
            text = client.server.metrics.text(0).decode()
            assert 'distmeta_requests_total{endpoint="chat",status="499"} 1.0' in text


def test_no_answer_takes_longer_than_a_request_may(base, tmp_path, monkeypatch):
    with asked(base, tmp_path, seconds=1) as (client, handle):
        slow = Slow(monkeypatch)
        given = {"model": handle, "prompt": "hot", "temperature": 0, "max_tokens": 900}
        with pytest.raises(openai.APIError, match="serve.seconds") as late:
            list(client.completions.create(**given, stream=True))
        assert late.value.type == "server_error" and late.value.code == "timeout"
        with pytest.raises(openai.InternalServerError, match="serve.seconds") as late:
            client.completions.create(**given)
        assert late.value.status_code == 504 and slow.rests()


def test_answers_take_turns_and_beyond_the_room_they_wait(base, tmp_path, monkeypatch):
    with asked(base, tmp_path, answers=2, waiting=1) as (client, handle):
        Slow(monkeypatch)
        given = {"model": handle, "prompt": "hot", "temperature": 0, "stream": True}
        long = client.completions.create(**given, max_tokens=900)
        next(long)
        short = streamed(client.completions.create(**given, max_tokens=5))  # while the long one goes on
        assert short[1] == {0: "length"} and client.post(
            f"{client.base_url}".replace("/v1/", f"/tasks/{handle}/predict"), body={"inputs": ["hot"]}, cast_to=object
        )
        next(long)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            waits = pool.submit(lambda: streamed(client.completions.create(**given, n=2, max_tokens=2)))
            while client.server.worker.streams < 2:
                time.sleep(0.01)
            with pytest.raises(openai.InternalServerError, match="1 requests wait already") as refused:
                client.completions.create(**given, max_tokens=2)
            assert refused.value.status_code == 503 and refused.value.code == "overloaded"
            time.sleep(0.3)  # in which it would be done
            assert not waits.done() and client.server.worker.waiting == 1
            long.close()
            assert len(waits.result(60)[0]) == 2


def test_tokens_are_counted(narrow):
    client, handle = narrow
    before = client.server.metrics.registry.get_sample_value("distmeta_tokens_total", {"kind": "completion"}) or 0
    usage = client.completions.create(model=handle, prompt=["hot", "so cold"], max_tokens=3).usage
    count = client.server.metrics.registry.get_sample_value("distmeta_tokens_total", {"kind": "completion"})
    prompts = len("Say it.\nhot\n") + len("Say it.\nso cold\n")
    assert count - before == usage.completion_tokens > 1 and usage.prompt_tokens == prompts
    assert usage.total_tokens == prompts + usage.completion_tokens


def test_a_draw_follows_temperature_and_top_p():
    scores = torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3)
    for temperature, top_p, expected in (
        (1.0, 1.0, [0.5, 0.3, 0.2]), (0.5, 1.0, [25 / 38, 9 / 38, 4 / 38]), (1.0, 0.7, [0.625, 0.375, 0]),
        (1.0, 0.5, [1, 0, 0]), (1.0, 0.51, [0.625, 0.375, 0]), (0.0, 1.0, [1, 0, 0]),
    ):  # fmt: skip
        picked = sampler(temperature, top_p, 0, torch.device("cpu"))(scores)
        assert torch.bincount(picked, minlength=3).div(20_000).tolist() == pytest.approx(expected, abs=0.015)
        assert torch.equal(picked, sampler(temperature, top_p, 0, torch.device("cpu"))(scores))
        settings = Settings(temperature=temperature, top_p=top_p, seed=0, n=5000)
        labels = label_answers([{"probabilities": {"b": 0.3, "a": 0.5, "c": 0.2}}], settings)
        shares = [sum(piece.text == label for piece in labels) / 5000 for label in "abc"]
        assert shares == pytest.approx(expected, abs=0.03)


def test_the_page_s_own_client_works(client, capsys):
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    (code,) = re.findall(r"^```py\n(.*?)^```$", page, re.M | re.S)
    client, handle = client
    code = code.replace("http://localhost:8000/v1", str(client.base_url)).replace('"none"', repr(TOKEN))
    exec(code.replace('"HANDLE"', repr(handle)), {})
    assert "CompletionUsage" in capsys.readouterr().out
