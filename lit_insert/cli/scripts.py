"""What the scripts in data/ share: mistakes in one line, and exit statuses."""

import signal
import sys
from collections.abc import Callable

from lit_insert.errors import InputError


def run_script(run: Callable[[], int], stopped: str = "stopped") -> int:
    """Run a script's work and return the process' exit status.

    SIGTERM unwinds the work as an exception does, so that files are closed, and ends the process with 143.

    Args:
        run: The work; returns the status.
        stopped: What to say after Ctrl-C.

    Returns:
        What ``run`` returns, 2 for a mistake in the input, 130 after Ctrl-C.
    """

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        return run()
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
