"""What a model of images and text reads of a class (model.head=words): its description, as tokens.

A pretrained model's tokenizer makes them. In a model that is built from model.config each word is a token, by a hash:
there is no vocabulary to keep, and a word that no class of training had has a token too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from distmeta.errors import InputError, cut
from distmeta.tasks.prompts import LabelTokens, check_labels, plain_copy

if TYPE_CHECKING:
    from distmeta.config import Config, DataConfig

WORD = re.compile(r"[^\W_]+")


def described(label: str, data: DataConfig) -> str:
    """The description of a class: by the template or the table of data.descriptions, else its label's own words."""
    by = data.descriptions
    return by.replace("{label}", label) if isinstance(by, str) else (by or {}).get(label, label)


def hashed(text: str, vocabulary: int) -> tuple[int, ...]:
    """A token for each word, and the last of the vocabulary for the end."""
    words = (hashlib.blake2b(word.encode(), digest_size=8).digest() for word in WORD.findall(text.lower()))
    return *(int.from_bytes(word, "big") % (vocabulary - 1) for word in words), vocabulary - 1


def description_tokens(config: Config, vocabulary: int) -> LabelTokens:
    """The tokens of classes by their labels. vocabulary: of a model that is not pretrained. Raises InputError."""
    from distmeta.tasks.tokenizer import load_tokenizer

    most, pretrained = config.model.answer_tokens, config.model.pretrained
    tokenizer = plain_copy(load_tokenizer(pretrained)) if pretrained is not None else None

    @lru_cache(maxsize=1 << 16)
    def words(label: str) -> tuple[int, ...]:
        text = described(label, config.data)
        tokens = hashed(text, vocabulary) if tokenizer is None else tuple(tokenizer.encode(text).ids)
        if len(tokens) > most:
            raise InputError(
                f"model.head = words: the description '{cut(text, 60)}' has {len(tokens)} tokens, and may have {most}; "
                "raise model.answer_tokens, or shorten it (data.descriptions)"
            )
        return tokens

    return LabelTokens((), (), (), (), words, most)


def check_words(labels: Sequence[str], config: Config) -> None:
    """Raises InputError for a label of the data that the model cannot read or say; at the start of a run."""
    if config.model.head != "words":
        check_labels(labels, config)
        return
    vocabulary = config.model.config.get("text_config", {}).get("vocab_size", 2)
    description_tokens(config, vocabulary).of(labels)
