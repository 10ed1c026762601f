"""The Lightning command line with runs, short errors and this package's callbacks."""

import json
import logging
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_insert.artifacts.atomic import atomic_file, atomic_folder
from lit_insert.artifacts.json_file import forget_paths
from lit_insert.cli.configs import check_yaml, config_path
from lit_insert.cli.short_errors import ShortErrorParser
from lit_insert.cli.train import RunOptions, rank
from lit_insert.errors import InputError
from lit_insert.training import runs
from lit_insert.training.base import BaseModule
from lit_insert.training.checkpoint import RunCheckpoint, read_checkpoint
from lit_insert.training.ema import EMA, averaged
from lit_insert.training.grid import SampleGrid
from lit_insert.training.predictions import PredictionWriter
from lit_insert.training.progress import progress
from lit_insert.training.record import JsonLines, RunRecord

_TRUSTED = ["lit_insert", "lightning", "torch", "torchvision", "torchmetrics", "diffusers", "transformers", "peft"]
_NOISE = (
    r".*LeafSpec.*",
    r".*LightningCLI's args parameter.*",
    r".*not supported by the model summary.*",
    r".*module\(s\) in eval mode.*",
    r".*does not have many workers.*",
    r".*smaller than the logging interval.*",
    r".*It is recommended to use .*sync_dist=True.*",
    r".*[Jj]sonargparse.*",
    r".*infer the batch indices.*",
)


def run(options: RunOptions) -> None:
    """Carry out a command.

    Raises:
        InputError: On any mistake in the input.
    """
    for pattern in _NOISE:
        warnings.filterwarnings("ignore", message=pattern)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=_TRUSTED + options.trusted)
    if options.command == "fit" and any(a.split("=")[0] == "--ckpt_path" for a in options.rest):
        raise InputError("fit takes no --ckpt_path; use --resume to continue or --init_from for the weights")
    args = [options.command if options.command != "export" else "validate"]
    for path in _config_files(options):
        args += ["--config", str(path)]
    try:
        TrainCLI(options, args + options.rest)
    except MisconfigurationException as error:
        raise InputError(" ".join(str(error).split())) from error


def _config_files(options: RunOptions) -> list[Path]:
    """The configuration files in order; a run stands for its own where none is named."""
    files = list(options.configs)
    of_run = options.resume or options.command != "fit"
    if of_run and not files and options.out is not None:
        if not runs.is_run(options.out):
            raise InputError(f"--out {options.out}: no run is there; start one with fit --config FILE --out DIR")
        files = [options.out / "config.yaml"]
        if not files[0].is_file():
            raise InputError(f"{files[0]}: is missing; give --config FILE")
    else:
        files = [config_path("defaults.yaml"), *files]
    for file in files:
        check_yaml(file)
    return files


class TrainCLI(LightningCLI):
    """One subcommand of Trainer on one run.

    Args:
        options: The run.
        args: Arguments, the subcommand first.
    """

    def __init__(self, options: RunOptions, args: list[str]) -> None:
        self.options, self._command = options, args[0]
        self._config_dict: dict[str, Any] = {}
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            save_config_callback=RunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            seed_everything_default=0,
            parser_class=ShortErrorParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the one asked for: building the parsers of all four takes seconds."""
        return {self._command: LightningCLI.subcommands()[self._command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Options of the callbacks that every run has."""
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EMA, "ema")
        parser.add_lightning_class_args(SampleGrid, "samples")

    def _parse_ckpt_path(self) -> None:
        """Nothing: the configuration says what the model is, never a checkpoint's copy of an older one."""

    @property
    def _own(self) -> Any:
        return self.config[self._command]

    @property
    def _fits(self) -> bool:
        return self._command == "fit"

    def before_instantiate_classes(self) -> None:
        """Settle where everything goes, and whether it may."""
        options, config = self.options, self._own
        self._dry = bool(config.trainer.get("fast_dev_run"))
        self._dump_config()  # before folders are filled in, so that a run can be moved
        if options.out is None:
            if self._fits and not self._dry:
                raise InputError("--out DIR is missing: where should the run be kept?")
            if options.command in ("predict", "export"):
                raise InputError(f"--out DIR is missing: {options.command} writes into it")
        elif not self._dry:
            if self._fits and not options.resume and rank() == 0 and runs.has_checkpoint(options.out):
                raise InputError(f"--out {options.out}: run exists; pass --resume or another --out")
            config.trainer.default_root_dir = str(options.out)
        self._settle_logger(config.trainer)
        self._config_dict = {
            k: v for k, v in self.config_dump.items() if k not in ("config", "ckpt_path", "weights_only", "verbose")
        }
        if options.resume and options.out is not None:
            config.ckpt_path = str(self._check_resume(options.out))
        elif not self._fits and options.init_from is None:
            config.ckpt_path = str(self._evaluated_checkpoint())

    def _settle_logger(self, trainer: Any) -> None:
        if not self._fits or self._dry or self.options.out is None:
            trainer.logger = False
        for logger in trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]:
            folder = getattr(logger, "init_args", {})
            if "save_dir" in folder and folder["save_dir"] in (None, "."):
                folder["save_dir"] = str(self.options.out)

    def _check_resume(self, out: Path) -> Path:
        path = runs.checkpoint_of(out)
        saved = read_checkpoint(path, mmap=True).get("config")
        if not isinstance(saved, Mapping):
            raise InputError(f"{path}: has no configuration in it, so it cannot be resumed; use --init_from {path}")
        changes = runs.check_unchanged(saved, self._config_dict, out)
        for change in changes if rank() == 0 else ():
            print(f"resume: changed {change}", file=sys.stderr)
        return path

    def _evaluated_checkpoint(self) -> Path:
        given = self._own.get("ckpt_path")
        if given in (None, "best", "last"):
            if self.options.out is None:
                raise InputError("whose weights? give --out RUN, --ckpt_path FILE or --init_from RUN|CKPT|FOLDER")
            return runs.checkpoint_of(self.options.out, best=given != "last")
        read_checkpoint(given, mmap=True)
        return Path(given)

    def instantiate_classes(self) -> None:
        """Make model, data and trainer; what a constructor raises comes out as it was raised."""
        try:
            super().instantiate_classes()
        except ValueError as error:  # jsonargparse wraps it in a text about the types it has tried
            inner: BaseException = error
            while inner.__cause__ is not None and not isinstance(inner, InputError):
                inner = inner.__cause__
            raise inner from None

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add what every run has: record, progress, metrics, written predictions."""
        config = self._get(self.config_init, "trainer")
        out = self.options.out
        extra: list[pl.Callback] = []
        own = config.get("callbacks") or []
        own = own if isinstance(own, list) else [own]
        if config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in own):
            extra.append(progress(config.get("log_every_n_steps") or 50))
        if out is not None and not self._dry:
            if self._fits:
                source = str(self._own.get("ckpt_path") or self.options.init_from or "") or None
                extra.append(RunRecord(out, self._own.get("seed_everything"), source))
                loggers = config.get("logger")
                loggers = loggers if isinstance(loggers, list) else [loggers] if loggers else []
                kwargs["logger"] = [x for x in loggers if x is not True] + [JsonLines(out / "metrics.jsonl")]
            elif self._command == "predict":
                extra.append(PredictionWriter(out / "predictions"))
        config["callbacks"] = own + extra
        self.save_config_kwargs["config_dict"] = self._config_dict
        self.save_config_kwargs["folder"] = out
        try:
            return super().instantiate_trainer(**kwargs)
        except ValueError as error:
            raise InputError(f"trainer: {' '.join(str(error).split())}") from error

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "predict":
            kwargs["return_predictions"] = False  # they are on disk, and in all do not fit in memory
        return kwargs

    def _run_subcommand(self, subcommand: str) -> None:
        if self.options.init_from is not None:
            told = runs.load_weights(self.model, self.options.init_from)
            if rank() == 0:
                print(told, file=sys.stderr)
        if self.options.command == "export":
            self._export_checkpoint()
            return
        super()._run_subcommand(subcommand)
        if self._fits:
            self._export()
        elif self.options.out is not None and self._command in ("validate", "test") and rank() == 0:
            metrics = {k: float(v) for k, v in self.trainer.callback_metrics.items()}
            with atomic_file(self.options.out / f"{self._command}.json") as file:
                file.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")

    def _export_checkpoint(self) -> None:
        if self.options.init_from is None:
            print(runs.load_weights(self.model, self._own.ckpt_path), file=sys.stderr)
        if not self._export():
            raise InputError(f"{type(self.model).__name__} has no exported form")

    def _export(self) -> bool:
        """Write ``export/`` with the averaged weights, if the model has such a form."""
        if not isinstance(self.model, BaseModule) or self._dry or self.options.out is None:
            return False
        if self.trainer.is_global_zero:
            with averaged(self.trainer), atomic_folder(self.options.out / "export") as folder:
                self.model.export(folder)
                forget_paths(folder)
            print(f"exported to {self.options.out / 'export'}", file=sys.stderr)
        return True


class RunConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run's folder and the configuration into every checkpoint.

    Args:
        *args: As Lightning gives them.
        folder: The run's folder; None writes nothing.
        config_dict: The configuration as plain data.
        **kwargs: As Lightning gives them.
    """

    def __init__(
        self, *args: Any, folder: Path | None = None, config_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.folder, self.config_dict = folder, config_dict or {}

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the file."""
        if self.folder is not None and stage == "fit":
            with atomic_file(self.folder / "config.yaml") as file:
                file.write_text(yaml.safe_dump(self.config_dict, sort_keys=False, allow_unicode=True), "utf-8")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A checkpoint can be told from one of another configuration, and resumed without guessing."""
        checkpoint["config"] = self.config_dict
