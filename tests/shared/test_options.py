"""Command lines: switches, dashes, several values, files, and what is refused by name."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

import pytest

from shared.errors import DataError
from shared.options import Parsed, TrainOptions, check_ranges, parse


@dataclasses.dataclass
class Group:
    """Nested.

    Args:
        size_mm: edge of the cube [mm]
        deep: a switch in a group
        widths: three numbers [channels]
    """

    size_mm: float = 200.0
    deep: bool = False
    widths: tuple[int, int, int] = (1, 2, 3)


@dataclasses.dataclass
class Options:
    """Options.

    Args:
        run: folder of the run
        center: x,y,z [mm]
        kind: one of two
        resume: a switch that is off
        baseline: a switch that is on
        no_check: a switch whose own name begins with no
        names: several words
        cameras: several numbers
        files: words without a flag
        group: a group
    """

    run: str = ""
    center: str | None = None
    kind: Literal["one", "two"] = "one"
    resume: bool = False
    baseline: bool = True
    no_check: bool = False
    names: list[str] | None = None
    cameras: list[int] = dataclasses.field(default_factory=lambda: [1, 2, 3])
    files: list[str] = dataclasses.field(default_factory=list)
    group: Group = dataclasses.field(default_factory=Group)


def read(*words: str, **more: Any) -> Options:
    return full(*words, **more).options


def full(*words: str, **more: Any) -> Parsed[Options]:
    more.setdefault("positional", "files")
    return parse(Options, prog="prog", description="Text.", argv=words, positional_help="the files", **more)


def test_defaults_and_plain_values() -> None:
    assert read() == Options()
    assert read("--run", "a", "--kind=two", "--group.size_mm", "3") == Options("a", kind="two", group=Group(3.0))
    assert read("--run", "a=b").run == "a=b"
    assert read("--run=a=b").run == "a=b"


def test_switches() -> None:
    assert read("--resume").resume
    assert read("--resume", "--run", "x") == Options("x", resume=True)
    assert not read("--resume", "--no-resume").resume  # the later one wins
    assert not read("--no-baseline").baseline
    assert not read("--no_baseline").baseline
    assert not read("--baseline", "false").baseline
    assert not read("--baseline=no").baseline
    assert read("--group.deep").group.deep
    assert read("--no-check").no_check  # a name of its own, not the negation of --check
    assert read("--resume", "file.txt") == Options(resume=True, files=["file.txt"])


def test_dashes_are_underscores_in_names_and_stay_in_values() -> None:
    assert read("--group.size-mm", "7").group.size_mm == 7
    assert read("--group.size-mm=7").group.size_mm == 7
    assert read("--run", "a-b").run == "a-b"


def test_a_value_may_begin_with_a_minus_sign() -> None:
    assert read("--center", "-3,4,5").center == "-3,4,5"
    assert read("--group.size_mm", "-2").group.size_mm == -2


def test_several_values() -> None:
    assert read("--names", "a", "b c", "--run", "r") == Options("r", names=["a", "b c"])
    assert read("--names", "a", "--run", "r", "--names", "b").names == ["a", "b"]
    assert read("--names=a").names == ["a"]
    assert read("--names", "1", "null", "[x").names == ["1", "null", "[x"]  # words, not YAML
    assert read('--names=["a", "b"]').names == ["a", "b"]
    assert read("--cameras", "3", "1").cameras == [3, 1]
    assert read("--cameras", "[2]").cameras == [2]
    assert read("--group.widths", "4", "5", "6").group.widths == (4, 5, 6)
    assert read("--group.widths", "[4, 5, 6]").group.widths == (4, 5, 6)


def test_words_without_a_flag_may_stand_anywhere() -> None:
    assert read("a", "b", "--run", "r").files == ["a", "b"]
    assert read("a", "--run", "r", "b").files == ["a", "b"]
    assert read("--files", "a", "b", "--run", "r", "c").files == ["a", "b", "c"]
    assert read("--files=a", "b").files == ["a", "b"]


def test_other_names_of_an_option() -> None:
    for words in (["--from", "two"], ["--from=two"]):
        assert read(*words, aliases={"from": "kind"}).kind == "two"
    assert not read("--keep", "false", aliases={"keep": "baseline"}).baseline


def test_a_file_and_what_comes_after_it(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("run: from file\nbaseline: false\nnames: [x, y]\ngroup:\n  deep: true\n")
    assert read("--config", str(path)) == Options("from file", baseline=False, names=["x", "y"], group=Group(deep=True))
    assert read("--config", str(path), "--run", "later", "--baseline").run == "later"
    assert read("--run", "earlier", f"--config={path}").run == "from file"


def test_the_resolved_options_can_be_read_again(tmp_path: Path) -> None:
    first = full("--run", "r", "--names", "1", "b", "--cameras", "2", "--group.deep", "--center", "-1,2,3", "f", "g")
    (tmp_path / "a.yaml").write_text(first.yaml)
    again = full("--config", str(tmp_path / "a.yaml"))
    assert again.options == first.options
    assert again.yaml == first.yaml


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--rnu", "x"], "rnu"),
        (["--rnu=x"], "rnu"),
        (["--no-run"], "no-run"),  # not a switch
        (["--kind", "three"], "three"),
        (["--group.size_mm", "wide"], "size_mm"),
        (["--cameras", "1", "x"], "cameras"),
        (["--group.widths", "1", "2"], "widths"),
        (["--resume=maybe"], "resume"),
        (["--run"], "run"),
        (["--names"], "names"),
        (["--run", "--resume"], "run"),
    ],
)
def test_refused_by_name_with_status_2(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        read(*words)
    assert end.value.code == 2
    assert named in capsys.readouterr().err


def test_loose_words_are_refused_where_none_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        read("stray.txt", "--run", "r", positional=None)
    assert end.value.code == 2
    assert "stray.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "named"), [("rnu: x\n", "rnu"), ("group:\n  wide: 1\n", "wide"), ("run: [1]\n", "run")]
)
def test_bad_files_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, named: str
) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SystemExit) as end:
        read("--config", str(tmp_path / "a.yaml"))
    assert end.value.code == 2
    assert named in capsys.readouterr().err


def test_a_file_that_is_no_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_bytes(b"run: x # \xff\n")
    with pytest.raises(SystemExit) as end:
        read("--config", str(tmp_path / "a.yaml"))
    assert end.value.code == 2
    assert "--config: not a text file that can be read" in capsys.readouterr().err


def test_ranges() -> None:
    options = TrainOptions(grad_clip=float("inf"), epochs=3)
    check_ranges(options, {"epochs": (1, 3), "seed": (0, math.inf)})
    with pytest.raises(DataError, match="--epochs must be 4 to 9, got 3"):
        check_ranges(options, {"epochs": (4, 9)})
    with pytest.raises(DataError, match="--grad_clip must be at least 0, got inf"):
        check_ranges(options, {"grad_clip": (0, math.inf)})


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["a.png", "-h"]])  # -h is no file
def test_help_has_texts_units_and_defaults(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        read(*words)
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("usage: prog", "Text.", "--group.size_mm", "edge of the cube [mm]", "200.0", "the files", "--config"):
        assert part in text


@pytest.mark.parametrize("name", ["epochs", "batch_size", "devices", "num_nodes", "log_every", "validate_every"])
def test_train_options_at_least_one(name: str) -> None:
    with pytest.raises(DataError, match=f"--{name} must be at least 1, got 0"):
        TrainOptions(**{name: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["workers", "seed", "threads", "grad_clip", "checkpoint_every", "max_steps"])
def test_train_options_not_negative(name: str) -> None:
    with pytest.raises(DataError, match=f"--{name} must not be negative, got -1"):
        TrainOptions(**{name: -1})  # type: ignore[arg-type]
