"""Tokenizers of the `tokenizers` library: a pretrained one as it is, or one trained on the meta-train text.

A trained tokenizer has [PAD] [UNK] [CLS] [SEP] [MASK] and the template [CLS] text [SEP]. A pretrained one
keeps its own special tokens and template. The pad token is recorded as the tokenizer's padding; what else a
pretrained directory names (its end, every token that ends an answer, its chat template) is kept beside it in
tokenizer_config.json.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from distmeta.config.paths import check_hub
from distmeta.errors import InputError, cut
from distmeta.tasks.counts import Counts, unknown_id

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Where a pretrained directory does not name them, in this order; a decoder pads with its end token.
PAD_NAMES = ["[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "</s>", "<eos>"]
END_NAMES = ["[SEP]", "</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<eos>", "<sep>"]  # of an answer
NAMED = ("pad_token", "eos_token", "bos_token", "unk_token", "cls_token", "sep_token", "mask_token", "chat_template")
CLS_NAMES, SEP_NAMES = ["[CLS]", "<s>", "<cls>"], ["[SEP]", "</s>", "<sep>"]


@dataclass(frozen=True)
class SpecialIds:
    vocab_size: int  # one more than the largest id
    pad: int
    cls: int | None
    sep: int | None
    end: int  # of an answer that is learnt: the named eos_token
    ends: tuple[int, ...]  # any of them ends an answer that is generated; `end` is the first


def train_tokenizer(texts: Iterable[str], level: str, vocab_size: int) -> Tokenizer:
    """A tokenizer of `level` word, wordpiece, character or bpe (byte-level). Raises InputError.

    The same for the same texts.
    """
    if level == "character":
        tokenizer = _train_characters(texts, vocab_size)
    elif level == "word":
        # Lower case; split at white space, punctuation, and around every Chinese character.
        tokenizer = Tokenizer(models.WordLevel({"[UNK]": 1}, unk_token="[UNK]"))
        _split_words(tokenizer)
        trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=SPECIAL, show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
    elif level == "wordpiece":
        tokenizer = _train_wordpieces(texts, vocab_size)
    elif level == "bpe":
        tokenizer = _train_bytes(texts, vocab_size)
    else:
        raise InputError(f"model.tokenizer = {level!r}: set it to word, wordpiece, character or bpe")
    ids = {token: tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=list(ids.items())
    )
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]"), pad_token="[PAD]")
    return tokenizer


def _train_bytes(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level pairs, as GPT-2's: any text comes back as it was (Sennrich et al. 2016, arXiv 1508.07909)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_characters(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    counts: Counter[str] = Counter()
    normalizer = normalizers.NFC()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    ordered = sorted(counts, key=lambda c: (-counts[c], c))[: max(vocab_size - len(SPECIAL), 0)]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *ordered])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def _train_wordpieces(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Pieces from the library's trainer, made deterministic.

    It numbers the pieces '##c' in the order of a hash map with a random seed, and breaks ties by number.
    Given as special tokens they keep their order; the vocabulary then gets a tokenizer in which they are not
    special.
    """
    blank = Tokenizer(models.WordPiece({"[UNK]": 1}, unk_token="[UNK]"))
    _split_words(blank)
    words: Counter[str] = Counter()
    for text in texts:
        normal = blank.normalizer.normalize_str(text)
        words.update(word for word, _ in blank.pre_tokenizer.pre_tokenize_str(normal))
    letters: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            letters[letter] += count
    kept = set(sorted(letters, key=lambda c: (-letters[c], c))[: vocab_size // 3])
    words = Counter({word: count for word, count in words.items() if kept.issuperset(word)})
    pieces = sorted({f"##{letter}" for word in words for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=[*SPECIAL, *pieces], show_progress=False)
    blank.train_from_iterator(words.elements(), trainer)
    tokenizer = Tokenizer(models.WordPiece(blank.get_vocab(), unk_token="[UNK]"))
    tokenizer.add_special_tokens(SPECIAL)
    _split_words(tokenizer)
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _split_words(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def load_tokenizer(source: str | Path) -> Tokenizer:
    """That of a pretrained directory, a tokenizer.json or a hub id, its pad token set. Raises InputError."""
    path = Path(source).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{file}: not a tokenizer that can be read: {error}") from None
        named = _named_tokens(file.parent)
        if path.is_dir():
            _check_fits(tokenizer, str(source))
    else:
        tokenizer, named = _from_transformers(str(source))
    _set_padding(tokenizer, named, str(source))
    tokenizer.__dict__["named"] = named
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json, and tokenizer_config.json where a pretrained directory named its tokens."""
    tokenizer.save(str(directory / "tokenizer.json"))
    if named := named_tokens(tokenizer):
        (directory / "tokenizer_config.json").write_text(json.dumps(named, indent=1), encoding="utf-8")


def named_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    """Special tokens by role, the chat template, and all ends (eos_token_id), as the directory names them."""
    named: dict[str, Any] = tokenizer.__dict__.get("named", {})
    return named


def _from_transformers(source: str) -> tuple[Tokenizer, dict[str, Any]]:
    if source.startswith(("/", ".", "~")) and not Path(source).exists():
        raise InputError(f"model.pretrained = {source}: no such directory; a Hugging Face directory, or a hub id")
    check_hub(source)
    from transformers import AutoTokenizer

    try:
        auto = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        tokenizer = Tokenizer.from_str(auto.backend_tokenizer.to_str())
    except Exception as error:
        reason = cut(str(error), 160) or type(error).__name__
        if "tiktoken" in reason or "sentencepiece" in reason.lower():
            reason = (
                "it has no tokenizer.json; convert it where sentencepiece is installed, and save it beside the weights"
            )
        raise InputError(f"model.pretrained = {source}: no tokenizer can be loaded: {reason}") from None
    _check_fits(tokenizer, source)
    named = {name: getattr(auto, name) for name in NAMED if isinstance(getattr(auto, name, None), str)}
    ends = _ends(source)
    return tokenizer, named | ({"eos_token_id": ends} if ends else {})


def _check_fits(tokenizer: Tokenizer, source: str) -> None:
    """Raises InputError for a tokenizer that is not of these weights, such as the empty one transformers makes up."""
    config = _json_of(source, "config.json")
    words, rows = tokenizer.get_vocab_size(), config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    if isinstance(rows, int) and words < rows / 2:
        raise InputError(
            f"model.pretrained = {source}: its tokenizer has {words:,} tokens and its embedding {rows:,}, so that most "
            "text would be unknown; save the model's own tokenizer beside its weights (tokenizer.save_pretrained)"
        )


def _json_of(source: str | Path, name: str) -> dict[str, Any]:
    """A JSON file of a directory or a hub id; {} where there is none."""
    try:
        if not Path(source).is_dir():
            from transformers.utils import cached_file

            source = Path(cached_file(str(source), name)).parent  # type: ignore[arg-type]
        content = json.loads((Path(source) / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _ends(source: str | Path) -> list[int]:
    """Every token that ends what the model generates, by its generation_config, else by its config."""
    ends = _json_of(source, "generation_config.json").get("eos_token_id")
    ends = _json_of(source, "config.json").get("eos_token_id") if ends is None else ends
    return [ends] if isinstance(ends, int) else [end for end in ends or [] if isinstance(end, int)]


def _named_tokens(directory: Path) -> dict[str, Any]:
    """What the directory's configuration files name: see `named_tokens`."""
    named: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        content = _json_of(directory, file)
        for name in NAMED:
            token: Any = content.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                named[name] = token
        named |= {"eos_token_id": content["eos_token_id"]} if isinstance(content.get("eos_token_id"), list) else {}
    template = directory / "chat_template.jinja"
    if template.is_file():
        named["chat_template"] = template.read_text(encoding="utf-8")
    ends = _ends(directory)
    return named | ({"eos_token_id": ends} if ends else {})


def _set_padding(tokenizer: Tokenizer, named: dict[str, Any], source: str) -> None:
    recorded = tokenizer.padding["pad_token"] if tokenizer.padding else None
    for token in (named.get("pad_token"), recorded, named.get("eos_token"), *PAD_NAMES):
        number = tokenizer.token_to_id(token) if token else None
        if number is not None:
            tokenizer.enable_padding(pad_id=number, pad_token=token)
            return
    raise InputError(f"{source}: its tokenizer names neither a pad nor an end token, so that texts cannot be batched")


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """Ids that batching and heads need; the tokenizer must come from this module."""

    def first(names: Sequence[str]) -> int | None:
        return next((i for i in map(tokenizer.token_to_id, names) if i is not None), None)

    padding = tokenizer.padding
    assert padding is not None, "train_tokenizer and load_tokenizer set it"
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    pad = padding["pad_id"]
    named = named_tokens(tokenizer)
    stops = [i for i in named.get("eos_token_id", []) if tokenizer.id_to_token(i) is not None]
    end = first([named["eos_token"]] if "eos_token" in named else [])
    if end is None:
        end = next(iter(stops), first(END_NAMES))
    if end is None:
        end = pad
    return SpecialIds(size, pad, first(CLS_NAMES), first(SEP_NAMES), end, tuple(dict.fromkeys((end, *stops))))


def as_transformers(tokenizer: Tokenizer, max_tokens: int, takes_types: bool, ends: bool = False) -> Any:
    """The tokenizer as transformers', its special tokens named, padding and truncation on the right.

    takes_types: whether the model takes token_type_ids. ends: whether [CLS] and [SEP] begin and end what is generated.
    """
    from transformers import PreTrainedTokenizerFast

    padding, named = tokenizer.padding, dict(named_tokens(tokenizer))
    assert padding is not None, "train_tokenizer and load_tokenizer set it"
    template, _ = named.pop("chat_template", None), named.pop("eos_token_id", None)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    ending = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<|im_end|>")
    names = {
        "unk_token": ("[UNK]", "<unk>"), "cls_token": ("[CLS]", "<s>"), "sep_token": ("[SEP]", "</s>"),
        "mask_token": ("[MASK]", "<mask>"), "eos_token": (*ending, "[SEP]") if ends else ending,
        "bos_token": ("<s>", "[CLS]") if ends else (),
    }  # fmt: skip
    tokens = {key: next((t for t in values if t in special), None) for key, values in names.items()}
    tokens |= {key: token for key, token in named.items() if tokenizer.token_to_id(token) is not None}
    tokens["pad_token"] = padding["pad_token"]
    stock = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="right", truncation_side="right",
        model_max_length=max_tokens,
        model_input_names=["input_ids", *(["token_type_ids"] if takes_types else []), "attention_mask"],
        **{key: token for key, token in tokens.items() if token is not None},
    )  # fmt: skip
    stock.chat_template = template
    return stock


def fingerprint(tokenizer: Tokenizer, ends: bool = False) -> str:
    """A name for what the tokenizer does; with the ends of answers where they are not the ones that END_NAMES gives."""
    content = tokenizer.to_str()
    special = special_ids(tokenizer)
    unnamed = next((i for i in map(tokenizer.token_to_id, END_NAMES) if i is not None), special.pad)
    if ends and special.ends != (unnamed,):
        content += json.dumps(special.ends)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def encode(
    tokenizer: Tokenizer, batches: Iterable[list[str]], max_tokens: int, counts: Counts | None = None
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """For each batch of texts: all its token ids in one array, and the number of them in each text.

    Texts are cut at `max_tokens`, special tokens included. counts: what that loses is added to it.
    """
    unknown = unknown_id(tokenizer)
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.no_padding()
    plain.enable_truncation(max_tokens)
    for texts in batches:
        encodings = plain.encode_batch_fast(texts)
        if counts is not None:
            counts.add(encodings, unknown)
        ids = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum()))
        yield flat, lengths
