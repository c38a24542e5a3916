import io
import re
import time

import pytest
from rich.console import Console

from service.repository.progress import Bars, Plain, Silent, terminal_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_at_the_start_on_the_way_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    with Plain(out).bar("a.whl", 20_000_000) as advance:
        for _ in range(100):
            clock[0] += 0.1
            advance(200_000)
    lines = out.getvalue().splitlines()
    assert lines[0] == "a.whl: downloading, 20.0 MB"
    assert lines[1] == "a.whl: 10 % of 20.0 MB, 2.0 MB/s"
    assert [line.split()[1] for line in lines[1:-1]] == [str(p) for p in range(10, 100, 10)]
    assert lines[-1] == "a.whl: 20.0 MB complete in 10.0 s, 2.0 MB/s"


def test_a_slow_download_is_heard_of_every_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    with Plain(out).bar("a.whl", None) as advance:
        for _ in range(12):
            clock[0] += 1
            advance(100_000)
    assert out.getvalue().splitlines() == [
        "a.whl: downloading, unknown size",
        "a.whl: 0.5 MB, 0.1 MB/s",
        "a.whl: 1.0 MB, 0.1 MB/s",
        "a.whl: 1.2 MB complete in 12.0 s, 0.1 MB/s",
    ]


def test_plain_says_what_was_there_before_and_leaves_it_out_of_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    with Plain(out).bar("a.whl", 10_000_000, 8_000_000) as advance:
        clock[0] += 1
        advance(2_000_000)
    lines = out.getvalue().splitlines()
    assert lines[0] == "a.whl: downloading, 10.0 MB, 8.0 MB of it already here"
    assert lines[-1] == "a.whl: 10.0 MB complete in 1.0 s, 2.0 MB/s"


def test_a_download_that_fails_is_not_called_complete() -> None:
    out = io.StringIO()
    with pytest.raises(RuntimeError), Plain(out).bar("a.whl", 10):
        raise RuntimeError
    assert "complete" not in out.getvalue()


def test_bars_show_size_and_speed_and_two_at_once_share_the_place() -> None:
    out = Terminal()
    bars = Bars(Console(file=out, force_terminal=True, width=120))
    with bars.bar("[one].whl", 4_000_000, 1_000_000) as one, bars.bar("two.whl", None) as two:
        bars.note("a [note] in between")
        one(3_000_000)
        two(500_000)
    with bars.bar("three.whl", 1_000_000) as three:
        three(1_000_000)
    text = plain(out)
    assert "a [note] in between" in text
    assert re.search(r"\[one\]\.whl .*4\.0/4\.0 MB", text)
    assert "two.whl" in text
    assert re.search(r"three\.whl .*1\.0/1\.0 MB", text)


def test_a_bar_stays_on_one_line_of_a_small_terminal() -> None:
    out = Terminal()
    with Bars(Console(file=out, force_terminal=True, width=80)).bar(
        "a_package_with_a_long_name-1.0.0-py3-none-any.whl", 9_000_000
    ) as bar:
        bar(9_000_000)
    last = plain(out).rstrip().splitlines()[-1].split("\r")[-1]
    assert re.fullmatch(r"a_package_with_\S*… ━{20} 9\.0/9\.0 MB .*0:00:00", last)


def plain(out: Terminal) -> str:
    """What was written, without the terminal's control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())


def test_the_stream_decides_between_bars_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(terminal_progress(Terminal()), Bars)
    plain = terminal_progress()
    assert isinstance(plain, Plain)
    plain.note("to stderr")
    assert capsys.readouterr() == ("", "to stderr\n")


def test_silent_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent = Silent()
    silent.note("nothing")
    with silent.bar("a", 1) as advance:
        advance(1)
    assert capsys.readouterr() == ("", "")
