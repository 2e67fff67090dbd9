"""How a program ends on input that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import DataError, MissingFileError, exit_on_error


def test_one_line_and_status_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("")

    def bad() -> None:
        raise DataError("too short", path="x.bin", remedy="get it again")

    def missing() -> None:
        raise MissingFileError("no such file", path="y.bin")

    def taken() -> None:
        (tmp_path / "taken/inside").mkdir(parents=True)

    for main, line in (
        (bad, "error: x.bin: too short -- get it again"),
        (missing, "error: y.bin: no such file"),
        (taken, f"error: {tmp_path}/taken/inside: Not a directory"),
    ):
        with pytest.raises(SystemExit) as end:
            exit_on_error(main)
        assert end.value.code == 2
        assert capsys.readouterr().err == line + "\n"


def test_what_is_not_about_a_file_keeps_its_traceback() -> None:
    def broken() -> None:
        raise OSError("device lost")

    with pytest.raises(OSError, match="device lost"):
        exit_on_error(broken)


def test_status_of_main_and_of_an_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    for main, code in ((lambda: None, 0), (lambda: 3, 3), (interrupted, 130)):
        with pytest.raises(SystemExit) as end:
            exit_on_error(main)
        assert end.value.code == code
    assert capsys.readouterr().err == "interrupted\n"
