"""``python -m lit_insert COMMAND …``: the commands of train.py, and those of infer.py."""

import sys

from lit_insert.cli.train import COMMANDS
from lit_insert.cli.train import main as train

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in COMMANDS or sys.argv[1].startswith("-"):
        train()
    else:
        from lit_insert.cli.infer import main as infer

        infer()
