import cv2
import numpy as np
import pytest
from PIL import Image

from lit_insert.data.faces import detection
from lit_insert.data.faces.detection import (
    Face,
    HaarDetector,
    OnnxDetector,
    OnnxRecogniser,
    compared,
    eye_pair,
    usual_eyes,
)
from lit_insert.errors import InputError

BOX = (100, 50, 80, 80)


def test_eyes_lie_in_either_half_of_the_box_on_a_nearly_level_line():
    left, right = (125.0, 80.0), (157.0, 83.0)
    assert eye_pair([right, left], BOX) == (left, right)
    assert eye_pair([left], BOX) is None
    assert eye_pair([left, (130.0, 82.0)], BOX) is None  # both on the left
    assert eye_pair([(137.0, 80.0), (143.0, 80.0)], BOX) is None  # too near
    assert eye_pair([(125.0, 60.0), (150.0, 100.0)], BOX) is None  # too steep


def test_of_several_pairs_the_one_where_eyes_usually_are():
    left, right = usual_eyes(BOX)
    mouth = [(120.0, 115.0), (160.0, 115.0)]
    assert eye_pair([*mouth, left, right], BOX) == (left, right)


def test_usual_eyes_are_level_and_inside():
    (lx, ly), (rx, ry) = usual_eyes(BOX)
    assert 100 < lx < 140 < rx < 180
    assert ly == ry
    assert lx - 100 == pytest.approx(180 - rx)


def test_blank_pictures_have_no_face():
    detector = HaarDetector()
    assert detector(Image.new("RGB", (120, 90), (90, 90, 90))) == []
    assert detector(Image.new("RGB", (8, 3))) == []


class Cascade:
    """Answers with what it is told, in pixels of the picture that it is shown."""

    def __init__(self, boxes):
        self.boxes, self.shapes = boxes, []

    def detectMultiScale3(self, grey, **options):
        self.shapes.append(grey.shape)
        return np.array(self.boxes), np.ones(len(self.boxes)), np.linspace(3, 5, len(self.boxes))

    def detectMultiScale(self, grey, **options):
        self.shapes.append(grey.shape)
        return np.array(self.boxes)


def test_boxes_and_eyes_are_in_pixels_of_the_whole_picture():
    detector = HaarDetector(max_side=100)
    detector._frontal = Cascade([(10, 20, 30, 30), (50, 20, 40, 40)])
    detector._eye = Cascade([(40, 30, 40, 40), (130, 35, 40, 40)])
    first, second = detector(Image.new("RGB", (400, 200)))
    assert detector._frontal.shapes == [(50, 100)]
    assert (first.box, first.weight) == ((200, 80, 160, 160), 5.0)
    assert (second.box, second.weight) == ((40, 80, 120, 120), 3.0)
    # The eye cascade saw the box from 15 % of its height on, enlarged to 200 pixels: 5-fold.
    (lx, ly), (rx, ry) = first.eyes
    assert (lx, ly) == pytest.approx((4 * (50 + 60 / 5), 4 * (20 + 6 + 50 / 5)))
    assert (rx, ry) == pytest.approx((4 * (50 + 150 / 5), 4 * (20 + 6 + 55 / 5)))
    assert detector._eye.shapes[0][1] == pytest.approx(200, abs=1)


def test_an_opencv_without_cascades_says_what_to_install(monkeypatch):
    monkeypatch.setattr(detection.cv2, "CascadeClassifier", None)
    monkeypatch.delattr(detection.cv2, "CascadeClassifier")
    with pytest.raises(InputError, match=r"pip install 'opencv-python-headless>=4.10,<5'"):
        HaarDetector()


class Network:
    """Stands for the two OpenCV classes that run ONNX files."""

    def __init__(self, rows=None):
        self.rows = rows

    def setInputSize(self, size):
        self.size = size

    def detect(self, pixels):
        assert pixels.shape[1::-1] == self.size
        self.corner = pixels[0, 0].tolist()
        return 1, self.rows

    def alignCrop(self, pixels, row):
        assert row.shape == (1, 15)
        return pixels[:8, :8]

    def feature(self, pixels):
        return pixels.reshape(-1).astype(np.float32)

    def match(self, a, b, kind):
        assert kind == cv2.FaceRecognizerSF_FR_COSINE
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def networks(monkeypatch, tmp_path, rows):
    (tmp_path / "net.onnx").write_bytes(b"onnx")
    network = Network(rows)
    monkeypatch.setattr(detection, "_onnx", lambda path, make: network)
    return OnnxDetector(tmp_path / "net.onnx", max_side=50), network


def test_rows_of_a_network_become_faces(monkeypatch, tmp_path):
    row = [5, 5, 20, 25, 20, 12, 10, 11, 15, 17, 11, 22, 19, 22, 0.9]
    detector, network = networks(monkeypatch, tmp_path, np.array([row], np.float32))
    (face,) = detector(Image.new("RGB", (100, 60), (250, 20, 10)))
    assert network.corner == [10, 20, 250]  # OpenCV's order of channels
    assert face.box == pytest.approx((10, 10, 40, 50))
    assert face.weight == pytest.approx(0.9)
    assert face.eyes == (pytest.approx((20, 22)), pytest.approx((40, 24)))
    network.rows = None
    assert detector(Image.new("RGB", (100, 60))) == []


def test_a_recogniser_compares_with_every_reference(monkeypatch, tmp_path):
    row = [5, 5, 20, 25, 20, 12, 10, 11, 15, 17, 11, 22, 19, 22, 0.9]
    detector, network = networks(monkeypatch, tmp_path, np.array([row], np.float32))
    (tmp_path / "person").mkdir()
    for name, colour in (("a", (255, 0, 0)), ("b", (0, 255, 0))):
        Image.new("RGB", (40, 40), colour).save(tmp_path / "person" / f"{name}.png")
    recogniser = OnnxRecogniser(tmp_path / "net.onnx", tmp_path / "person", detector)
    for colour, expected in (((0, 9, 0), 1.0), ((0, 0, 9), 0.0)):
        image = Image.new("RGB", (40, 40), colour)
        (face,) = compared(detector(image), image, recogniser)
        assert face.similarity == pytest.approx(expected)
    with pytest.raises(InputError, match="needs landmarks"):
        recogniser(Image.new("RGB", (40, 40)), Face((0, 0, 9, 9), 1.0))
    network.rows = None
    with pytest.raises(InputError, match="no face found"):
        OnnxRecogniser(tmp_path / "net.onnx", tmp_path / "person" / "a.png", detector)


def test_bad_networks_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        OnnxDetector(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(InputError, match=r"bad\.onnx: OpenCV cannot read"):
        OnnxDetector(tmp_path / "bad.onnx")


def test_real_photos(shared_data):
    folder = shared_data / "messi_unfiltered"
    if not folder.is_dir():
        pytest.skip("the shared photos are not here")
    detector = HaarDetector()
    image = Image.open(folder / "Lionel Messi (captain)2.jpg")
    (face,) = detector(image)
    assert face.weight > 5
    assert face.eyes is not None
    (lx, ly), (rx, ry) = face.eyes
    assert face.box[0] < lx < rx < face.box[0] + face.box[2]
    assert abs(ly - ry) < 0.2 * face.box[3]
    assert detector(image) == [face]
