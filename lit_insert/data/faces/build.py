"""The recipe: a folder of photos in, a folder of faces with class-prefixed names out."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from PIL import Image

from lit_insert.artifacts.atomic import atomic_file
from lit_insert.data.decode import read_picture
from lit_insert.data.faces.decisions import Decision, FaceRules, judge, read_decisions, write_decisions
from lit_insert.data.faces.detection import Face, FaceDetector, FaceRecogniser, compared
from lit_insert.data.faces.sprites import Sprite
from lit_insert.data.image_folder import VARIANT
from lit_insert.data.loading import BrokenSample
from lit_insert.data.parquet_join import unit_hash
from lit_insert.errors import InputError
from lit_insert.images import list_images, save_image

PICTURES, TABLE, SETTINGS = "images", "decisions.csv", ".faces.json"
_FLUSH = 50


@dataclass(frozen=True)
class FaceSettings:
    """How a folder of faces is made; one folder is made with one set of them.

    Args:
        rules: Which pictures are kept.
        class_name: Class of the pictures, the first part of their names.
        hat_class: Class of the pictures with a hat; that of the others if empty.
        sunglasses_class: Class of the pictures with sunglasses; that of the others if empty.
        crop: Side of the square cut around the face, in sides of its box, as far as the picture reaches; 0 keeps the
            whole picture.
        size: Pictures are shrunk to this shorter side in pixels; 0 keeps them as they are.
        suffix: ".png" (lossless) or ".jpg" for pictures that have to be encoded.
    """

    rules: FaceRules = field(default_factory=FaceRules)
    class_name: str = "0"
    hat_class: str = ""
    sunglasses_class: str = ""
    crop: float = 0.0
    size: int = 0
    suffix: str = ".png"

    def __post_init__(self) -> None:
        for name in (self.class_name, self.hat_class, self.sunglasses_class):
            if any(c in name for c in "_/\\") or name.startswith("."):
                raise InputError(f"class {name!r}: names are cut at the first underscore; use letters and digits")
        if not self.class_name:
            raise InputError("class is empty; give a name such as 0")
        if self.suffix not in (".png", ".jpg"):
            raise InputError(f"format {self.suffix!r}: give .png or .jpg")
        if self.crop < 0 or 0 < self.crop < 1:
            raise InputError(f"crop is {self.crop:g}; give 0, or 1 or more")

    def class_of(self, kind: str) -> str:
        """Class of the pictures with a kind of sprite; of those without for an empty kind."""
        return {"hat": self.hat_class, "sunglasses": self.sunglasses_class}.get(kind) or self.class_name


@dataclass
class FaceSummary:
    """What a run of `build_faces` did.

    Attributes:
        decisions: All decisions about the folder, by input.
        new: How many of them were made in this run.
    """

    decisions: dict[str, Decision]
    new: int = 0

    @property
    def reasons(self) -> Counter[str]:
        """How many pictures were dropped, by reason."""
        return Counter(d.reason.partition(":")[0] for d in self.decisions.values() if not d.kept)


class _Folder:
    """The folder that is made, and what earlier runs decided."""

    def __init__(self, out: Path, settings: dict[str, object]) -> None:
        self.out = out
        noted = out / SETTINGS
        if noted.is_file():
            before = json.loads(noted.read_text(encoding="utf-8"))
            for key in settings:
                if before.get(key) != settings[key]:
                    raise InputError(
                        f"{out}: was made with {key} {before.get(key)}, not {settings[key]}; choose another folder"
                    )
        elif out.is_dir() and any(p for p in out.iterdir() if not p.name.startswith(".")):
            raise InputError(f"{out}: is not empty and was not made by this recipe; choose another folder")
        else:
            with atomic_file(noted) as temporary:
                temporary.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        for leftover in (out / PICTURES).glob(".*.*.*"):
            leftover.unlink()  # temporary files of a run that was killed
        self.decisions = read_decisions(out / TABLE)
        self.stems = {_stem(f): d.input for d in self.decisions.values() for f in d.files}

    def done(self, name: str, digest: str, copy_of: str) -> bool:
        """Whether a picture with these bytes was decided about, and what was made of it is there."""
        decision = self.decisions.get(name)
        if decision is None or decision.digest != digest or decision.reason.startswith("copy") != bool(copy_of):
            return False
        return all((self.out / PICTURES / f).is_file() for f in decision.files)

    def stem_for(self, name: str, digest: str, class_name: str) -> str:
        """What the pictures made of an input are called, without class; no two inputs share one."""
        stem = Path(name).stem.replace(VARIANT, "-").removeprefix(f"{class_name}_")
        if self.stems.get(stem.lower(), name) != name:
            stem = f"{stem}-{digest[:8]}"
        self.stems[stem.lower()] = name
        return stem

    def take(self, decision: Decision) -> None:
        """Note a decision; what an earlier one about the same input made, and this one does not, is removed."""
        before = self.decisions.get(decision.input)
        for file in set(before.files if before else ()) - set(decision.files):
            (self.out / PICTURES / file).unlink(missing_ok=True)
        self.decisions[decision.input] = decision

    def save(self) -> None:
        write_decisions(self.out / TABLE, self.decisions)


def _stem(file: str) -> str:
    return Path(file).stem.partition("_")[2].partition(VARIANT)[0].lower()


def framed(image: Image.Image, face: Face, settings: FaceSettings) -> Image.Image:
    """The part of a picture that is kept, at the size that is kept."""
    if settings.crop:
        x, y, w, h = face.box
        side = min(round(settings.crop * max(w, h)), *image.size)
        left = min(max(0, round(x + w / 2 - side / 2)), image.width - side)
        top = min(max(0, round(y + h / 2 - side / 2)), image.height - side)
        image = image.crop((left, top, left + side, top + side))
    scale = settings.size / min(image.size) if settings.size else 1.0
    if scale < 1:
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return image


def _write(
    source: Path,
    image: Image.Image,
    faces: list[Face],
    stem: str,
    out: Path,
    settings: FaceSettings,
    sprites: Sequence[Sprite],
) -> list[str]:
    """Write the picture and its dressed variants; returns their names."""
    whole = framed(image, faces[0], settings)
    base = f"{settings.class_name}_{stem}"
    if whole is image and source.suffix.lower() in (".jpg", ".jpeg", ".png"):
        names = [base + source.suffix.lower()]
        with atomic_file(out / names[0]) as temporary:
            temporary.write_bytes(source.read_bytes())  # nothing is compressed twice
    else:
        names = [base + settings.suffix]
        save_image(whole, out / names[0])
    for kind in ("hat", "sunglasses"):
        choice = [s for s in sprites if s.kind == kind]
        if not choice:
            continue
        sprite = choice[int(unit_hash(kind, stem) * len(choice))]
        dressed = image
        for face in faces:
            dressed = sprite.put_on(dressed, face)
        names.append(f"{settings.class_of(kind)}_{stem}{VARIANT}{kind}{settings.suffix}")
        save_image(framed(dressed, faces[0], settings), out / names[-1])
    return names


def build_faces(
    images: str | Path,
    out: str | Path,
    settings: FaceSettings,
    detector: FaceDetector,
    recogniser: FaceRecogniser | None = None,
    sprites: Sequence[Sprite] = (),
    limit: int | None = None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> FaceSummary:
    """Make a folder of faces, or go on with one; inputs are never changed.

    ``out/images`` gets the pictures, ``out/decisions.csv`` a line for each input. A second run decides about new and
    changed inputs only, and makes what is missing; it touches nothing else.

    Args:
        images: Folder of photos, searched with its subfolders.
        out: The folder to make, not inside ``images``' own pictures: what is below it is never read.
        settings: How.
        detector: Finds the faces.
        recogniser: Compares them with the person looked for.
        sprites: Hats and sunglasses; of several of a kind, a picture gets one by its name.
        limit: Look at the first so many pictures only.
        tick: Called with the numbers of pictures done and to do, after each.

    Raises:
        InputError: If there are no pictures, or the folder was made with other settings.
    """
    root, out = Path(images), Path(out)
    inside = out.resolve()
    files = [p for p in list_images(root, recursive=True) if not p.resolve().is_relative_to(inside)][:limit]
    if not files:
        raise InputError(f"{root}: no pictures in it besides those in {out}")
    folder = _Folder(
        out,
        {
            **json.loads(json.dumps(asdict(settings))),
            "detector": detector.name,
            "recogniser": recogniser.name if recogniser else "",
            "sprites": [s.name for s in sprites],
        },
    )
    summary = FaceSummary(folder.decisions)
    digests = {p: hashlib.blake2b(p.read_bytes(), digest_size=12).hexdigest() for p in files}
    names = {p: p.relative_to(root).as_posix() for p in files}
    # The first with the same bytes counts; one that an earlier run kept stays.
    kept = {n for n, d in folder.decisions.items() if d.kept}
    first: dict[str, str] = {}
    for path in sorted(files, key=lambda p: names[p] not in kept):
        first.setdefault(digests[path], names[path])
    try:
        for done, path in enumerate(files, 1):
            name, digest = names[path], digests[path]
            copy_of = first[digest] if first[digest] != name else ""
            if not folder.done(name, digest, copy_of):
                if copy_of:
                    decision = Decision(name, reason=f"copy: of {copy_of}", digest=digest)
                else:
                    decision = _decide(path, name, digest, folder, settings, detector, recogniser, sprites)
                folder.take(decision)
                summary.new += 1
                if summary.new % _FLUSH == 0:
                    folder.save()
            tick(done, len(files))
    finally:
        folder.save()
    return summary


def _decide(
    path: Path,
    name: str,
    digest: str,
    folder: _Folder,
    settings: FaceSettings,
    detector: FaceDetector,
    recogniser: FaceRecogniser | None,
    sprites: Sequence[Sprite],
) -> Decision:
    decision = Decision(name, digest=digest)
    try:
        image = read_picture(path)
    except BrokenSample as error:
        return replace(decision, reason=f"broken: {error.reason}")
    faces = compared(detector(image), image, recogniser)
    counting, reason = judge(faces, image.size, settings.rules)
    decision = replace(decision, reason=reason, boxes=len(faces), faces=len(counting))
    if faces:
        decision = decision.about((counting or faces)[0], image.size)
    if reason:
        return decision
    stem = folder.stem_for(name, digest, settings.class_name)
    names = _write(path, image, counting, stem, folder.out / PICTURES, settings, sprites)
    return replace(decision, kept=1, outputs="/".join(names))
