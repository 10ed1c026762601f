"""Turns the parser's many-line complaints into one line: key, what is wrong, what was probably meant."""

import difflib
import inspect
import re
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lit_insert.cli.configs import short_names

RUN_OPTIONS = {
    "--out DIR": "folder of the run: config.yaml, run.json, metrics.jsonl, checkpoints/, samples/, tb/, export/",
    "--resume": "continue the run in --out exactly where its checkpoints/last.ckpt left it",
    "--init_from RUN|CKPT|FOLDER": "start at step 0 from these weights (the average, if there is one)",
    "--trust_config PACKAGE": "let YAML files name classes of this package too (comma-separated for several)",
}


class ShortErrorParser(LightningArgumentParser):
    """A parser that takes no abbreviations and answers mistakes with one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        usage = "train.py fit|validate|test|predict [--config FILE ...] [--out DIR] [--KEY VALUE ...]"
        super().__init__(*args, **{"allow_abbrev": False, "usage": usage, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print ``error: …`` and exit with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        print(f"error: {shorten(message, self)}", file=sys.stderr)
        sys.exit(2)

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The run's own options, then the parser's help."""
        text = super().format_help(*args, **kwargs)
        if not any("--trainer.max_steps" in action.option_strings for action in self._actions):
            return text  # help for one class
        width = max(map(len, RUN_OPTIONS)) + 2
        own = "".join(f"  {name:<{width}}{told}\n" for name, told in RUN_OPTIONS.items())
        data = [name for name in short_names() if name.endswith("DataModule")]
        models = [name for name, path in short_names().items() if path.split(".")[-2] == "module"]
        classes = f"  --model {'|'.join(models)}\n  --data {'|'.join(data)}\n"
        return f"run options:\n{own}\nclasses (see --model.help CLASS):\n{classes}\n{text}"


def meant(word: str, known: Iterable[str]) -> str:
    """`` (did you mean …?)``, or nothing."""
    known = sorted(set(known))
    tails = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6) or [
        tails[t] for t in difflib.get_close_matches(word.rsplit(".", 1)[-1], tails, n=1, cutoff=0.7)
    ]
    return f"; did you mean {near[0]}?" if near else ""


def shorten(message: str, parser: Any = None) -> str:
    """One line for a jsonargparse message."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    path = ".".join(keys)
    options = _options(parser)
    if found := re.search(r"unrecognized arguments: (\S+)", message):
        word = found[1].split("=")[0]
        if word.startswith("-"):
            return f"no option is called {word}{meant(word, options)}"
        return f"unexpected argument {word!r}; options start with --"
    if found := re.search(r"does not accept option '([^']+)'", message):
        known = [o.removeprefix("--") for o in options]
        return f"no key is called {found[1]}{meant(found[1], known)}"
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        owners = re.findall(r"class_path[ =]'([\w.]+)'", message)
        owner = owners[-1] if owners else ""
        return f"{path}.{found[1]}: {owner} has no such argument{meant(found[1], _arguments(owner))}"
    if found := re.search(r"required: (.+)", message):
        names = [n.split(".", 1)[-1] for n in re.split(r",\s*", found[1])]
        classes = " ".join(f"--{name} CLASS" for name in names)
        return f"{' and '.join(names)} must be given: --config FILE, or {classes}"
    return _value_error(message, path)


def _value_error(message: str, path: str) -> str:
    flat = " ".join(message.split())
    if found := re.search(r"Importing '([^']+)' is not allowed", flat):
        package = found[1].split(".")[0]
        return f"{path}: {found[1]} is not of a trusted package; if you trust it: --trust_config {package}"
    if found := re.search(r"File does not exist: '?([^' ]+)", flat):
        return f"{path}: {found[1]}: no such file"
    if found := re.search(r"(?:module '([\w.]+)' has no attribute '(\w+)'|No module named '([\w.]+)')", flat):
        if found[3]:
            return f"{path}: no package is called {found[3]!r}{meant(found[3], short_names())}"
        members = vars(sys.modules[found[1]]) if found[1] in sys.modules else {}
        return f"{path}: {found[1]} has no class {found[2]!r}{meant(found[2], members)}"
    if found := re.search(r"Expected a dot import path string: (\S+)", flat):
        return f"{path}: no class is called {found[1]!r}{meant(found[1], _classes())}"
    if found := re.search(r"does not correspond to a subclass of (\w+)", flat):
        given = re.search(r"Given value: (\S+)|Expected a path but (\S+)", flat)
        name = next((g for g in given.groups() if g), "it") if given else "it"
        return f"{path}: {name} is not a {found[1]}"
    given = re.search(r"Given value: (.+)$", flat) or re.search(r"Got value: (.+?)(?: - Expected|$)", flat)
    value = given[1] if given else ""
    if nested := re.search(r"Got value: (\S+)", flat):
        value = nested[1]
    if choices := re.findall(r"Literal\[([^\]]*)\]", flat.split("Errors:")[0]) or re.findall(
        r"Expected a typing.Literal\[([^\]]*)\]", flat
    ):
        words = list(dict.fromkeys(w.strip(" '") for c in choices for w in c.split(",")))
        return f"{path}: {value!r} is none of {', '.join(words)}{meant(value, words)}"
    kinds: dict[str, None] = dict.fromkeys(re.findall(r"Expected an? <class '([\w.]+)'>", flat))
    if names := " or ".join(k.rsplit(".", 1)[-1] for k in kinds if k != "NoneType"):
        return f"{path}: expected {names}, got {value!r}"
    flat = flat.removeprefix(f'Parser key "{path}": ')
    return f"{path + ': ' if path else ''}{flat}"[:400]


def _options(parser: Any) -> list[str]:
    own = [name.split()[0] for name in RUN_OPTIONS]
    parsers = [parser, *getattr(parser, "_subcommand_parsers", {}).values()] if parser is not None else []
    for action in list(getattr(parser, "_actions", ())):
        parsers += list(action.choices.values()) if isinstance(getattr(action, "choices", None), dict) else []
    return own + [s for p in parsers for a in p._actions for s in a.option_strings if s.startswith("--")]


def _arguments(class_path: str) -> list[str]:
    try:
        module, name = class_path.rsplit(".", 1)
        return list(inspect.signature(getattr(import_module(module), name)).parameters)
    except (ValueError, ImportError, AttributeError, TypeError):
        return []


def _classes() -> list[str]:
    import lightning.pytorch as pl
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

    names = list(short_names())
    todo: list[type] = [pl.LightningModule, pl.LightningDataModule, pl.Callback, Optimizer, LRScheduler]
    while todo:
        below: list[type] = todo.pop().__subclasses__()
        names += [k.__name__ for k in below if not k.__name__.startswith("_")]
        todo += below
    return names
