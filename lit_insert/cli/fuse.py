"""``infer.py fuse``: objects into scenes by words, in one go, in two stages, or for a list of jobs."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_insert.cli.common import (
    device_name,
    move,
    positive,
    progress_bar,
    quiet_libraries,
    thumbnail,
    write_json,
    write_picture,
)
from lit_insert.cli.fuse_jobs import RECORD, FuseJob, FuseWork, artifact_files, is_done, plan, read_record
from lit_insert.errors import InputError
from lit_insert.fusion.choices import AREAS, BACKDROPS, OVERLAPS, SCALINGS
from lit_insert.fusion.objects import FusionSettings
from lit_insert.images import image_grid, load_image

if TYPE_CHECKING:
    from lit_insert.fusion.output import FusionOutput
    from lit_insert.fusion.pipeline import FusionPipeline
    from lit_insert.report import Report

_FORMATS = ("png", "jpg", "webp")
_DTYPES = ("float32", "float16", "bfloat16")
_SETTINGS = {"scaling": SCALINGS, "backdrop": BACKDROPS, "overlap_mode": OVERLAPS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    own = FusionSettings()
    parser.usage = "infer.py fuse --base_image PATH (--replace_image PATH | --objects FILE) | --jobs FILE [options]"
    what = parser.add_argument_group("what")
    what.add_argument("--base_image", metavar="PATH", help="scene, or a folder of scenes")
    what.add_argument("--replace_image", metavar="PATH", help="the object's picture, or a folder: each into each scene")
    what.add_argument("--replace_mask", metavar="PATH", help="white where it is; else its alpha or --target_text tell")
    what.add_argument("--target_text", metavar="TEXT", help="what the object is, to cut it out of its picture")
    what.add_argument("--location_prompt", metavar="TEXT", help="where it goes: on the flower, right of the ring, …")
    what.add_argument("--target_area", metavar="AREA", help=f"where it may go: {', '.join(AREAS)}")
    what.add_argument("--scale_factor", metavar="S", type=float, help="its size, times --global_scale; 1 by default")
    what.add_argument("--objects", metavar="FILE", help="JSON list of objects instead, with these and more keys")
    what.add_argument("--jobs", metavar="FILE", help="YAML list of jobs; what is done already is skipped")
    how = parser.add_argument_group("how")
    how.add_argument("--strength", metavar="T", type=float, default=0.3, help="noise level t to begin at, up to 1")
    how.add_argument("--strengths", metavar="T", type=float, nargs="+", help="several: a result for each")
    how.add_argument("--steps", metavar="N", type=positive, default=50, help="from pure noise; from t, t times as many")
    how.add_argument("--seed", metavar="N", type=int, default=0, help="of noise and tried places")
    how.add_argument("--global_scale", metavar="S", type=float, default=own.global_scale, help="factor on all sizes")
    for name, known in _SETTINGS.items():
        how.add_argument(f"--{name}", choices=known, default=getattr(own, name), help=_ABOUT[name])
    how.add_argument("--feather", metavar="N", type=int, default=own.feather, help="cells over which a thing fades out")
    how.add_argument("--grow", metavar="N", type=int, default=own.grow, help="cells around that may change too")
    how.add_argument(
        "--threshold", metavar="P", type=float, default=own.threshold, help="where it is surer is the object"
    )
    how.add_argument("--avoid", metavar="WORDS", nargs="+", default=[], help="what nothing should cover")
    how.add_argument("--rerank_clip", action="store_true", help="try many places, keep the one that CLIP likes best")
    how.add_argument("--class_label", metavar="N", type=int, help="class of the transformer; none by default")
    how.add_argument("--guidance_scale", metavar="W", type=float, default=1.0, help="1 for none")
    how.add_argument("--guidance_interval", metavar="T", type=float, nargs=2, default=(0.0, 1.0), help="noise levels")
    stages = parser.add_argument_group("stages")
    stages.add_argument("--stage", choices=("both", "1", "2"), default="both", help="1 places, 2 finishes")
    stages.add_argument("--input", metavar="PATH", help="for stage 2: what stage 1 wrote, an original .pt, or a folder")
    more = parser.add_argument_group("model")
    more.add_argument("--model", metavar="MODEL", default="pocket", help="pocket, an exported folder or a hub id")
    more.add_argument("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    more.add_argument("--dtype", choices=_DTYPES, default="float32", help="of autoencoder and transformer")
    more.add_argument("--autoencoder", metavar="MODEL", help="instead of the model's; a folder, a run or a hub id")
    more.add_argument("--transformer", metavar="MODEL", help="the same, or a published .pt")
    more.add_argument("--guidance_transformer", metavar="MODEL", help="a weaker one, to guide by")
    more.add_argument("--segmenter", metavar="NAME", help="clipseg, sam3, given or pocket; by default the model's")
    more.add_argument("--segmenter_model", metavar="MODEL", help="its weights; for given, the folder of masks")
    more.add_argument("--clip_model", metavar="MODEL", default="openai/clip-vit-base-patch32", help="of --rerank_clip")
    more.add_argument("--low_memory", action="store_true", help="load models anew for each job, one at a time")
    out = parser.add_argument_group("output")
    out.add_argument("--output", default="out", metavar="FOLDER", help="where to")
    out.add_argument("--format", choices=_FORMATS, default="png", help="of the results; png keeps every bit")
    out.add_argument("--save_artifacts", action="store_true", help="also keep what stage 1 makes")
    out.add_argument("--overwrite", action="store_true", help="make again what is done already")
    out.add_argument("--report", metavar="FILE", help="also write an HTML page")


_ABOUT = {
    "scaling": "bring objects to size before encoding (pixel) or after it (latent)",
    "backdrop": "what the encoder sees around an object",
    "overlap_mode": "what happens where objects meet",
}


def run(options: argparse.Namespace) -> int:
    """Fuse; returns 0, or 1 if some of several jobs failed.

    Raises:
        InputError: If there is nothing to do, or none of it could be done.
    """
    settings = FusionSettings(
        **{name: getattr(options, name) for name in ("global_scale", "feather", "grow", "threshold", *_SETTINGS)},
        avoid=tuple(options.avoid),
        rerank=options.rerank_clip,
    )
    strengths = list(dict.fromkeys(options.strengths or [options.strength]))
    for value in strengths:
        if not 0 < value <= 1:
            raise InputError(f"--strength {value:g}: give more than 0 and at most 1")
    folder = Path(options.output)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder}: is a file; give a folder")
    if options.stage == "2":
        if not options.input:
            raise InputError("--stage 2 needs --input, what stage 1 wrote")
        files = artifact_files(options.input)
        work = FuseWork([FuseJob(f.stem, f, (), options.seed) for f in files], folder)
    else:
        if options.input:
            raise InputError("--input is for --stage 2")
        work = FuseWork(plan(options), folder)
    return _Runner(options, settings, strengths, work).run()


class _Runner:
    """Does the jobs one after another and keeps the record up to date, so that any end leaves it whole."""

    def __init__(
        self, options: argparse.Namespace, settings: FusionSettings, strengths: list[float], work: FuseWork
    ) -> None:
        self.options, self.settings, self.strengths, self.work = options, settings, strengths, work
        names = ["model", "autoencoder", "transformer", "guidance_transformer", "segmenter", "segmenter_model"]
        names += ["steps", "class_label", "guidance_scale", "guidance_interval"]
        names += ["dtype", "format", "stage", "clip_model"]
        own = {name: getattr(options, name) for name in names}
        self.depends = {
            **own,
            **vars(settings),
            "strengths": strengths,
            "guidance_interval": list(own["guidance_interval"]),
        }
        self.before = {} if options.overwrite else read_record(work.folder)
        self.report = _report(options) if options.report else None
        self.pictures: list[list[Any]] = []

    def run(self) -> int:
        from rich.console import Console

        todo = [job for job in self.work.jobs if not self._skip(job)]
        pipeline = self._pipeline() if todo else None
        with progress_bar(Console(stderr=True)) as progress:
            for job in progress.track(todo, description="fusing"):
                assert pipeline is not None
                try:
                    self._one(pipeline, job)
                except InputError as error:
                    if len(self.work.jobs) == 1:
                        raise
                    self.work.failed.append({"name": job.name, "reason": " ".join(str(error).split())})
                self._write_record()
        return self._tell()

    def _skip(self, job: FuseJob) -> bool:
        entry = self.before.get(job.name)
        if self.options.stage != "2" and is_done(entry, job.digest(self.depends), self.work.folder):
            assert entry is not None
            self.work.done.append(entry)
            self.work.skipped += 1
            return True
        return False

    def _pipeline(self) -> "FusionPipeline":
        quiet_libraries()
        import torch

        from lit_insert.fusion.pipeline import FusionPipeline

        given = self.options
        parts = {k: getattr(given, k) for k in ("autoencoder", "transformer", "guidance_transformer")}
        pipeline = FusionPipeline.from_pretrained(
            None if all(parts[k] for k in ("autoencoder", "transformer")) else given.model,
            **parts,
            segmenter=given.segmenter,
            segmenter_source=given.segmenter_model,
            clip_model=given.clip_model,
            dtype=getattr(torch, given.dtype),
        )
        move(pipeline, device_name(given.device))
        return pipeline.keep_loaded(not given.low_memory and len(self.work.jobs) > 1)

    def _one(self, pipeline: "FusionPipeline", job: FuseJob) -> None:
        from lit_insert.fusion.artifact import FusionArtifact

        began, stage, folder = time.perf_counter(), self.options.stage, self.work.folder
        if stage == "2":
            artifact = FusionArtifact.load(job.scene)
            artifact.seed = artifact.seed or job.seed
        else:
            artifact = pipeline.place(str(job.scene), job.objects, seed=job.seed, settings=self.settings)
        outputs: list[str] = []
        if stage == "1" or self.options.save_artifacts:
            artifact.save(folder / f"{job.name}.safetensors")
            outputs += [f"{job.name}.safetensors", f"{job.name}.json"]
        entry: dict[str, Any] = {"name": job.name, "scene": artifact.scene, "seed": artifact.seed}
        if stage == "1":
            shown = pipeline.preview(artifact)
            write_picture(shown, folder / f"{job.name}_fused.png")
            outputs.append(f"{job.name}_fused.png")
            self._show(job, artifact, [shown])
        else:
            made = self._finish(pipeline, artifact)
            for picture, value in zip(made.images, made.strengths, strict=True):
                name = job.name if len(made.images) == 1 else f"{job.name}_t{value:g}"
                write_picture(picture, folder / f"{name}.{self.options.format}")
                outputs.append(f"{name}.{self.options.format}")
            entry |= {"results": [r.as_dict() for r in made.reports], "memory_mb": made.memory}
            self._show(job, artifact, made.images)
        entry |= {"outputs": outputs, "placements": artifact.placements, "notes": artifact.notes}
        entry |= {"digest": "" if stage == "2" else job.digest(self.depends)}
        self.work.done.append({**entry, "seconds": round(time.perf_counter() - began, 3)})

    def _finish(self, pipeline: "FusionPipeline", artifact: Any) -> "FusionOutput":
        given = self.options
        return pipeline.refine(
            [artifact],
            strengths=self.strengths,
            num_inference_steps=given.steps,
            guidance_scale=given.guidance_scale,
            guidance_interval=tuple(given.guidance_interval),
            class_label=given.class_label,
        )[0]

    def _show(self, job: FuseJob, artifact: Any, pictures: list[Any]) -> None:
        if self.report is None or len(self.pictures) >= 64:
            return
        scene = thumbnail(load_image(artifact.scene)) if artifact.scene and Path(artifact.scene).is_file() else None
        things = [thumbnail(load_image(thing.path)) for thing in job.objects]
        row = [job.name, scene, image_grid([things], cell=128) if things else None]
        self.pictures.append([*row, *(thumbnail(p) for p in pictures)])

    def _write_record(self) -> None:
        from lit_insert import __version__

        record = {"lit_insert": __version__, "settings": self.depends}
        write_json(record | {"results": self.work.done, "failed": self.work.failed}, self.work.folder / RECORD)

    def _tell(self) -> int:
        work = self.work
        for entry in work.done:
            for note in entry.get("notes", []):
                print(f"note: {entry['name']}: {note}", file=sys.stderr)
        for failure in work.failed:
            print(f"failed: {failure['name']}: {failure['reason']}", file=sys.stderr)
        if not work.done:
            raise InputError(f"none of {len(work.jobs)} jobs could be done; the first: {work.failed[0]['reason']}")
        if self.report is not None:
            made = ["fused features"] if self.options.stage == "1" else [f"t {value:g}" for value in self.strengths]
            self.report.heading("Results").images(self.pictures, ["", "scene", "object", *made], cell_px=192)
            self.report.save(self.options.report)
        new = len(work.done) - work.skipped
        already = f", {work.skipped} were there already" if work.skipped else ""
        print(f"{new} of {len(work.jobs)} fused{already}, in {work.folder}")
        return 1 if work.failed else 0


def _report(options: argparse.Namespace) -> "Report":
    from lit_insert.report import Report

    return Report("Fusion", f"seed {options.seed}")
