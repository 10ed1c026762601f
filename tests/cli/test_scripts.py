import os
import signal

import pytest

from lit_insert.cli.scripts import run_script
from lit_insert.errors import InputError


def failing(error):
    def run():
        raise error

    return run


def test_the_status_of_the_work_is_returned():
    assert run_script(lambda: 0) == 0
    assert run_script(lambda: 1) == 1


def test_a_mistake_is_one_line(capsys):
    assert run_script(failing(InputError("a.csv: no column 'id';\n  it has 'name'"))) == 2
    assert capsys.readouterr().err == "error: a.csv: no column 'id'; it has 'name'\n"


def test_an_interrupt_says_how_to_go_on(capsys):
    assert run_script(failing(KeyboardInterrupt()), "go on with the same command") == 130
    assert capsys.readouterr().err == "go on with the same command\n"


def test_other_errors_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run_script(failing(ZeroDivisionError()))


def test_sigterm_unwinds_and_the_handler_goes_back():
    before, closed = signal.getsignal(signal.SIGTERM), []

    def run():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            closed.append(True)

    with pytest.raises(SystemExit) as end:
        run_script(run)
    assert end.value.code == 143
    assert closed
    assert signal.getsignal(signal.SIGTERM) is before
