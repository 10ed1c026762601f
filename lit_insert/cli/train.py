"""``train.py``: fit, validate, test, predict and export from the command line."""

import argparse
import difflib
import errno
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lit_insert.cli.configs import config_names, expand_names, find_config
from lit_insert.errors import InputError

COMMANDS = {
    "fit": "train, or continue training",
    "validate": "measure the run's best checkpoint (or its last) on the validation data",
    "test": "the same on the test data",
    "predict": "write the pictures of the run's model for the prediction data",
    "export": "write the run's model as a folder that infer.py and diffusers load",
}
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_HELP = """usage: train.py {commands} [--config FILE …] [--out DIR] [--KEY VALUE …]

{table}

  train.py fit --config pocket/insert.yaml --out runs/a                a new run
  train.py fit --out runs/a --resume                                   continue it after a stop or a kill
  train.py fit --config pocket/insert.yaml --out runs/b --init_from runs/a
  train.py test --out runs/a
  train.py fit --help                                                  every option
  train.py fit --model.help EmbeddingOptimizerModule                   what one class takes
  train.py fit --config pocket/insert.yaml --print_config              the whole configuration

Several --config files are merged in order; --KEY VALUE comes last, such as --trainer.max_steps 500.
Configurations that come with the package:
{configs}
"""


@dataclass
class RunOptions:
    """What the command line says about the run, beside its configuration.

    Args:
        command: One of `COMMANDS`.
        out: Folder of the run.
        resume: Continue it.
        init_from: Run, checkpoint or exported folder to take weights from.
        trusted: Further packages whose classes YAML files may name.
        configs: Configuration files, in order.
        rest: Arguments for the parser.
    """

    command: str
    out: Path | None
    resume: bool
    init_from: str | None
    trusted: list[str]
    configs: list[Path]
    rest: list[str]


def read_options(argv: Sequence[str]) -> RunOptions:
    """Take the run's own options out of the arguments.

    Raises:
        InputError: If they contradict each other or a file is missing.
    """
    if not argv or argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1) if argv else []
        hint = f"; did you mean {near[0]}?" if near else ""
        given = f"{argv[0]!r} is not a command" if argv else "no command given"
        raise InputError(f"{given}; give one of {', '.join(COMMANDS)}{hint}")
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    parser.add_argument("--out")
    parser.add_argument("--resume", nargs="?", const="true", default="false", choices=["true", "false"])
    parser.add_argument("--init_from")
    parser.add_argument("--trust_config", default="")
    parser.add_argument("-c", "--config", action="append", default=[])
    try:
        own, rest = parser.parse_known_args(list(argv[1:]))
    except argparse.ArgumentError as error:
        raise InputError(str(error)) from error
    options = RunOptions(
        command=argv[0],
        out=Path(own.out) if own.out else None,
        resume=own.resume == "true",
        init_from=own.init_from,
        trusted=[p for p in own.trust_config.split(",") if p],
        configs=[find_config(c) for c in own.config],
        rest=expand_names(rest),
    )
    _agree(options)
    return options


def _agree(options: RunOptions) -> None:
    if options.resume and options.init_from:
        raise InputError("--resume and --init_from exclude each other: continue a run, or start one from weights")
    if options.resume and options.command != "fit":
        raise InputError(f"--resume belongs to fit; {options.command} takes the run's checkpoint anyway")
    if options.resume and options.out is None:
        raise InputError("--resume needs --out DIR, the run to continue")
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out}: is a file; give a folder")


def rank() -> int:
    """Global rank that the launcher gave this process; 0 if there was none."""
    for name in ("RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return int(os.environ.get("LOCAL_RANK") or 0) or int(os.environ.get("NODE_RANK") or 0)


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; ends the process with 0, 2 after a mistake in the input, 130 or 143 after a signal."""
    argv = list(sys.argv[1:] if args is None else args)
    if not argv or argv[0] in ("-h", "--help"):
        print(_help(), end="")
        raise SystemExit(0 if argv else 2)
    if argv[0] == "--version":
        from lit_insert import __version__

        print(f"lit-insert {__version__}")
        return
    try:
        options = read_options(argv)
        from lit_insert.cli.train_cli import run

        run(options)
    except InputError as error:
        fail(error)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        fail(InputError(f"cannot write {error.filename or 'to disk'}: {error.strerror}"))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except SystemExit as end:
        raise SystemExit(_status(end)) from None


def fail(error: BaseException) -> NoReturn:
    """Print one line and exit with status 2; ranks beside the first stay silent on what all of them meet."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[-1] if "Original Traceback" in str(error) else " ".join(" ".join(lines).split())
    number = rank()
    if number == 0 or not getattr(error, "on_all_ranks", False):
        where = f"rank {number}: " if number else ""
        print(f"error: {where}{text}", file=sys.stderr, flush=True)
    raise SystemExit(2)


def _status(end: SystemExit) -> int | str | None:
    names = {c.__name__ for c in type(end).__mro__}
    if "Interrupted" in names or "SIGTERMException" in names:
        # A rank that Lightning started must not look failed to the first one, which would then be killed.
        started = os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ
        if started and "SLURM_PROCID" not in os.environ:
            return 0
        return end.code if "Interrupted" in names else 143
    if isinstance(end.__context__, KeyboardInterrupt):
        return 130
    return end.code


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    return _HELP.format(
        commands="|".join(COMMANDS),
        table="\n".join(f"  {name:<{width}}{text}" for name, text in COMMANDS.items()),
        configs="\n".join(f"  {name}" for name in config_names()),
    )
