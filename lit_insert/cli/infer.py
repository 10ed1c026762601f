"""``infer.py``: use trained models from the command line.

Nothing heavy is imported before the arguments are known to be right, so help and mistakes answer at once.
"""

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import NoReturn

from lit_insert import __version__
from lit_insert.errors import InputError

# Name -> (module with ``add_arguments(parser)`` and ``run(options) -> exit status``, what it does).
COMMANDS: dict[str, tuple[str, str]] = {
    "insert": ("lit_insert.cli.insert", "put the object of one picture into another, with no mask and no prompt"),
    "mask": ("lit_insert.cli.mask", "find the people of photos (or what the model was trained on): masks, cut-outs"),
    "replace": ("lit_insert.cli.replace", "put another person in the place of the one in a photo"),
    "generate": ("lit_insert.cli.generate", "make pictures from noise in one to a few steps, or many with a teacher"),
    "segment": ("lit_insert.cli.segment", "find the things of a prompt in pictures, and which became which"),
    "edit": ("lit_insert.cli.edit", "fill holes, colour, enlarge, restyle or blend pictures with the same model"),
    "synthesize": ("lit_insert.cli.synthesize", "draw a prompt, with each of its things in its own box"),
    "fuse": ("lit_insert.cli.fuse", "put objects where words say, in feature space, and make them look natural"),
}


class Parser(argparse.ArgumentParser):
    """A parser that raises `InputError` instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the complaint as one line."""
        raise InputError(" ".join(message.split()))


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run a command and end the process.

    The exit status is 0, 1 if some of several inputs failed, 2 for a mistake in the input, 130 after Ctrl-C.
    """
    try:
        status = _run(list(sys.argv[1:] if args is None else args))
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        status = 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("stopped; results written so far are complete", file=sys.stderr)
        status = 130
    raise SystemExit(status)


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"lit-insert {__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        what = "option" if name.startswith("-") else "command"
        raise InputError(f"no {what} is called {name}{meant(name, COMMANDS)}; commands: {', '.join(COMMANDS)}")
    module = import_module(COMMANDS[name][0])
    parser = Parser(
        prog=f"infer.py {name}",
        description=COMMANDS[name][1].capitalize() + ".",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    options, unknown = parser.parse_known_args([_underscored(a) for a in argv[1:]])
    if unknown:
        known = [s for action in parser._actions for s in action.option_strings]
        word = unknown[0].split("=")[0]
        if not word.startswith("-"):
            raise InputError(f"unexpected argument {word!r}; options start with --")
        raise InputError(f"no option is called {word}{meant(word, known)}")
    run: Callable[[argparse.Namespace], int] = module.run
    return run(options)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the defaults that say something."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=110)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def meant(word: str, known: Iterable[str]) -> str:
    """`` (did you mean …?)``, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _underscored(argument: str) -> str:
    """``--num-images=3`` as ``--num_images=3``; values stay as they are."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: infer.py {{{','.join(COMMANDS)}}} …",
            "",
            "commands:",
            *lines,
            "",
            "infer.py COMMAND --help lists a command's options.",
        ]
    )
