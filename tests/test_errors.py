"""Messages for a person."""

import pytest

from distmeta.errors import cut, nearest


@pytest.mark.parametrize("most", range(12, 60))
def test_a_text_that_is_cut_ends_at_a_word_and_says_that_it_goes_on(most):
    text = "the rank  that looks furthest\nahead has the least share"
    line = cut(text, most)
    assert len(line) <= most and "\n" not in line
    words = " ".join(text.split())
    assert line == words or (line.endswith(" ...") and words.startswith(line.removesuffix("...")))
    assert len(cut("x" * 99, most)) == most  # no word ends there


def test_only_a_close_name_is_suggested():
    assert nearest("inner.lrate", ["inner.lr", "outer.lr", "run.dir"]) == " Did you mean 'inner.lr'?"
    assert nearest("zzz", ["inner.lr"]) == ""
