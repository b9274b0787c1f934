"""Small data, configurations and processes for tests. Imported by name: pytest puts this folder on the path."""

import contextlib
import dataclasses
import io
import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from distmeta.config import Config, make_config
from distmeta.config.trees import merge
from distmeta.tasks.rows import Rows

CLI = [sys.executable, "-m", "distmeta.cli"]
PLENTY = ["red", "blue", "green", "small", "big", "fast", "slow", "old", "new", "hot", "cold", "sharp", "round", "flat"]

# Decoders have two layers: with one, the last token cannot tell whether those before it looked ahead.
BACKBONES = {
    "bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
             "max_position_embeddings": 32},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
              "intermediate_size": 32},
    "qwen2": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
              "intermediate_size": 32},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    "lstm": {"embedding_size": 12, "hidden_size": 16, "num_hidden_layers": 1},
}  # fmt: skip
TOWER = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
ARRAYS = {  # models of numbers, and of images with words
    "mlp": {"hidden_size": 6, "num_hidden_layers": 2},
    "clip": {"text_config": TOWER, "vision_config": TOWER, "projection_dim": 6},
}

# As ChatML, without a system line.
CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def write_domains(path: Path, tasks: int = 10, rows: int = 14) -> Path:
    """text,label,task: in each task two words of its own say yes, and two others no."""
    rng = random.Random(0)
    lines = ["text,label,task"]
    for t in range(tasks):
        words = rng.sample(PLENTY, 4)
        for i in range(rows):
            for label, pair in (("yes", words[:2]), ("no", words[2:])):
                filler = " ".join(rng.choice(["the", "a", "so", "it", "is"]) for _ in range(1 + (i + t) % 5))
                lines.append(f"{filler} {rng.choice(pair)} thing,{label},task{t}")
    path.write_text("\n".join(lines) + "\n")
    return path


def config(path: Path | None = None, architecture: str = "bert", **sections) -> Config:
    """A tiny configuration: one layer, 16 wide, family domain; sections as dictionaries, laid over it."""
    base = {
        "model": {"architecture": architecture, "config": (BACKBONES | ARRAYS)[architecture],
                  "max_tokens": 16, "vocab_size": 100,
                  "lora_targets": "hidden$" if architecture == "lstm" else "auto"},
        "data": {"path": None if path is None else str(path)},
        "task": {"shots": 3, "queries": 4},
        "inner": {"lr": 0.2, "steps": 2},
        "outer": {"lr": 0.01, "steps": 20, "meta_batch_size": 4, "schedule": "constant"},
        "eval": {"every": 0, "episodes": 8, "validation_episodes": 4},
        "run": {"checkpoint_every": 5, "timeout_s": 60},
    }  # fmt: skip
    return make_config(merge(base, sections))


def decoder(
    folder: Path, template: str | None = CHAT, begin: bool = False, letters: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
) -> Path:
    """A pretrained directory: a llama of two layers with random weights, 16 wide, bytes and letters as its tokens.

    begin: whether its tokenizer puts <s> before a text.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = pre_tokenizers.ByteLevel().pre_tokenize_str(" A")[0][0][0]
    words = ["<s>", "</s>", *alphabet, *(space + letter for letter in letters)]
    tokenizer = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [(space, letter) for letter in letters]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    stock = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    stock.chat_template = template
    stock.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(**BACKBONES["llama"], vocab_size=len(words), max_position_embeddings=1024, pad_token_id=1)
    ).save_pretrained(folder)
    return folder


def in_files(folder: Path, architecture: str = "llama", tied: bool = False) -> Path:
    """As `decoder`, or a GPT-2 with its tokenizer, with bfloat16 weights in many files; tied: one for both ends."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    decoder(folder)
    base = AutoConfig.from_pretrained(folder)
    sizes = BACKBONES[architecture] | ({"n_positions": 256} if architecture == "gpt2" else {})
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1, "vocab_size": base.vocab_size}
    torch.manual_seed(1)
    made = AutoConfig.for_model(architecture, **sizes, **special, tie_word_embeddings=tied)
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_config(made).to(torch.bfloat16).save_pretrained(folder, max_shard_size="3KB")
    return folder


def checkpoint_of(folder, path, **sections) -> Path:
    """A checkpoint whose values are not the initial ones; that they are no good is all the same to adapting."""
    import torch

    from distmeta.algorithms.rates import initial_log_rates
    from distmeta.models.build import build_model
    from distmeta.runs import checkpoint
    from distmeta.tasks.build import build_store
    from distmeta.tasks.store import open_store

    given = config(path, **sections)
    store = open_store(build_store(given.data, given.task, given.model))
    classes = given.ways or len(store.labels)
    model = build_model(given, store.vocab_size, store.pad_id, classes)
    meta = {**model.fast, **model.shared, **initial_log_rates(given.inner, model.adapted)}
    state = {"step": 1, "labels": store.labels, "classes": classes, "vocab_size": store.vocab_size,
             "pad_id": store.pad_id}  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    values = {n: v.detach() + 0.02 * torch.randn(v.shape, generator=generator) for n, v in meta.items()}
    checkpoint.save(folder, given, state, values, {}, store.tokenizer_file)
    return folder


def rows(counts, vocabulary: int, classes: int, seed: int = 0, longest: int = 11, pad: int | None = None) -> list[Rows]:
    """For each count, that many ragged random rows, every class among them; `pad` occurs as a token of the text."""
    rng = np.random.default_rng(seed)
    out = []
    for count in counts:
        lengths = rng.integers(2, longest + 1, count)
        tokens = rng.integers(5, vocabulary, lengths.sum()).astype(np.int32)
        if pad is not None:
            tokens[::7] = pad
        labels = rng.permutation(np.arange(count) % classes)
        out.append(Rows(tokens, np.concatenate([[0], np.cumsum(lengths)]), labels, np.arange(count)))
    return out


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a `distmeta train` process left."""

    run: Path
    command: list[str]
    cwd: Path
    stdout: str
    stderr: str

    @property
    def records(self) -> list[dict]:
        return records(self.run)

    @property
    def weights(self) -> bytes:
        return weights(self.run)


def records(run: Path) -> list[dict]:
    """metrics.jsonl without its seconds."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith("_s")} for line in lines]


def weights(run: Path) -> bytes:
    """The final meta-parameters, byte for byte."""
    return (run / "checkpoints" / "step-000020" / "meta.safetensors").read_bytes()


def train_command(place: Path, data: Path, *words: str) -> Finished:
    """Runs `distmeta train` on the tiny configuration in `place`, to its end."""
    command = start_command(place, data, *words)
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return Finished(place / "runs" / "tiny", command, place, done.stdout, done.stderr)


def start_command(place: Path, data: Path, *words: str) -> list[str]:
    import yaml

    tiny = config(data, cluster={"workers": 2}, sampling={"actors": 2}, run={"name": "tiny"})
    (place / "tiny.yaml").write_text(yaml.safe_dump(tiny.model_dump(mode="json")))
    return [*CLI, "train", "tiny.yaml", *words]


def cli(*words: str, cwd: Path, stdin: str | None = None, timeout: float = 120) -> subprocess.CompletedProcess:
    return subprocess.run([*CLI, *words], cwd=cwd, input=stdin, capture_output=True, text=True, timeout=timeout)


def command(*words: str, cwd: Path) -> SimpleNamespace:
    """As `cli`, in this process, which has imported all that the command needs."""
    from distmeta.cli import main
    from distmeta.runs import interrupt

    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        for name in ("_caught", "_installed", "_run_dir"):
            patch.setattr(interrupt, name, [])
        patch.setattr(sys, "argv", ["distmeta", *words])
        patch.chdir(cwd)
        with pytest.raises(SystemExit) as end:
            main()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return SimpleNamespace(returncode=end.value.code or 0, stdout=out.getvalue(), stderr=err.getvalue())


def parsed(verb, words):
    """What `distmeta submit VERB WORDS` checks before it sends anything."""
    import typer

    from distmeta.cli import app
    from distmeta.cli.jobs import parsed

    return parsed(typer.main.get_command(app), verb, words)
