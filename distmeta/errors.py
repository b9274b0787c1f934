"""Errors that a person caused and a person can mend."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable


class InputError(ValueError):
    """Unusable input. The message is one line: what is wrong, where, what is allowed, the mend.

    The command line prints the message alone and exits with 2.
    """


class ProgramError(RuntimeError):
    """A mistake of the program, which another attempt would meet again; the message is one line."""


def cut(text: str, most: int) -> str:
    """A text on one line, of at most `most` characters: what is too long ends at a word, with "..."."""
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    shortened = textwrap.shorten(line, most, placeholder=" ...")
    return shortened if shortened != "..." else f"{line[: most - 3]}..."


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.5) -> str:
    """ " Did you mean 'x'?" for the closest of `choices`, or an empty string when none is close.

    cutoff: the least likeness, from 0 to 1.
    """
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=cutoff)
    return f" Did you mean '{matches[0]}'?" if matches else ""
