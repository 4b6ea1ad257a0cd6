"""Labels written as the model writes."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ssvd.training.text_style import STYLES, text_style, write_in

words = st.text("abcdefghijklmnopqrstuvwxyz '", min_size=1).map(lambda text: " ".join(text.split()))
letters = words.filter(lambda text: any(letter.isalpha() for letter in text))


@pytest.mark.parametrize(
    ("texts", "style"),
    [
        (["hello there", "it's 5 o'clock"], "lower"),
        (["HELLO THERE", "I'M HERE"], "upper"),
        (["Hello there.", 'He said "No!"', "Is it Anna?"], "sentence"),
        (["Hello there", "Anna came"], "keep"),
        (["hello", "HELLO", "Hello."], "keep"),
        (["hello", "hello", "HELLO", "123", "..."], "lower"),
        (["WE MET", "we met", "WE MET", "Düsseldorf.", "ÄRGER"], "upper"),
        ([], "keep"),
        (["", "12"], "keep"),
    ],
)
def test_style_is_that_of_most_texts_with_letters(texts, style):
    assert text_style(texts) == style


@pytest.mark.parametrize(
    ("style", "text", "written"),
    [
        ("lower", "HELLO I AM", "hello i am"),
        ("upper", "hello i'm", "HELLO I'M"),
        ("sentence", "HELLO I'M IN IRAQ", "Hello I'm in iraq."),
        ("sentence", "is it?", "Is it?"),
        ("sentence", "ß", "ß."),
        ("keep", "hELLO", "hELLO"),
    ],
)
def test_text_is_written_in_a_style(style, text, written):
    assert write_in(style, text) == written


@given(letters, st.sampled_from(["lower", "upper", "sentence"]))
def test_what_is_written_in_a_style_is_recognised_as_it(text, style):
    written = write_in(style, text)
    assume(style != "sentence" or written not in (written.lower(), written.upper()))  # as "1 a." and "I."
    assert text_style([written]) == style


@given(st.text(), st.sampled_from(STYLES))
def test_writing_twice_changes_no_more(text, style):
    once = write_in(style, text)
    assert write_in(style, once) == once
