"""Test that a page is one file that fetches nothing, and that it can be recognised."""

from __future__ import annotations

import base64

from observed import Observed

from emseg.pages.markup import tag
from emseg.pages.page import amount, document, facts, is_page, paragraph, picture, table

HOSTILE = "</style><script>alert('x')</script>"


def test_a_page_is_known_again() -> None:
    page = document("title", [], {}).encode()
    assert is_page(page[:1000])
    assert not is_page(page[1:])
    assert not is_page(b"<!DOCTYPE html>\n<html><head><title>mine</title></head></html>")


def test_text_stays_text() -> None:
    contents = (
        paragraph(HOSTILE, kind="note"),
        facts((HOSTILE, HOSTILE), ("nobody knows", None)),
        table([HOSTILE, "n"], [(HOSTILE, 3)], numbers={"n"}),
    )
    seen = Observed(document(HOSTILE, [paragraph(HOSTILE)], {HOSTILE: contents}))
    names = [name for name, _ in seen.elements]
    assert "script" not in names
    assert names.count("style") == 1
    assert seen.text.count(HOSTILE) == 10
    assert "nobody knows" not in seen.text


def test_each_section_is_found_from_the_top() -> None:
    seen = Observed(document("title", [], {"one": (), "two": (paragraph("words"),)}))
    links = [attributes["href"] for name, attributes in seen.elements if name == "a"]
    assert links == [f"#{attributes['id']}" for name, attributes in seen.elements if name == "h2"] == ["#s0", "#s1"]


def test_a_picture_is_in_the_page() -> None:
    drawn = Observed(picture(b"PNG", (3, 4), "caption", [tag("rect", width=1)]))
    (image,) = (attributes for name, attributes in drawn.elements if name == "image")
    assert image["href"] == "data:image/png;base64," + base64.b64encode(b"PNG").decode()
    assert [name for name, _ in drawn.elements] == ["svg", "title", "image", "rect"]


def test_amounts() -> None:
    assert [amount(voxels) for voxels in (0, 999_999, 10**6, 2 * 10**9, 10**13)] == [
        "0 voxels",
        "999,999 voxels",
        "1 megavoxels",
        "2 gigavoxels",
        "10 teravoxels",
    ]
