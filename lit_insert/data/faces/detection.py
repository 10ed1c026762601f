"""Faces in a picture: OpenCV's Haar cascades, or the user's own ONNX networks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from PIL import Image

from lit_insert.data.decode import read_picture
from lit_insert.errors import InputError
from lit_insert.images import list_images

Point = tuple[float, float]
_FRONTAL, _EYE = "haarcascade_frontalface_default.xml", "haarcascade_eye.xml"
_LARGEST_TILT = math.radians(30)


@dataclass(frozen=True)
class Face:
    """One face; lengths in pixels of the whole picture, origin at its top left corner.

    Attributes:
        box: Left, top, width, height.
        weight: How sure the detector is; the larger the surer, on the detector's own scale.
        eyes: Centres of the eyes, the one on the picture's left first; None if they were not both found.
        landmarks: The detector's own row for a recogniser, in pixels; empty if it has none.
        similarity: To the person looked for, -1 to 1; None without a recogniser.
    """

    box: tuple[float, float, float, float]
    weight: float
    eyes: tuple[Point, Point] | None = None
    landmarks: tuple[float, ...] = ()
    similarity: float | None = None


class FaceDetector(Protocol):
    """Finds faces.

    Attributes:
        name: Kind and settings: another name means that folders have to be made anew.
    """

    name: str

    def __call__(self, image: Image.Image) -> list[Face]:
        """The faces of an RGB picture, the surest first."""


class FaceRecogniser(Protocol):
    """Compares faces with those of one person."""

    name: str

    def __call__(self, image: Image.Image, face: Face) -> float:
        """Cosine similarity with the nearest reference, -1 to 1."""


def _capped(image: Image.Image, side: int) -> tuple[Image.Image, float]:
    """The picture with its longer side at most ``side``, and by how much it was shrunk (at most 1)."""
    scale = min(1.0, side / max(image.size))
    if scale == 1:
        return image, 1.0
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX, reducing_gap=3.0), scale


def _in_order(faces: list[Face]) -> list[Face]:
    return sorted(faces, key=lambda f: (-f.weight, f.box))


def _cascade(name: str) -> Any:
    path = Path(cv2.data.haarcascades) / name if hasattr(cv2, "data") else None
    if path is None or not hasattr(cv2, "CascadeClassifier") or not path.is_file():
        raise InputError(
            f"OpenCV {cv2.__version__} has no {name}; pip install 'opencv-python-headless>=4.10,<5', "
            "or give --detector with an ONNX file"
        )
    return cv2.CascadeClassifier(str(path))


class HaarDetector:
    """Frontal faces by OpenCV's Haar cascade, and eyes inside them by another.

    Pictures are shrunk to a longer side of ``max_side`` first: on larger ones the cascade finds faces in every
    texture. Its weight of a box is the margin by which the last stage that looked at it was passed; false boxes are
    mostly below 2, clear faces above 4.

    Args:
        max_side: Longer side in pixels at which is looked.
        min_box: Smallest side of a face in pixels, after shrinking.

    Raises:
        InputError: If this OpenCV has no cascades, as 5.x has not.
    """

    def __init__(self, max_side: int = 1024, min_box: int = 30) -> None:
        self.max_side, self.min_box = max_side, min_box
        self.name = f"haar {_FRONTAL} max_side={max_side} min_box={min_box}"
        self._frontal, self._eye = _cascade(_FRONTAL), _cascade(_EYE)

    def __call__(self, image: Image.Image) -> list[Face]:
        """The faces of an RGB picture, the surest first."""
        small, scale = _capped(image, self.max_side)
        grey = np.array(small.convert("L"))
        boxes, _, weights = self._frontal.detectMultiScale3(
            grey,
            scaleFactor=1.1,
            minNeighbors=5,
            minSize=(self.min_box, self.min_box),
            outputRejectLevels=True,
        )
        faces = []
        for box, weight in zip(np.reshape(boxes, (-1, 4)).tolist(), np.ravel(weights).tolist(), strict=True):
            eyes = self._eyes(grey, box)
            if eyes is not None:
                eyes = (_scaled(eyes[0], scale), _scaled(eyes[1], scale))
            x, y, w, h = (v / scale for v in box)
            faces.append(Face((x, y, w, h), float(weight), eyes))
        return _in_order(faces)

    def _eyes(self, grey: np.ndarray, box: Sequence[int]) -> tuple[Point, Point] | None:
        x, y, width, height = box
        top, bottom = y + round(0.15 * height), y + round(0.62 * height)
        # Enlarged, because the cascade knows no eye below 20 pixels, a fifth of a face.
        grow = max(1.0, 200 / width)
        patch = cv2.resize(grey[top:bottom, x : x + width], None, fx=grow, fy=grow, interpolation=cv2.INTER_CUBIC)
        side = max(20, round(0.15 * width * grow))
        found = self._eye.detectMultiScale(
            patch, scaleFactor=1.05, minNeighbors=4, minSize=(side, side), maxSize=(3 * side, 3 * side)
        )
        centres = [
            (x + (ex + ew / 2) / grow, top + (ey + eh / 2) / grow)
            for ex, ey, ew, eh in np.reshape(found, (-1, 4)).tolist()
        ]
        return eye_pair(centres, (x, y, width, height))


def _scaled(point: Point, scale: float) -> Point:
    return point[0] / scale, point[1] / scale


def eye_pair(centres: Sequence[Point], box: tuple[float, float, float, float]) -> tuple[Point, Point] | None:
    """The two points that are most likely the eyes of a face.

    One lies in either half of the box, 0.25 to 0.6 of its width apart, on a line tilted by at most 30°; of several
    pairs, the one nearest to where eyes usually are.

    Args:
        centres: Candidates, in pixels.
        box: Left, top, width, height of the face.
    """
    middle = box[0] + box[2] / 2
    best: tuple[float, tuple[Point, Point]] | None = None
    usual = usual_eyes(box)
    for left in centres:
        for right in centres:
            if not left[0] < middle < right[0]:
                continue
            apart = math.dist(left, right)
            tilt = abs(math.atan2(right[1] - left[1], right[0] - left[0]))
            if 0.25 * box[2] <= apart <= 0.6 * box[2] and tilt <= _LARGEST_TILT:
                error = math.dist(left, usual[0]) + math.dist(right, usual[1])
                if best is None or error < best[0]:
                    best = (error, (left, right))
    return best[1] if best else None


def usual_eyes(box: tuple[float, float, float, float]) -> tuple[Point, Point]:
    """Where the eyes of an upright face are in a box as the Haar cascade draws it."""
    x, y, width, height = box
    return (x + 0.31 * width, y + 0.39 * height), (x + 0.69 * width, y + 0.39 * height)


class OnnxDetector:
    """A network that OpenCV's FaceDetectorYN reads (YuNet and its like), with exact eyes.

    Args:
        path: The ONNX file.
        max_side: Longer side in pixels at which is looked.
        min_score: Faces below are not reported, 0 to 1; the score is the weight of a face.

    Raises:
        InputError: If OpenCV cannot read the file.
    """

    def __init__(self, path: str | Path, max_side: int = 1024, min_score: float = 0.6) -> None:
        self.max_side = max_side
        self.name = f"onnx {Path(path).name} max_side={max_side} min_score={min_score:g}"
        self._network = _onnx(path, lambda p: cv2.FaceDetectorYN.create(p, "", (320, 320), min_score))

    def __call__(self, image: Image.Image) -> list[Face]:
        """The faces of an RGB picture, the surest first."""
        small, scale = _capped(image, self.max_side)
        self._network.setInputSize(small.size)
        _, rows = self._network.detect(np.ascontiguousarray(np.array(small)[:, :, ::-1]))
        faces = []
        for row in [] if rows is None else np.asarray(rows, np.float64):
            x, y, w, h = (float(v) for v in row[:4] / scale)
            eyes = sorted([(float(row[4]), float(row[5])), (float(row[6]), float(row[7]))])
            landmarks = (*(row[:14] / scale).tolist(), float(row[14]))
            faces.append(
                Face((x, y, w, h), float(row[14]), (_scaled(eyes[0], scale), _scaled(eyes[1], scale)), landmarks)
            )
        return _in_order(faces)


class OnnxRecogniser:
    """A network that OpenCV's FaceRecognizerSF reads (SFace and its like).

    Args:
        path: The ONNX file.
        references: A picture of the person, or a folder of them; each is used with its surest face.
        detector: Gives the faces and landmarks of the references.

    Raises:
        InputError: If OpenCV cannot read the file, or no reference shows a face.
    """

    def __init__(self, path: str | Path, references: str | Path, detector: FaceDetector) -> None:
        self._network = _onnx(path, lambda p: cv2.FaceRecognizerSF.create(p, ""))
        where = Path(references)
        files = list_images(where) if where.is_dir() else [where]
        self._known: list[Any] = []
        for file in files:
            image = read_picture(file)
            if faces := detector(image):
                self._known.append(self._feature(image, faces[0]))
        if not self._known:
            raise InputError(f"{references}: no face found in it; give pictures of the person")
        self.name = f"onnx {Path(path).name} references={','.join(f.name for f in files)}"

    def _feature(self, image: Image.Image, face: Face) -> Any:
        if not face.landmarks:
            raise InputError("a recogniser needs landmarks, which Haar cascades do not give; give --detector too")
        pixels = np.ascontiguousarray(np.array(image)[:, :, ::-1])
        aligned = self._network.alignCrop(pixels, np.asarray(face.landmarks, np.float32)[None])
        return self._network.feature(aligned).copy()

    def __call__(self, image: Image.Image, face: Face) -> float:
        """Cosine similarity with the nearest reference, -1 to 1."""
        mine = self._feature(image, face)
        kind = cv2.FaceRecognizerSF_FR_COSINE
        return max(float(self._network.match(mine, known, kind)) for known in self._known)


def _onnx(path: str | Path, make: Any) -> Any:
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        return make(str(path))
    except cv2.error as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: OpenCV cannot read this network ({reason[-120:]})") from error


def compared(faces: list[Face], image: Image.Image, recogniser: FaceRecogniser | None) -> list[Face]:
    """The faces with their similarity filled in."""
    return faces if recogniser is None else [replace(f, similarity=recogniser(image, f)) for f in faces]
