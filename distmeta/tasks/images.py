"""Images as texts: a letter for each brightness of each pixel, channel by channel and row by row.

An image of C channels, H x W, is a text of C H W letters of an alphabet of 256, and a token is a brightness from 0 to
255, as in Image GPT (Chen et al. 2020, section 2.1) without its palette. So what holds for texts holds for images: they
are sampled, batched, kept and sent as rows of tokens. Only here, and in distmeta.models.images, is a row an image.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from distmeta.errors import InputError, cut
from distmeta.tasks.sources import KINDS, Source
from distmeta.tasks.splits import WRITTEN

Size = tuple[int, int, int]  # channels, height, width

FILES = {".png": "image", ".jpg": "image", ".jpeg": "image"}
FORMATS = ("PNG", "JPEG")
FIRST = 0x2800  # the letter of brightness 0: the 256 Braille patterns, which have no case and are no white space
PAD = 256  # the token of padding, which no image has
MOST_PIXELS = 1 << 25  # of an image that is decoded: a small file may unfold to a huge one
BATCH = 256
DATA = "data:image/"


def kinds(size: Size | None) -> Mapping[str, str]:
    """The files that may hold examples, by suffix; size: None where these are texts."""
    return KINDS if size is None else {**KINDS, **FILES}


def is_image(text: str, size: Size) -> bool:
    """Whether a text is an image of this size, as `letters` writes it."""
    return len(text) == size[0] * size[1] * size[2] and all(FIRST <= ord(letter) < FIRST + 256 for letter in set(text))


def letters(pixels: NDArray[np.uint8]) -> str:
    """The text of an image [C, H, W]."""
    return (pixels.astype("<u2").ravel() + FIRST).tobytes().decode("utf-16-le")


def pixels(texts: Sequence[str]) -> NDArray[np.int32]:
    """The brightness of every letter of texts, one after another."""
    return np.frombuffer("".join(texts).encode("utf-16-le"), "<u2").astype(np.int32) - FIRST


def make_tokenizer() -> Tokenizer:
    """The tokenizer of images: a letter is a token, its number the brightness."""
    vocabulary = {chr(FIRST + value): value for value in range(256)} | {"[PAD]": PAD}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.add_special_tokens(["[PAD]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.enable_padding(pad_id=PAD, pad_token="[PAD]")
    return tokenizer


def encode(batches: Iterator[list[str]], size: Size) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """As `distmeta.tasks.tokenizer.encode`, of images."""
    length = size[0] * size[1] * size[2]
    for texts in batches:
        yield pixels(texts), np.full(len(texts), length)


def read_image(content: bytes, size: Size, where: str) -> str:
    """The text of a PNG or JPEG file, brought to `size`. Raises InputError that begins with `where`."""
    from PIL import Image, UnidentifiedImageError

    channels, height, width = size
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as file:
            image: Image.Image = file
            if image.width * image.height > MOST_PIXELS:
                raise InputError(
                    f"{where}: {image.width} x {image.height} pixels are more than {MOST_PIXELS:,}; make it smaller"
                )
            if image.mode.startswith("I"):
                raise InputError(f"{where}: its pixels have 16 bits; write them with 8")
            if "A" in image.getbands() or "transparency" in image.info:
                rgba = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            plain = image.convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError:
        raise InputError(f"{where}: neither a PNG nor a JPEG image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow raises for one
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where}: the image cannot be decoded ({cut(str(error), 120)}); write it again") from None
    if plain.size != (width, height):
        plain = plain.resize((width, height), Image.Resampling.BILINEAR)
    return letters(np.asarray(plain, np.uint8).reshape(height, width, channels).transpose(2, 0, 1))


def as_text(value: Any, size: Size, where: str, folder: Path | None = None) -> str:
    """The text of an image as a person gives it: bytes of a file, a pathlib.Path, a data URI, an array [H, W] or
    [H, W, C] of 0 to 255, or such a text. Raises InputError.

    folder: where a plain string may name a file that lies in it; without one a string never opens a file, since it may
    come from somebody else.
    """
    if isinstance(value, bytes):
        return read_image(value, size, where)
    if isinstance(value, Path):
        return read_image(_content(value, where), size, where)
    if isinstance(value, np.ndarray):
        return _of_array(value, size, where)
    if isinstance(value, str) and value.startswith(DATA):
        try:
            return read_image(base64.b64decode(value.partition(",")[2], validate=True), size, where)
        except binascii.Error:
            raise InputError(f"{where}: not a data URI in base64, such as data:image/png;base64,...") from None
    if isinstance(value, str) and is_image(value, size):
        return value
    if isinstance(value, str) and folder is not None:
        place = PurePath(value)
        if place.is_absolute() or ".." in place.parts:
            raise InputError(f"{where}: {cut(value, 60)} lies outside of {folder}; name images from there")
        return read_image(_content(folder / place, where), size, where)
    raise InputError(
        f"{where}: not an image; give a data URI (data:image/png;base64,...), in Python also bytes, a pathlib.Path or "
        "an array"
    )


def _of_array(value: NDArray[Any], size: Size, where: str) -> str:
    from PIL import Image

    image = value[:, :, 0] if value.ndim == 3 and value.shape[2] == 1 else value
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
        raise InputError(f"{where}: an array of {value.dtype} {list(value.shape)}; give uint8 [H, W] or [H, W, C]")
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return read_image(file.getvalue(), size, where)


def _content(path: Path, where: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{where}: {path}: {error.strerror or error}") from None


def to_uri(text: str, size: Size) -> str:
    """An image's text as a data URI, for a page to show."""
    from PIL import Image

    channels, height, width = size
    values = pixels([text]).astype(np.uint8).reshape(channels, height, width).transpose(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(values[:, :, 0] if channels == 1 else values).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def from_column(column: pa.Array, size: Size, named: str, source: Source, numbers: NDArray[Any]) -> pa.Array:
    """The texts of a table's column of images: bytes, {bytes, path} as Hugging Face writes them, data URIs, or names of
    files beside the table. Raises InputError."""
    folder = Path(source.path).parent
    word = "line" if source.kind == "jsonl" else "row"
    out = []
    for number, value in zip(numbers, column.to_pylist(), strict=True):
        where = f"{source.name} {word} {number}, column {named}"
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if value is None:
            raise InputError(f"{where}: null; leave the row out")
        out.append(as_text(value, size, where, folder))
    return pa.array(out, pa.large_string())


def read_files(sources: Sequence[Source], size: Size) -> Iterator[pa.RecordBatch]:
    """Batches with columns text, label and, where folders name it, split, of image files in a folder for each class.

    The label is the path of the folder below the one that all have in common (alphabet/character), without a first
    folder that is called train, validation or test, which is the split. Raises InputError.
    """
    above = os.path.commonpath([PurePath(source.path).parent.parent for source in sources])
    rows = [(source, PurePath(source.path).parent.relative_to(above).parts) for source in sources]
    splits = {parts[0].lower() for _, parts in rows if len(parts) > 1}
    has_split = "train" in {WRITTEN.get(word) for word in splits} and splits <= WRITTEN.keys()
    names = ("text", "label", "split") if has_split else ("text", "label")
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        columns: dict[str, list[str]] = {name: [] for name in names}
        for source, parts in part:
            with source.open() as stream:
                columns["text"].append(read_image(stream.read(), size, source.name))
            columns["label"].append("/".join(parts[has_split:]))
            if has_split:
                columns["split"].append(WRITTEN[parts[0].lower()])
        yield pa.RecordBatch.from_pydict({name: pa.array(v, pa.large_string()) for name, v in columns.items()})


def turned(tokens: NDArray[np.int32], turns: NDArray[np.int64], size: Size) -> NDArray[np.int32]:
    """Images [n, C H W], each turned by turns % 4 quarters of a circle, of square ones, and mirrored first from 4 on;
    turns [n]."""
    images = tokens.reshape(-1, *size)
    out = np.empty_like(images)
    for turn in np.unique(turns):
        chosen = images[turns == turn]
        out[turns == turn] = np.rot90(chosen[..., ::-1] if turn >= 4 else chosen, turn % 4, (2, 3))
    return out.reshape(tokens.shape)
