"""Test that text in a page is parsed by a browser as the original text, and never as an element."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from observed import Observed

from emseg.pages.markup import Markup, joined, tag
from emseg_core.printable import printable

TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from("<>&\"'/="), max_size=30)


@given(TEXT, TEXT, TEXT)
def test_nothing_gets_out_of_its_place(before: str, inside: str, attribute: str) -> None:
    seen = Observed(tag("p", before, tag("b", inside), class_=attribute, data_of=attribute))
    shown = printable(attribute, keep="\n\t")
    assert seen.elements == [("p", {"class": shown, "data-of": shown}), ("b", {})]
    assert seen.text == printable(before, keep="\n\t") + printable(inside, keep="\n\t")


def test_what_is_markup_is_not_escaped_again() -> None:
    once = joined(["<", tag("i", "&")])
    assert isinstance(once, Markup)
    assert joined([once]) == once == "&lt;<i>&amp;</i>"


def test_an_element_without_an_end() -> None:
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'
