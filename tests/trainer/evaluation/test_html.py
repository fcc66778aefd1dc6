"""The HTML page: one file, everything escaped, nothing fetched, readable structure."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rainspark.data.errors import DataError
from rainspark.trainer.evaluation.html import SCORE_NOTES, Picture, Section, Table, write_report

ATTACK = "<script>alert('x')</script>\"&$"


def _image(kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(buffer, format=kind)
    return buffer.getvalue()


def _write(folder: Path, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "title": "A title",
        "summary": "In short.",
        "data": {"Split": "test"},
        "sections": [],
        "command": "python trainer/evaluate.py",
        "versions": {"torch": "2.15.0"},
    }
    return write_report(folder, **(arguments | changes)).read_text(encoding="utf-8")


class _Page(HTMLParser):
    """Tags, their attributes and the text of a page; tags that are not closed in order are an error."""

    VOID = frozenset({"meta", "img", "br", "wbr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text.append(data)

    def names(self) -> list[str]:
        return [tag for tag, _ in self.tags]


def _everything(text: str, image: bytes) -> dict[str, Any]:
    return {
        "title": text,
        "summary": text,
        "data": {text: text},
        "sections": [
            Section(
                heading=text,
                blocks=[
                    text,
                    Table(head=[text, text], rows=[[text, text], [text, text]], caption=text, best=frozenset({(1, 1)})),
                    Picture(image=image, alt=text, caption=text),
                    Picture(image=image, alt=text, caption=text, wide=True),
                ],
            )
        ],
        "caveats": [text],
        "command": text,
        "versions": {text: text},
    }


def test_everything_that_a_user_names_is_escaped(tmp_path: Path) -> None:
    page = _write(tmp_path, **_everything(ATTACK, _image()))
    assert "<script" not in page.lower()
    parsed = _Page(page)
    assert "script" not in parsed.names()
    # Title (twice), summary, data, heading, paragraph, caption, 2 + 4 cells, 2 figures, caveat, command, versions.
    assert "".join(parsed.text).count(ATTACK) == 20
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert [image["alt"] for image in images] == [ATTACK] * 2


@given(text=st.text(max_size=60))
def test_any_text_stands_in_the_page_as_it_is(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    page = _write(tmp_path_factory.mktemp("page"), **_everything(text, _image()))
    allowed = {
        "html", "head", "meta", "title", "style", "body", "main", "header", "h1", "p", "section", "h2", "ul", "li",
        "dl", "div", "dt", "dd", "table", "caption", "thead", "tbody", "tr", "th", "td", "b", "figure", "figcaption",
        "img", "pre", "code", "wbr",
    }  # fmt: skip
    assert set(_Page(page).names()) <= allowed


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path) -> None:
    page = _write(tmp_path, **_everything("plain", _image()))
    assert re.search(r"https?://|//[a-z]|url\(|@import", page) is None
    parsed = _Page(page)
    assert not {"script", "link", "iframe", "object", "form", "video"} & set(parsed.names())
    policies = [a["content"] for tag, a in parsed.tags if tag == "meta" and a.get("http-equiv")]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    for tag, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "href"]
        if tag == "img":
            assert str(attributes["src"]).startswith("data:image/")


def test_pictures_stand_in_the_page_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "b.gif").write_bytes(_image("GIF"))
    blocks = [Picture(image=_image(), alt="a"), Picture(image=tmp_path / "b.gif", alt="b")]
    parsed = _Page(_write(tmp_path, sections=[Section(heading="h", blocks=blocks)]))
    sources = [str(attributes["src"]) for tag, attributes in parsed.tags if tag == "img"]
    assert [source.partition(",")[0] for source in sources] == ["data:image/png;base64", "data:image/gif;base64"]
    assert [base64.b64decode(source.partition(",")[2]) for source in sources] == [_image(), _image("GIF")]


def test_headings_and_tables_have_their_structure(tmp_path: Path) -> None:
    table = Table(head=["Model", "CSI"], rows=[["a", "0.1"], ["b", "0.2"]], caption="Scores", best=frozenset({(1, 1)}))
    parsed = _Page(_write(tmp_path, sections=[Section(heading="Skill", blocks=[table])], caveats=["A single day."]))
    names = parsed.names()
    assert names.count("h1") == 1
    assert names.index("h1") < names.index("h2")
    assert [attributes.get("scope") for tag, attributes in parsed.tags if tag == "th"] == ["col", "col", "row", "row"]
    assert names.count("b") == 1
    scrolls = [attributes for tag, attributes in parsed.tags if tag == "div" and attributes.get("class") == "scroll"]
    assert [attributes["aria-label"] for attributes in scrolls] == ["Scores"]
    text = "".join(parsed.text)
    assert text.index("Read this first") < text.index("What was scored") < text.index("Skill")
    for score, note in SCORE_NOTES.items():
        assert score in text
        assert note in text


def test_names_break_after_an_underscore(tmp_path: Path) -> None:
    table = Table(head=["Model", "a_b"], rows=[["damped_extrapolation", "x_y"]])
    section = Section(heading="CSI less that of damped_extrapolation", blocks=[table])
    page = _write(tmp_path, data={"damped_extrapolation": "c_d"}, sections=[section])
    for around in ("<dt>{}</dt>", "<th scope=row>{}</th>", "<h2>CSI less that of {}</h2>"):
        assert around.format("damped_<wbr>extrapolation") in page
    assert "damped_extrapolation" in "".join(_Page(page).text)


def test_only_the_scores_that_are_asked_for_are_explained(tmp_path: Path) -> None:
    page = _write(tmp_path, scores=["CSI"])
    assert "Critical success index" in page
    assert "Heidke" not in page


def test_what_cannot_be_shown_is_named(tmp_path: Path) -> None:
    def _with(block: Any) -> dict[str, Any]:
        return {"sections": [Section(heading="h", blocks=[block])]}

    with pytest.raises(ValueError, match="'a' is neither PNG nor GIF"):
        _write(tmp_path, **_with(Picture(image=b"<svg/>", alt="a")))
    with pytest.raises(DataError, match=r"none\.png: could not read the picture"):
        _write(tmp_path, **_with(Picture(image=tmp_path / "none.png", alt="a")))
    with pytest.raises(ValueError, match="row 0 of 'c' has 1 cells; expected 2"):
        _write(tmp_path, **_with(Table(head=["a", "b"], rows=[["1"]], caption="c")))
    with pytest.raises(ValueError, match="no note for the score 'XYZ'"):
        _write(tmp_path, scores=["XYZ"])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(DataError, match="out"):
        _write(tmp_path / "out")
