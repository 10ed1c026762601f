import base64
import io
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from lit_insert.report import Report


class Balanced(HTMLParser):
    """Checks that every opened tag is closed in order."""

    VOID = frozenset({"meta", "img", "line", "rect", "circle", "polyline"})

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(report: Report) -> Balanced:
    parser = Balanced()
    parser.feed(report.html())
    assert parser.open == []
    return parser


@pytest.fixture
def full() -> Report:
    report = Report("Pocket <insert>", "a & b")
    report.heading("Numbers").text("first\n\nsecond <b>")
    report.table(["name", "value", "n"], [["psnr", 31.23456, 512], ["copy", None, 512]])
    photo = Image.effect_noise((900, 300), 40).convert("RGB")
    report.images([[photo, torch.zeros(3, 32, 32), "text", None]], ["photo", "tiny", "t", "gap"], cell_px=96)
    report.curve({"train": [(0, 1.0), (50, 0.5), (100, float("nan"))], "val": [(50, 0.6)]}, "step", "loss")
    return report


def test_page_is_well_formed_and_self_contained(full, tmp_path):
    parser = parse(full)
    html = full.save(tmp_path / "deep" / "r.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert not re.search(r"https?://|url\(", html)
    assert all(a["src"].startswith("data:image/") for t, a in parser.seen if t == "img")
    assert "prefers-color-scheme:dark" in html
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["r.html"]


def test_texts_are_escaped(full):
    html = full.html()
    assert "Pocket &lt;insert&gt;" in html
    assert "second &lt;b&gt;" in html
    assert "<b>" not in html


def test_pictures_keep_aspect_and_are_shrunk(full):
    photo, tiny = [a for t, a in parse(full).seen if t == "img"]
    assert (photo["width"], photo["height"]) == ("96", "32")
    data = base64.b64decode(photo["src"].split(",")[1])
    assert Image.open(io.BytesIO(data)).size == (192, 64)
    assert tiny["class"] == "small"
    assert tiny["alt"] == "tiny"
    data = base64.b64decode(tiny["src"].split(",")[1])
    assert Image.open(io.BytesIO(data)).getpixel((0, 0)) == (128, 128, 128)


def test_table_formats_numbers(full):
    html = full.html()
    assert '<td class="num">31.23</td>' in html
    assert '<td class="num">\N{EN DASH}</td>' in html
    assert "<td>psnr</td>" in html


def points(html: str) -> list[list[tuple[float, float]]]:
    return [
        [tuple(float(v) for v in p.split(",")) for p in line.split()]
        for line in re.findall(r'<polyline points="([^"]+)"', html)
    ]


def test_curve_maps_points_and_drops_nan(full):
    (train,) = points(full.html())
    assert len(train) == 2
    assert train[0][0] < train[1][0]
    assert train[0][1] < train[1][1]  # a higher value stands higher on the page
    assert full.html().count("<circle") == 1


def test_curve_on_log_axis_is_a_line_for_powers():
    report = Report("t").curve({"": [(0, 1), (1, 10), (2, 100), (3, 0)]}, log_y=True)
    (line,) = points(report.html())
    assert len(line) == 3
    assert line[0][1] - line[1][1] == pytest.approx(line[1][1] - line[2][1], abs=0.2)


@pytest.mark.parametrize("values", [[(0, 0.0)], [(3, 2.0), (4, 2.0)], [(0, 1e-9), (1, 2e-9)], [(0, 1e12), (1, -1e12)]])
def test_curve_survives_flat_and_extreme_ranges(values):
    parse(Report("t").curve({"a": values}, "x", "y"))


def test_curve_without_points_says_so():
    assert "No points" in Report("t").curve({"a": [(0, float("inf"))]}).html()
