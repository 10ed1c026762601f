"""How long does one wait for the package to be imported and for the command lines to say what they can?

Every figure is the best of ``--repeats`` fresh interpreters, started in turn, on warm file caches, from the start of
the process to its end; an empty interpreter is shown beside them. ``train.py fit --help`` builds the parser of the
whole training command and is set against importing LightningCLI alone, which is the least that it can cost.
``python benchmarks/import_time.py --json``
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
RUNS = {
    "empty interpreter": ["-c", "pass"],
    "import lit_insert": ["-c", "import lit_insert"],
    "infer.py --help": ["infer.py", "--help"],
    "infer.py insert --help": ["infer.py", "insert", "--help"],
    "train.py --help": ["train.py", "--help"],
    "import lightning.pytorch.cli": ["-c", "import lightning.pytorch.cli"],
    "train.py fit --help": ["train.py", "fit", "--help"],
}
QUIET = ("import lit_insert", "infer.py --help", "infer.py insert --help", "train.py --help")
_LOADED = """
import runpy, sys
sys.argv = {argv}
try:
    {action}
except SystemExit:
    pass
print("\\nloaded", *sorted(sys.modules.keys() & {{"torch", "lightning", "diffusers", "transformers"}}))
"""


def seconds(arguments: list[str]) -> float:
    """Wall time of one fresh interpreter.

    Raises:
        RuntimeError: If it fails.
    """
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    spent = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return spent


def heavy_imports(arguments: list[str]) -> list[str]:
    """Which of the slow packages are loaded when these arguments have run."""
    plain = arguments[0] == "-c"
    action = arguments[1] if plain else f"runpy.run_path({arguments[0]!r}, run_name='__main__')"
    code = _LOADED.format(argv=[""] if plain else arguments, action=action)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()[1:]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="fresh interpreters for each row")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    args = parser.parse_args()

    times: dict[str, list[float]] = {name: [] for name in RUNS}
    for arguments in RUNS.values():
        seconds(arguments)  # fills the file caches and writes the byte code
    for _ in range(args.repeats):
        for name, arguments in RUNS.items():
            times[name].append(seconds(arguments))
    best = {name: min(values) for name, values in times.items()}
    loaded = {name: heavy_imports(RUNS[name]) for name in QUIET}
    alone = best["import lightning.pytorch.cli"]

    table = Table(title=f"best of {args.repeats} fresh interpreters")
    for heading in ("", "seconds", "of importing LightningCLI", "target", "imports"):
        table.add_column(heading)
    targets = {"import lit_insert": "<= 0.2 s", "infer.py --help": "<= 0.6 s, no torch", "train.py --help": "<= 1.30"}
    for name, value in best.items():
        imports = ", ".join(loaded[name]) or "nothing heavy" if name in loaded else ""
        table.add_row(name, f"{value:.3f}", f"{value / alone:.2f}", targets.get(name, ""), imports)
    Console(width=120).print(table)
    met = {
        "import lit_insert": best["import lit_insert"] <= 0.2,
        "infer.py --help": best["infer.py --help"] <= 0.6 and "torch" not in loaded["infer.py --help"],
        "train.py --help": best["train.py --help"] <= 1.3 * alone,
    }
    if args.json:
        print(
            json.dumps(
                {
                    "benchmark": "import_time",
                    "settings": vars(args),
                    "seconds": {name: round(value, 4) for name, value in best.items()},
                    "heavy_imports": loaded,
                    "train_help_ratio": round(best["train.py --help"] / alone, 3),
                    "fit_help_ratio": round(best["train.py fit --help"] / alone, 3),
                    "met": met,
                }
            )
        )


if __name__ == "__main__":
    main()
