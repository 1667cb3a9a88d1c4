r"""No fixed date meets the real clock: what works today works on any other day.

A date long past no longer makes a difference, and one in the year 9999 does not yet. Any date in
between is a time bomb, so there are none: a test that only computes or parses takes a date of 2001,
one that calls a function counts from `time.time()`, and a sample has no time at all, meaning now.

Running the suite on another day takes Debian's libfaketime (package `faketime`), and a sleep that
it leaves alone: while the monotonic clock stays real, libfaketime's own sleep (0.9.10) fails.

    echo 'int clock_nanosleep(int clock, int flags, void *until, void *left)
        { return syscall(SYS_clock_nanosleep, clock, flags, until, left) ? errno : 0; }' |
        cc -include errno.h -include unistd.h -include sys/syscall.h \
            -shared -fPIC -x c -o .venv/sleep.so -
    FAKETIME=+400d FAKETIME_DONT_FAKE_MONOTONIC=1 NO_FAKE_STAT=1 \
        LD_PRELOAD="$PWD/.venv/sleep.so /usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1" \
        .venv/bin/pytest

An offset in seconds, `+$(($(date +%s -d '400 days 23:57 UTC') - $(date +%s)))s`, starts before
midnight UTC.
"""

import re
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from invoking import EVENTS

ROOT = Path(__file__).parent.parent
SAMPLES = sorted(EVENTS.glob("*.json"))
SOURCES = sorted(p for kind in ("py", "js", "json") for p in ROOT.glob(f"[a-z]*/**/*.{kind}"))

YEAR = r"20[2-9]\d"
MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
DATE = re.compile(
    rf"\b{YEAR}-[01]\d(?!\w)"  # ISO 8601
    rf"|\b\d\d?[ /]{MONTH}[ /]{YEAR}\b"  # HTTP's Retry-After, API Gateway's requestTime
    rf"|\bdate(?:time)?\({YEAR}\b"
    r"|(?<![\w.])(?:1[6-9]|[23]\d)\d{8}(?:\d{3})?(?!\w)"  # epoch seconds, milliseconds
)


def dates(text: str) -> list[str]:
    """Return the dates from 2020 to 2099 in a text, however they are written."""
    return DATE.findall(re.sub(r"(?<=\d)_(?=\d)", "", text))


def test_no_file_has_a_date_that_will_pass() -> None:
    assert set(SAMPLES) < set(SOURCES)
    found = {str(path.relative_to(ROOT)): dates(path.read_text()) for path in SOURCES}
    assert {name: fixed for name, fixed in found.items() if fixed} == {}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_no_sample_says_when_it_happened(sample: Path) -> None:
    assert re.findall(r'"\w*time\w*"', sample.read_text(), re.IGNORECASE) == []


@pytest.mark.parametrize(
    "form",
    [
        '"time": "%Y-%m-%dT%H:%M:%SZ"',
        'f"%Y-%m-{day}"',
        "%d/%b/%Y:%H:%M:%S +0000",
        "datetime(%Y, 1, 1, tzinfo=UTC)",
        "Clock(%s)",
        '"requestTimeEpoch": %s000',
    ],
)
def test_today_is_found_however_it_is_written(form: str) -> None:
    assert dates(time.strftime(form, time.gmtime()))


def test_today_is_found_in_a_header_and_as_a_literal() -> None:
    now = int(time.time())
    assert dates(formatdate(now, usegmt=True))
    assert dates(f"{now:_}") == dates(f"{now:_}.0") == [str(now)]
