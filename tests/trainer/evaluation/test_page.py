"""The HTML page: one file, everything escaped, nothing fetched, readable structure."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rainspark.data.errors import DataError
from rainspark.data.shards.index import load_index
from rainspark.data.store.storage import open_storage
from rainspark.data.windows.selection import Selection, select_windows
from rainspark.trainer.evaluation.cases import Chosen
from rainspark.trainer.evaluation.drawing import field_pictures
from rainspark.trainer.evaluation.drawing_ensembles import ensemble_pictures
from rainspark.trainer.evaluation.page import write_page
from rainspark.trainer.evaluation.plan import Plan
from rainspark.trainer.evaluation.result import Evaluation
from rainspark.trainer.evaluation.tables import build_tables
from tests.integration.runs import make_shards
from tests.trainer.evaluation.cases import SETTINGS, ensemble_evaluation, evaluation_of, rows_of

ATTACK = "<script>alert('x')</script>\"&$"
CASE = Chosen(row=0, why="the most rain", issue_s=1_600_041_600)
PICTURES = ("csi", "bias", "mse", "rain_rates", "fss")
ENSEMBLE_PICTURES = ("crps", "spread", "ranks", "spectra", "reliability", "roc")
VOID = frozenset({"meta", "img", "br", "wbr"})


class ParsedPage(HTMLParser):
    """Tags, their attributes and the text of a page; tags that are not closed in order are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    storage = open_storage(make_shards(tmp_path_factory.mktemp("page"), hours=1, size=32))
    index = load_index(storage)
    table = select_windows(index, Selection(window=6))
    rows = np.arange(len(table))
    return Plan(
        storage=storage,
        index=index,
        table=table,
        row_n=rows,
        issue_s=rows,
        frames_in=3,
        frames_out=3,
        settings=SETTINGS,
        spans=(),
        training=None,
    )


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name in (*(f"{name}.png" for name in PICTURES), f"{CASE.stem}.png", f"{CASE.stem}.gif"):
        Image.new("RGB", (4, len(name)), "red").save(folder / name)
    return folder


def page_of(folder: Path, plan: Plan, pictures: Path, text: str) -> str:
    """Write a page in which everything that a user or a file names is some text."""
    origin = replace(plan.index.origins[0], source=text, licence=text)
    named = replace(plan, index=replace(plan.index, origins=(origin,)), caveats=(text,))
    about = {
        text: {"kind": "run", "model": text, "step": 1, "source": text, "checkpoint": text},
        "faded": {"kind": "damped_extrapolation", "mean_mmh": 1, "factors": [0.5, 0.25]},
        "members": {"kind": "run", "model": "m", "step": 2, "source": "s", "checkpoint": "c", "members": 8},
        "steps": {"kind": "steps", "members": 16, "levels": 6},
        "dgmr": {"kind": "netcdf", "folder": "DGMR", "forecasts": 24},
        "mine": {"kind": "python", "class": "package.module:Class", "frames_in": 4},
    }
    models, cases = {"first": rows_of(0.95), "second": rows_of(0.2)}, [replace(CASE, why=text)]
    evaluation = evaluation_of(models, plan=named, cases=cases, command=text, about=about)
    first, second = evaluation.scored
    evaluation = replace(evaluation, scored=[replace(first, name=text), second])
    return written(folder, evaluation, pictures)


def written(folder: Path, evaluation: Evaluation, pictures: Path) -> str:
    """Write a page and read it."""
    shown = {
        "Skill at a glance": field_pictures(evaluation),
        "Probabilities at a glance": ensemble_pictures(evaluation),
    }
    path = write_page(folder, evaluation, build_tables(evaluation), shown, open_storage(pictures))
    return path.read_text(encoding="utf-8")


def test_everything_that_a_user_names_is_escaped(tmp_path: Path, plan: Plan, pictures: Path) -> None:
    text = page_of(tmp_path, plan, pictures, ATTACK)
    assert "<script" not in text.lower()
    page = ParsedPage(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "form", "video", "a", "svg"}
    # Title (twice), caveat, radar and licence, the model with three words of its own, 3 captions of pictures, command,
    # the list of models, and a row in each of 3 x 3 score tables, 3 of squared errors, and one of intervals.
    assert page.text.count(ATTACK) >= 3 + 2 + 4 + 1 + 2 + 9 + 3 + 1


def test_nothing_is_fetched_and_nothing_runs(tmp_path: Path, plan: Plan, pictures: Path) -> None:
    text = page_of(tmp_path, plan, pictures, "plain")
    assert re.search(r"https?://|//[a-z]|url\(|@import", text) is None
    page = ParsedPage(text)
    policies = [attributes["content"] for attributes in page.all("meta") if attributes.get("http-equiv")]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "href"]
    names = [*(f"{name}.png" for name in PICTURES), f"{CASE.stem}.png", f"{CASE.stem}.gif"]
    for name, attributes in zip(names, page.all("img"), strict=True):
        kind, _, content = str(attributes["src"]).partition(",")
        assert kind == f"data:image/{name[-3:]};base64"
        assert base64.b64decode(content) == (pictures / name).read_bytes()
        assert attributes["alt"]


def test_headings_and_tables_have_their_structure(tmp_path: Path, plan: Plan, pictures: Path) -> None:
    text = page_of(tmp_path, plan, pictures, "a_name")
    page = ParsedPage(text)
    assert len(page.all("h1")) == 1
    order = (
        *("Read this first", "What was scored", "CSI and how sure", "Skill at a glance", "Forecasts beside the radar"),
        *("Rain above 0.5 mm/h", "Mean squared error", "What the scores mean", "How this page was made"),
    )
    positions = [text.index(f"<h2>{heading}") for heading in order]
    assert positions == sorted(positions)
    assert "By the published protocol" not in text
    assert {attributes["scope"] for attributes in page.all("th")} == {"col", "row"}
    # Of three days nothing is called the best.
    assert not page.all("b")
    labels = [attributes["aria-label"] for attributes in page.all("div") if attributes.get("class") == "scroll"]
    assert labels[:2] == ["CSI and how sure it is, all lead times", "All lead times"]
    # A name may break after an underscore.
    for element in ("<dt>{}</dt>", '<th scope="row">{}</th>'):
        assert element.format("a_<wbr>name") in text
    assert "a_name" in page.text
    assert "1 mm/h, by\n0.50, 0.25" in page.text
    # What each kind of model is.
    for words in (
        "m, step 2, trained on s (c); 8 members",
        "STEPS: S-PROG with noise of the rain's structure: members 16, levels 6",
        "24 forecasts made elsewhere (DGMR)",
        "the class package.module:Class",
    ):
        assert words in page.text


def test_ensembles_have_their_tables_pictures_and_words(tmp_path: Path, plan: Plan) -> None:
    evaluation = ensemble_evaluation(plan=plan, compare_to="persistence", command="x")
    drawn = [*ensemble_pictures(evaluation), *field_pictures(evaluation)]
    assert [picture.name for picture in drawn] == [*ENSEMBLE_PICTURES, *PICTURES]
    for picture in drawn:
        (tmp_path / f"{picture.name}.png").write_bytes(picture.png())
        with Image.open(tmp_path / f"{picture.name}.png") as image:
            assert image.width == 960
    text = written(tmp_path, evaluation, tmp_path)
    page = ParsedPage(text)
    assert len(page.all("img")) == len(drawn)
    order = (
        *("CSI and how sure it is", "CSI less that of sprog", "CRPS: probabilities", "CRPS skill over steps"),
        *("Skill at a glance", "Probabilities at a glance", "Rain above 0.5 mm/h", "Probabilities of rain"),
    )
    positions = [text.index(f"<h2>{heading}") for heading in order]
    assert positions == sorted(positions)
    # What is told apart is bold, and what is not has a sign of its own, not a colour alone.
    assert len(page.all("b")) > 0
    assert page.text.count("≈") > 3
    for words in (
        "Rank histogram",
        "Bold: the best",
        "of 6 days",
        "chosen on these windows",
        "of the pixels",
    ):
        assert words in page.text


def test_a_picture_that_is_gone_and_a_folder_that_is_a_file_are_named(
    tmp_path: Path, plan: Plan, pictures: Path
) -> None:
    with pytest.raises(DataError, match=r"csi\.png"):
        page_of(tmp_path / "page", plan, tmp_path, "x")
    assert not (tmp_path / "page").exists()
    (tmp_path / "out").write_text("x")
    with pytest.raises(DataError, match="out"):
        page_of(tmp_path / "out", plan, pictures, "x")
