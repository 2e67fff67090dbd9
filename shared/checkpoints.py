"""Weights of any method in files that are not trusted: what every checkpoint is checked for before it is used.

A method's own format is a dict with ``format`` (its name), ``version``, ``state_dict`` and what its network needs;
which entries these are, the method's ``convert.py`` says. Everything is read with ``weights_only=True``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from shared.errors import DataError, MissingFileError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shared.mano import ManoModel

N = TypeVar("N", bound="nn.Module")
MAX_FILE_BYTES = 2**31  # the largest published snapshot, with its Adam state, has 480 MB
AGAIN = "write or download the file again"
WHOLE_NETWORK = "give a file of the network that was asked for, with all its layers"


def to_cpu(value: Tensor) -> Tensor:
    """A copy on the CPU; floating-point numbers as float32."""
    value = value.detach().to("cpu", copy=True)
    return value.float() if value.is_floating_point() else value


def cpu_state(state: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    """A state dict's :func:`to_cpu` copies, under the same names."""
    return {str(key): to_cpu(value) for key, value in state.items()}


# --- files ------------------------------------------------------------------------------------------------------------


def check_file(path: Path) -> bytes:
    """The first bytes of a file that exists, is not empty, not a web page and not absurdly large.

    Raises:
        MissingFileError, DataError: anything else, each with what to do.
    """
    if not path.is_file():
        raise MissingFileError("no such checkpoint file", path=path, remedy="check the path")
    with open(path, "rb") as file:
        head = file.read(512)
    size = path.stat().st_size
    if not head:
        raise DataError("is empty", path=path, remedy=AGAIN)
    if head.lstrip()[:1] == b"<":
        raise DataError(
            "is a web page, not a checkpoint", path=path, remedy="download the file itself (not its preview page) again"
        )
    if head.startswith(b"version https://git-lfs"):
        raise DataError("is a Git LFS pointer, not a checkpoint", path=path, remedy="run git lfs pull")
    if size > MAX_FILE_BYTES:
        raise DataError(
            f"has {size} bytes, more than the {MAX_FILE_BYTES} that a checkpoint may have",
            path=path,
            remedy="check that this is the right file",
        )
    return head


def read_torch(path: Path) -> Any:
    """The content of a file that ``torch.save`` wrote; :func:`check_file` first, and tensors only."""
    import torch

    check_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types here, all of them mean that the file cannot be used
        # its text is not repeated: it advises to load the file in the way that runs what is in it
        raise DataError(
            f"cannot be read as a PyTorch checkpoint ({type(error).__name__})",
            path=path,
            remedy="it may be truncated, or hold more than tensors; " + AGAIN,
        ) from error


def read_safetensors(path: Path) -> Any:
    """The JSON under ``handpose`` in the header of a safetensors file, with the tensors as its ``state_dict``."""
    check_file(path)
    from safetensors import safe_open

    try:
        with safe_open(str(path), "pt") as file:
            content = json.loads((file.metadata() or {}).get("handpose", "{}"))
            if isinstance(content, dict):
                content["state_dict"] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
            return content
    except Exception as error:  # SafetensorError, JSON errors and OS errors alike
        raise DataError(
            f"cannot be read as a safetensors file ({type(error).__name__}: {error})", path=path, remedy=AGAIN
        ) from error


# --- our format -------------------------------------------------------------------------------------------------------


def read_own(path: Path, name: str, version: int, *, convert: str) -> dict[str, Any]:
    """The dict of our own format in a ``.safetensors`` or torch file, also under ``"handpose"`` in a run's checkpoint.

    Args:
        path: the file.
        name: ``format`` it must have, such as ``"handpose/v2v_posenet"``.
        version: the one that is read.
        convert: the program that converts other people's weights, named in the remedy.

    Raises:
        MissingFileError, DataError: unreadable, of another program or method, of another version.
    """
    content = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    if isinstance(content, dict) and isinstance(content.get("handpose"), dict):
        content = content["handpose"]
    remedy = f"convert weights of other programs with python -m {convert}"
    return check_own(content, path, name, version, remedy=remedy)


def check_own(
    content: Any, path: Path, name: str, version: int, *, remedy: str, found: str = "a {!r} checkpoint"
) -> dict[str, Any]:
    """The content of a file if it is a dict of our own format with this ``format`` and ``version``.

    Args:
        content, path: what was read, and from where.
        name, version: as for :func:`read_own`.
        remedy: what to do with a file that is not in our format.
        found: how the message names a file of another format.

    Raises:
        DataError: of another program or method, of another version.
    """
    if not isinstance(content, dict) or "format" not in content:
        raise DataError(
            "is not a handpose checkpoint (it has no 'format' entry)",
            path=path,
            remedy=remedy,
        )
    if content["format"] != name:
        raise DataError(
            f"is {found.format(content['format'])}, expected {name!r}",
            path=path,
            remedy="use the method that wrote it, or give another file",
        )
    if content.get("version") != version:
        raise DataError(
            f"has format version {content.get('version')!r}, this program reads version {version}",
            path=path,
            remedy="convert it with the program version that wrote it, or update handpose",
        )
    return content


@contextmanager
def check_entries(path: Path) -> Iterator[None]:
    """Around the code that takes a file's entries: what it raises becomes a :class:`DataError` of the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise DataError(
            f"has a missing or malformed entry ({type(error).__name__}: {error})", path=path, remedy=AGAIN
        ) from error


@dataclass
class OwnCheckpoint:
    """What a method's own format has in common; its fields, without ``extra``, are the entries of the file.

    Attributes:
        state_dict: of the method's network, float32 on the CPU.
        model: the sizes it was built with, its keyword arguments.
        extra: anything else that was stored, unread (epoch, data set, metrics, the source of a conversion).
    """

    format: ClassVar[str]
    version: ClassVar[int]

    state_dict: dict[str, Tensor]
    model: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def as_dict(self) -> dict[str, Any]:
        """Plain containers and tensors, as stored in a file."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {**self.extra, "format": self.format, "version": self.version, **own}

    @classmethod
    def extra_of(cls, content: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of a file that are none of the format's own."""
        own = {"format", "version", *(f.name for f in fields(cls) if f.name != "extra")}
        return {key: value for key, value in content.items() if key not in own}


def save_checkpoint(path: str | Path, checkpoint: OwnCheckpoint) -> None:
    """Writes a ``torch.save`` dict that loads with ``weights_only=True``. The file is complete or untouched."""
    import torch

    from shared.safe_io import atomic_path

    with atomic_path(path) as temporary:
        torch.save(checkpoint.as_dict(), temporary)


def hand_model(mano: ManoModel | str | Path) -> ManoModel:
    """The right hand itself, or read from its path or ``"standin"`` by :func:`shared.mano.load_mano`."""
    from shared.mano import ManoModel, load_mano

    return mano if isinstance(mano, ManoModel) else load_mano(mano, side="right")


@dataclass
class ManoCheckpoint(OwnCheckpoint, Generic[N]):
    """A trained network on a MANO hand and what is needed to use it, without the hand.

    Attributes:
        mano_sha256: of the MANO file it was trained with; empty where that is not known (other programs' weights).

    ``extra["hand"]`` may say ``"mano"`` where the file is not known, but that it was MANO and not the stand-in.
    """

    mano_sha256: str = ""

    @staticmethod
    def network() -> type[N]:
        """The network's class, which takes the hand and ``model``; a function, as torch is imported only when used."""
        raise NotImplementedError

    def build(self, mano: ManoModel | str | Path, **changes: Any) -> N:
        """The network with its weights, in evaluation mode, on the user's hand model.

        ``changes`` replace arguments of the network that do not touch its weights. Warns where ``mano`` is another
        file than the one of the training, or the stand-in instead of MANO: poses then mean another hand.
        """
        hand = hand_model(mano)
        if self.mano_sha256 and hand.sha256 != self.mano_sha256:
            warnings.warn(
                f"the network was trained with a MANO file of sha256 {self.mano_sha256[:12]}..., this one "
                f"({hand.source}) has {hand.sha256[:12]}...; its hands are not those of the training, unless one file "
                "was made from the other",
                stacklevel=2,
            )
        elif not self.mano_sha256 and self.extra.get("hand") == "mano" and hand.source == "standin":
            warnings.warn(
                "the network was trained on MANO and meets the stand-in hand: shapes and poses then mean another hand; "
                "give your MANO_RIGHT.pkl",
                stacklevel=2,
            )
        network = self.network()(hand, **{**self.model, **changes})
        network.load_state_dict(self.state_dict)
        return network.eval()

    @classmethod
    def from_content(cls, content: Mapping[str, Any], path: Path) -> Self:
        """The checkpoint of a file's dict that :func:`check_own` has passed.

        Raises:
            DataError: an entry is missing or malformed, or the weights are not those of the sizes it names.
        """
        import torch

        with check_entries(path):
            checkpoint = cls(
                state_dict=cpu_state(content["state_dict"]),
                model={str(key): value for key, value in content["model"].items()},
                mano_sha256=str(content["mano_sha256"]),
                extra=cls.extra_of(content),
            )
            hand = hand_model("standin")  # any hand: its constants are no weights
            network = cls.network()  # its modules are imported here: their tensors must not be made on meta
            with torch.device("meta"):  # no memory for sizes that a file only claims
                expected = network(hand, **checkpoint.model).state_dict()
        check_state(checkpoint.state_dict, expected, path, "a network of the sizes it names", WHOLE_NETWORK)
        return checkpoint


# --- weights of other programs ----------------------------------------------------------------------------------------


def refuse_own(content: Any, path: Path, wanted: str, remedy: str) -> None:
    """Refuses the content of a file in one of our formats where weights of another program, ``wanted``, must come.

    Raises:
        DataError: "is a checkpoint of ..., not ``wanted``".
    """
    if isinstance(content, dict) and "format" in content:
        raise DataError(f"is a checkpoint of {str(content['format'])!r}, not {wanted}", path=path, remedy=remedy)


def check_tensors(state: Any, path: Path, message: str, remedy: str) -> Mapping[Any, Tensor]:
    """``state`` if it is a state dict: a mapping to tensors and nothing else.

    Raises:
        DataError: ``message`` where nothing is a tensor; the names of the other entries where some are not.
    """
    import torch

    if not isinstance(state, Mapping) or not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError(message, path=path, remedy=remedy)
    strangers = [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        raise DataError(f"has entries that are no tensors: {', '.join(strangers[:8])}", path=path, remedy=AGAIN)
    return state


def add_counters(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> int:
    """Sets the batch counters that ``state`` lacks to 0 (old files have none); returns how many these were."""
    import torch

    absent = [key for key in expected if key.endswith("num_batches_tracked") and key not in state]
    state.update({key: torch.tensor(0) for key in absent})
    return len(absent)


def check_state(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, what: str, remedy: str
) -> None:
    """Strict comparison with the names and shapes of ``expected``; every mismatch and non-finite tensor is listed.

    Raises:
        DataError: "does not fit ``what``: ...", with the first eight problems.
    """
    import torch

    problems = [f"missing {key}" for key in expected if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in expected]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    problems += [f"{key} is not finite" for key, value in state.items() if not bool(torch.isfinite(value).all())]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise DataError(f"does not fit {what}: {'; '.join(problems[:8])}{more}", path=path, remedy=remedy)
