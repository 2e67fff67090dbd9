"""Command lines from dataclasses: one parser for every program.

A program describes its options as a dataclass with an ``Args:`` section in its docstring (the help text, with the
unit of each number) and calls :func:`parse`. ``--config file.yaml`` may stand anywhere, later options win, unknown or
ill-typed keys are refused by name, and the resolved options can be written as YAML that ``--config`` reads again.

Options classes must live in modules that import nothing heavy, not even under ``TYPE_CHECKING``: jsonargparse 4.53
runs those imports to resolve annotations, and ``--help`` would wait for torch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from shared.errors import DataError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Parsed(Generic[T]):
    """Resolved options and the same as YAML text."""

    options: T
    yaml: str


@dataclasses.dataclass
class TrainOptions:
    """How long, on what and with which safety nets a run trains.

    Args:
        epochs: passes over the training set in total; a resumed run continues up to this number [epochs]
        batch_size: samples per step and per device [samples]
        workers: loader processes per device; 0 loads in the training process [processes]
        seed: of weights, sample order and augmentation
        accelerator: cpu, cuda, or auto (cuda where there is one)
        devices: processes, one a device (DDP; gloo on the CPU) [devices]
        num_nodes: machines that take part (DDP) [machines]
        precision: 32, bf16 (autocast), or 16 (autocast and gradient scaling)
        threads: CPU threads per process; 0 leaves torch's choice [threads]
        sync_batchnorm: share batch statistics between the devices (CUDA only)
        freeze_batchnorm: keep batch norms in evaluation mode while training
        grad_clip: largest norm of the gradient; 0 does not clip
        log_every: steps between two lines of the training log [steps]
        checkpoint_every: steps between two writes of the last checkpoint; 0 writes it at the ends of epochs only
            [steps]
        validate_every: epochs between two validations [epochs]
        overfit_batch: train on the first batch only, without shuffling, to see whether the loss can fall at all
        max_steps: leave after this many steps in total; 0 means no limit [steps]
    """

    epochs: int = 15
    batch_size: int = 12
    workers: int = 0
    seed: int = 0
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: Literal["32", "bf16", "16"] = "32"
    threads: int = 0
    sync_batchnorm: bool = False
    freeze_batchnorm: bool = False
    grad_clip: float = 0.0
    log_every: int = 10
    checkpoint_every: int = 200
    validate_every: int = 1
    overfit_batch: bool = False
    max_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "devices", "num_nodes", "log_every", "validate_every"):
            if getattr(self, name) < 1:
                raise DataError(f"--{name} must be at least 1, got {getattr(self, name)}")
        for name in ("workers", "seed", "threads", "grad_clip", "checkpoint_every", "max_steps"):
            if getattr(self, name) < 0:
                raise DataError(f"--{name} must not be negative, got {getattr(self, name)}")


def check_ranges(options: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Refuses numbers that are not finite or not within ``{"group.name": (low, high)}``, ends included.

    Raises:
        DataError: names the option as it is typed.
    """
    for name, (low, high) in ranges.items():
        value = functools.reduce(getattr, name.split("."), options)
        if not (math.isfinite(value) and low <= value <= high):
            bounds = f"{low} to {high}" if math.isfinite(high) else f"at least {low}"
            raise DataError(f"--{name} must be {bounds}, got {value}")


def _leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, type) of every option, ``group.name`` in nested dataclasses; ``X | None`` counts as X."""
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        kind = hints[item.name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from _leaves(kind, f"{prefix}{item.name}.")
        else:
            parts = typing.get_args(kind)
            optional = typing.get_origin(kind) in (typing.Union, types.UnionType) and len(parts) == 2
            some = [part for part in parts if part is not type(None)]
            yield f"{prefix}{item.name}", some[0] if optional and len(some) == 1 else kind


def _flag(key: str, values: list[str], kind: Any) -> str:
    """``--key=[...]``; one value that is a list already stays as it is."""
    if len(values) == 1 and values[0].startswith("["):
        return f"--{key}={values[0]}"
    numbers = typing.get_args(kind)[0] in (int, float)
    return f"--{key}=[{','.join(values)}]" if numbers else f"--{key}={json.dumps(values)}"


def _normalise(argv: Sequence[str], cls: type, positional: str | None, aliases: Mapping[str, str]) -> list[str]:
    """The words as jsonargparse reads them: ``--key=value`` each; words without a flag belong to ``positional``.

    Dashes become underscores, ``--resume`` and ``--no-resume`` get their value, ``--names a b`` and a repeated
    ``--names`` become one list, and a value may begin with a minus sign.
    """
    kinds = dict(_leaves(cls))
    out: list[str] = []
    loose: list[str] = []
    lists: dict[str, list[str]] = {}
    words = ["--help" if word == "-h" else word for word in argv]

    def values() -> Iterator[str]:
        while words and not words[0].startswith("--"):
            yield words.pop(0)

    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            loose.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = aliases.get(name, name)
        key = name if name in kinds else name.replace("-", "_")
        kind, negated = kinds.get(key), key.removeprefix("no_")
        if kind is bool and not equals:
            given = bool(words) and words[0].lower() in ("true", "false", "yes", "no")
            out.append(f"--{key}={words.pop(0) if given else 'true'}")
        elif kind is None and key != negated and not equals and kinds.get(negated) is bool:
            out.append(f"--{negated}=false")
        elif key == positional and not value.startswith("["):
            loose += [value] if equals else values()
        elif typing.get_origin(kind) in (list, tuple):
            found = [value] if equals else list(values())
            lists.setdefault(key, []).extend(found)
            out = [earlier for earlier in out if not earlier.startswith(f"--{key}=")]
            out.append(_flag(key, lists[key], kind) if lists[key] else f"--{key}")
        elif equals:
            out.append(f"--{key if kind else name}={value}")
        elif kind and words and not words[0].startswith("--"):
            out.append(f"--{key}={words.pop(0)}")
        else:  # --config FILE, --help, a flag whose value is missing, or one that nobody knows
            out += [f"--{key if kind else name}", *([words.pop(0)] if words and not words[0].startswith("--") else [])]
    return [*out, *([_flag(positional, loose, kinds[positional])] if positional and loose else loose)]


def parse(
    cls: type[T],
    *,
    prog: str,
    description: str,
    argv: Sequence[str] | None = None,
    positional: str | None = None,
    positional_help: str = "",
    aliases: Mapping[str, str] | None = None,
) -> Parsed[T]:
    """Reads a command line into ``cls``.

    Args:
        cls: the options; nested dataclasses become ``--group.name``. A list field takes several words, or its flag
            several times.
        prog: as typed, ``python -m v2v_posenet.train``.
        description: one or two sentences for ``--help``.
        argv: the words after the program's name (default: those of this process).
        positional: name of a ``list[str]`` field that takes the words without a flag.
        positional_help: what these words are, for ``--help``.
        aliases: other names of options -> their names, both without dashes.

    An unknown option, an unknown key in a file or a value of the wrong type ends the program with status 2 and the
    name.
    """
    import jsonargparse

    words = _normalise(sys.argv[1:] if argv is None else argv, cls, positional, aliases or {})
    epilog = f"Words without a flag, before or after the options: {positional_help}." if positional else None
    parser = jsonargparse.ArgumentParser(prog=prog, description=description, epilog=epilog)
    parser.add_argument("--config", action="config", help="YAML file with any of these options; later ones win")
    parser.add_class_arguments(cls, None, fail_untyped=True)
    try:
        namespace = parser.parse_args(words)
    except (UnicodeDecodeError, OSError) as error:
        parser.error(f"--config: not a text file that can be read ({error})")
    values = parser.instantiate(namespace).as_dict()
    values.pop("config", None)
    text: str = parser.dump(namespace, skip_unset=False)
    return Parsed(cls(**values), text)


def describe_command() -> str:
    """The command line of this process, as it can be typed again."""
    import shlex

    main: Any = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    start = ["python", "-m", spec.name.removesuffix(".__main__")] if spec else ["python", str(Path(sys.argv[0]))]
    return shlex.join([*start, *sys.argv[1:]])
