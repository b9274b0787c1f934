"""Tokenizers of the `tokenizers` library: a pretrained one as it is, or one trained on the meta-train text.

A trained tokenizer has [PAD] [UNK] [CLS] [SEP] [MASK] and the template [CLS] text [SEP]. A pretrained one
keeps its own special tokens and template. The pad token is recorded as the tokenizer's padding, so that its
one JSON file says everything that is needed to use it again.
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

from distmeta.errors import InputError

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Where a pretrained directory does not name them, in this order; a decoder pads with its end token.
PAD_NAMES = ["[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "</s>", "<eos>"]
END_NAMES = ["[SEP]", "</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<eos>", "<sep>"]  # of an answer
CLS_NAMES, SEP_NAMES = ["[CLS]", "<s>", "<cls>"], ["[SEP]", "</s>", "<sep>"]


@dataclass(frozen=True)
class SpecialIds:
    vocab_size: int  # one more than the largest id
    pad: int
    cls: int | None
    sep: int | None
    end: int  # of an answer; the pad token where the tokenizer names none


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
        raise InputError(f"model.tokenizer = {level!r}: one of word, wordpiece, character, bpe")
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
    else:
        tokenizer, named = _from_transformers(str(source))
    _set_padding(tokenizer, named, str(source))
    return tokenizer


def _from_transformers(source: str) -> tuple[Tokenizer, dict[str, str]]:
    if source.startswith(("/", ".", "~")) and not Path(source).exists():
        raise InputError(f"model.pretrained = {source}: no such directory; a Hugging Face directory, or a hub id")
    from transformers import AutoTokenizer

    try:
        auto = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        tokenizer = Tokenizer.from_str(auto.backend_tokenizer.to_str())
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"model.pretrained = {source}: no tokenizer can be loaded: {reason}") from None
    names = ("pad_token", "eos_token")
    return tokenizer, {name: str(getattr(auto, name)) for name in names if getattr(auto, name, None)}


def _named_tokens(directory: Path) -> dict[str, str]:
    """pad_token and eos_token as the directory's configuration files name them."""
    found: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            content = json.loads((directory / file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        for name in ("pad_token", "eos_token"):
            token: Any = content.get(name)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                found[name] = token
    return found


def _set_padding(tokenizer: Tokenizer, named: dict[str, str], source: str) -> None:
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
    end = first(END_NAMES)
    return SpecialIds(size, pad, first(CLS_NAMES), first(SEP_NAMES), pad if end is None else end)


def as_transformers(tokenizer: Tokenizer, max_tokens: int, takes_types: bool, ends: bool = False) -> Any:
    """The tokenizer as transformers', its special tokens named, padding and truncation on the right.

    takes_types: whether the model takes token_type_ids. ends: whether [CLS] and [SEP] begin and end what is generated.
    """
    from transformers import PreTrainedTokenizerFast

    padding = tokenizer.padding
    assert padding is not None, "train_tokenizer and load_tokenizer set it"
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    ending = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<|im_end|>")
    names = {
        "unk_token": ("[UNK]", "<unk>"), "cls_token": ("[CLS]", "<s>"), "sep_token": ("[SEP]", "</s>"),
        "mask_token": ("[MASK]", "<mask>"), "eos_token": (*ending, "[SEP]") if ends else ending,
        "bos_token": ("<s>", "[CLS]") if ends else (),
    }  # fmt: skip
    tokens = {key: next((t for t in found if t in special), None) for key, found in names.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=padding["pad_token"], padding_side="right", truncation_side="right",
        model_max_length=max_tokens,
        model_input_names=["input_ids", *(["token_type_ids"] if takes_types else []), "attention_mask"],
        **{key: token for key, token in tokens.items() if token is not None},
    )  # fmt: skip


def fingerprint(tokenizer: Tokenizer) -> str:
    return hashlib.blake2b(tokenizer.to_str().encode(), digest_size=16).hexdigest()


def encode(
    tokenizer: Tokenizer, batches: Iterable[list[str]], max_tokens: int
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """For each batch of texts: all its token ids in one array, and the number of them in each text.

    Texts are cut at `max_tokens`, special tokens included.
    """
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.no_padding()
    plain.enable_truncation(max_tokens)
    for texts in batches:
        ids = [encoding.ids for encoding in plain.encode_batch_fast(texts)]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum()))
        yield flat, lengths
