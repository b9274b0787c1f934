"""A model that lm-evaluation-harness scores its tasks with (extra `harness`), so that what must not fall is watched.

    import lm_eval
    from distmeta.export.harness import harness_model
    lm_eval.simple_evaluate(model=harness_model("runs/llm"), tasks=["arc_easy"])

A source is a run, a checkpoint, an adapted model or an export of one of these, or any Hugging Face directory of a
decoder, such as the base that it began from. It runs as transformers' own model with its LoRA pairs merged. An adapted
model that reads its support set has it before every text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distmeta.errors import InputError

PART_TOKENS = 1024  # of a batch, with its padding
ANSWER_TOKENS = 256  # of what is generated, where a task does not say


class Decoder(NamedTuple):
    """model, tokenizer: transformers' own. context: tokens of a support set, before every text. limit: positions."""

    model: Any
    tokenizer: Any
    context: tuple[int, ...] = ()
    limit: int = 2048


def load_decoder(source: str | Path) -> Decoder:
    """The decoder that `source` holds. Raises InputError."""
    from distmeta.models.backbone import position_limit

    folder = Path(source)
    exported = (folder / "adapter_config.json").is_file() or (
        (folder / "config.json").is_file() and not (folder / "adapted.json").is_file()
    )
    model, tokenizer, context = _published(folder) if exported else _trained(folder)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    return Decoder(model, tokenizer, tuple(context), position_limit(model.config) or Decoder._field_defaults["limit"])


def _published(folder: Path) -> tuple[Any, Any, list[int]]:
    """Of a Hugging Face directory, or a PEFT one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = folder / "adapter_config.json"
    base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"] if adapter.is_file() else folder
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no decoder can be loaded from it ({str(error).splitlines()[0]})") from None
    if adapter.is_file():
        from peft import PeftModel

        if not (folder / "adapter_model.safetensors").is_file():  # else PEFT would look for a pickle
            raise InputError(f"{folder}: has no adapter_model.safetensors; save the adapter as safetensors")
        model = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    words = folder / "context.json"
    context = json.loads(words.read_text(encoding="utf-8"))["tokens"] if words.is_file() else []
    return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=False), context


def _trained(folder: Path) -> tuple[Any, Any, list[int]]:
    """Of a run, a checkpoint or an adapted model."""
    from distmeta.export.export import read
    from distmeta.export.language import whole_model
    from distmeta.tasks.tokenizer import as_transformers, load_tokenizer

    trained = read(folder)
    if not trained.is_language or getattr(trained.model, "seq2seq", False):
        raise InputError(f"{folder}: the harness asks a decoder, and this is none; meta-train one (docs/llm.md)")
    tokenizer = as_transformers(load_tokenizer(trained.tokenizer_file), 1 << 20, takes_types=False)
    return whole_model(trained), tokenizer, trained.context or []


def tokens_of(decoder: Decoder, before: str, after: str) -> tuple[list[int], list[int]]:
    """The tokens of a context and of what follows it; spaces between the two are the second one's.

    An empty context is the tokenizer's begin or end of a text.
    """
    bare = before.rstrip()
    before, after = bare, before[len(bare) :] + after

    def ids(text: str) -> list[int]:
        found: list[int] = decoder.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    if not before:
        tokenizer = decoder.tokenizer
        begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        return [] if decoder.context else [begin], ids(after)
    first = ids(before)
    return first, ids(before + after)[len(first) :]


@torch.no_grad()
def likelihoods(decoder: Decoder, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
    """Of each (context, what follows it), as tokens: the log-likelihood of what follows, and whether it is what greedy
    decoding gives. A context that is too long loses its beginning."""
    rows = [([*decoder.context, *before], list(after)) for before, after in pairs]
    rows = [(before[max(0, len(before) + len(after) - decoder.limit) :], after) for before, after in rows]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1]))
    out: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
    device = next(decoder.model.parameters()).device
    while order:
        longest = len(rows[order[-1]][0]) + len(rows[order[-1]][1])
        part, order = order[-max(1, PART_TOKENS // longest) :], order[: -max(1, PART_TOKENS // longest)]
        ids, keep = torch.zeros(2, len(part), longest, dtype=torch.int64)
        for row, i in enumerate(part):
            both = [*rows[i][0], *rows[i][1]]
            ids[row, : len(both)], keep[row, : len(both)] = torch.tensor(both), 1
        logits: Tensor = decoder.model(input_ids=ids.to(device), attention_mask=keep.to(device), use_cache=False).logits
        for row, i in enumerate(part):
            before, after = rows[i]
            scores = F.log_softmax(logits[row, len(before) - 1 : len(before) + len(after) - 1].float(), -1)
            target = torch.tensor(after, device=device)
            found = scores.gather(1, target.unsqueeze(1)).sum()
            out[i] = float(found), bool((scores.argmax(1) == target).all())
    return out


def rolling(decoder: Decoder, text: str) -> float:
    """The log-likelihood of a whole text, in windows of the model's positions that do not overlap."""
    begin, ids = tokens_of(decoder, "", text)
    room = decoder.limit - len(decoder.context) - 1
    windows = [(ids[max(0, at - 1) : at] or begin, ids[at : at + room]) for at in range(0, len(ids), room)]
    return sum(found for found, _ in likelihoods(decoder, windows))


@torch.no_grad()
def written(decoder: Decoder, text: str, settings: dict[str, Any]) -> str:
    """What the model writes after a text by greedy decoding, up to the first of settings["until"]."""
    stops = settings.get("until") or []
    stops = [stops] if isinstance(stops, str) else list(stops)
    most = int(settings.get("max_gen_toks", ANSWER_TOKENS))
    if settings.get("do_sample"):
        raise InputError("a task asks for answers that are drawn at random (do_sample); distmeta decodes greedily")
    ids = decoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = [*decoder.context, *ids][-(decoder.limit - most) :]
    device = next(decoder.model.parameters()).device
    out = decoder.model.generate(
        torch.tensor([ids], device=device), attention_mask=torch.ones(1, len(ids), dtype=torch.int64, device=device),
        max_new_tokens=most, do_sample=False, pad_token_id=decoder.tokenizer.pad_token_id,
        **({"stop_strings": stops, "tokenizer": decoder.tokenizer} if stops else {}),
    )  # fmt: skip
    answer: str = decoder.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
    return answer[: min([len(answer), *(answer.find(stop) for stop in stops if stop and stop in answer)])]


def harness_model(source: str | Path) -> Any:
    """An lm_eval.api.model.LM of `source`, for lm_eval.simple_evaluate(model=...). Raises InputError."""
    try:
        from lm_eval.api.model import LM  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise InputError("the harness needs the extra of its name: pip install 'distmeta[harness]'") from None
    decoder = load_decoder(source)

    def each(requests: Sequence[Any], answer: Callable[..., Any]) -> list[Any]:
        return [answer(decoder, *request.args) for request in requests]

    class Model(LM):  # type: ignore[misc]
        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            return likelihoods(decoder, each(requests, tokens_of))

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
            return each(requests, rolling)

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
            return each(requests, written)

    return Model()
