"""Progress where there is no terminal: a line now and then."""

import pytest

from vitfold.cli import show


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, which the test moves on."""
    now = [100.0]
    monkeypatch.setattr(show.time, "perf_counter", lambda: now[0])
    return now


def test_a_bar_tells_in_lines_how_far_it_is(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with show.bar("scoring [patches]", 250) as progress:
        for _ in range(100):
            progress()
            clock[0] += 1
    assert capsys.readouterr().err.splitlines() == [
        "scoring [patches]: 31 of 250 after 0:00:30",
        "scoring [patches]: 61 of 250 after 0:01:00",
        "scoring [patches]: 91 of 250 after 0:01:30",
    ]


def test_what_is_quick_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with show.bar("quick", 3) as progress:
        progress()
    assert capsys.readouterr().err == ""


def test_shares_words_and_what_has_no_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with show.gauge("tuning") as tell:
        clock[0] += 3700
        tell(0.25, "ward [k]")
    with show.bar("products", None) as progress:
        clock[0] += 31
        progress()
    lines = ["tuning: 25% after 1:01:40, ward [k]", "products: 1 after 0:00:31"]
    assert capsys.readouterr().err.splitlines() == lines
