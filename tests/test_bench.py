"""The bench's command line."""

import pytest

import bench


def test_all_parts_run_unless_one_is_asked_for() -> None:
    assert bench.options([]).part is None
    assert bench.options(["--part", "growth", "10000"]).part == "growth"
    assert bench.options(["10000"]).most == 10_000


def test_an_unknown_part_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bench.options(["--part", "typo"])
    refusal = capsys.readouterr().err
    assert all(part in refusal for part in bench.PARTS)
