import re

import pytest
from runner import fit

from lit_insert.training.progress import PlainProgress, clock, progress


def test_a_line_every_so_often_with_the_time_left(tmp_path, capsys):
    fit(tmp_path, PlainProgress(4), max_steps=10, enable_progress_bar=True, val_check_interval=5)
    lines = capsys.readouterr().err.splitlines()
    steps = [line for line in lines if re.match(r"step \d+/10, \d+:\d\d left, loss ", line)]
    assert [int(re.findall(r"\d+", line)[0]) for line in steps] == [1, 4, 8, 10]
    assert any(re.match(r"step 5: validated, val/loss \d", line) for line in lines)


def test_no_bar_where_there_is_no_terminal():
    assert isinstance(progress(50), PlainProgress)


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00"), (61, "1:01"), (3600 * 5 + 62.6, "5:01:03")])
def test_clock(seconds, text):
    assert clock(seconds) == text
