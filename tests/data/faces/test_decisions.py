import pytest

from lit_insert.data.faces.decisions import Decision, FaceRules, judge, read_decisions, write_decisions
from lit_insert.data.faces.detection import Face
from lit_insert.errors import InputError

EYES = ((10.0, 10.0), (20.0, 10.0))


def face(side=50.0, weight=5.0, **options):
    return Face((0.0, 0.0, side, side), weight, **options)


@pytest.mark.parametrize(
    ("faces", "reason"),
    [
        ([], "no face"),
        ([face(weight=1.9)], "face too unsure"),
        ([face(side=9)], "face too small"),
        ([face(), face(), face()], "too many faces"),
        ([face(), face(weight=1), face(side=5)], ""),
    ],
)
def test_thresholds(faces, reason):
    counting, found = judge(faces, (100, 200), FaceRules(max_faces=2))
    assert found == reason
    assert len(counting) == (0 if reason else 1)


def test_eyes_and_person():
    assert judge([face()], (100, 100), FaceRules(require_eyes=True)) == ([], "eyes not found")
    seen = face(eyes=EYES)
    assert judge([face(), seen], (100, 100), FaceRules(require_eyes=True)) == ([seen], "")
    near, far = face(similarity=0.5), face(similarity=0.9)
    assert judge([face(similarity=0.1)], (100, 100), FaceRules()) == ([], "another person")
    assert judge([near, far], (100, 100), FaceRules()) == ([far, near], "")
    many = [face()] * 9
    assert judge(many, (100, 100), FaceRules(max_faces=0)) == (many, "")


def test_rules_are_checked():
    with pytest.raises(InputError, match="min_ratio"):
        FaceRules(min_ratio=2)
    with pytest.raises(InputError, match="max_faces"):
        FaceRules(max_faces=-1)


def test_the_table_comes_back_and_is_left_alone(tmp_path):
    path = tmp_path / "decisions.csv"
    kept = Decision("b, c.png", 1, boxes=2, faces=1, outputs="0_b.png/0_b+hat.png").about(
        face(eyes=EYES, similarity=0.25), (100, 200)
    )
    table = {"b, c.png": kept, "a.png": Decision("a.png", reason="no face")}
    write_decisions(path, table)
    assert read_decisions(path) == table
    assert kept.files == ["0_b.png", "0_b+hat.png"]
    assert (kept.weight, kept.ratio, kept.similarity, kept.eyes) == ("5.000", "0.500", "0.250", "10.0 10.0 20.0 10.0")
    assert (kept.x0, kept.y0, kept.x1, kept.y1) == ("0", "0", "50", "50")
    assert [line.split(",")[0] for line in path.read_text().splitlines()] == ["input", "a.png", '"b']
    before = path.stat().st_mtime_ns
    write_decisions(path, dict(reversed(table.items())))
    assert path.stat().st_mtime_ns == before
    assert read_decisions(tmp_path / "none.csv") == {}


def test_another_table_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"x\.csv: is not a table of decisions"):
        read_decisions(tmp_path / "x.csv")
    write_decisions(tmp_path / "y.csv", {"a": Decision("a")})
    text = (tmp_path / "y.csv").read_text()
    (tmp_path / "y.csv").write_text(text.replace("a,0", "a,zero"))
    with pytest.raises(InputError, match="a line is cut short"):
        read_decisions(tmp_path / "y.csv")
