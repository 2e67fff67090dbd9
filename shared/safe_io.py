"""Files that are not trusted, and files that must not be left half written."""

from __future__ import annotations

import codecs
import io
import math
import os
import pickle
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError, MissingFileError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of ``path``; renamed to ``path`` when the block ends without an exception.

    The folder is created. The content is flushed to disk before the rename, so that a crash leaves the old file or the
    new one and never half of one. After an exception the temporary file is removed and ``path`` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part" + path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private to the user
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Writes ``text`` (UTF-8, newlines as they are) so that ``path`` is complete or untouched."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


# ---------------------------------------------------------------------------------------------------------------------
# Pickles
#
# The files of MANO, HO-3D and the sphere hand are pickles, and a pickle is a program. This reader interprets the
# opcodes itself instead of subclassing ``pickle.Unpickler``: it can call nothing but the few functions listed in
# ``_Machine``, and the ways to exhaust a machine with a few bytes (memo index 2**31, BYTEARRAY8 of 2**60 bytes, arrays
# of 10**12 elements, keys that take for ever to hash or to print) are each refused before anything is allocated.

MIB = 1 << 20
_MAX_OPCODES = 100_000  # by default: MANO needs 700, an HO-3D file 300; half a second in this interpreter
_MAX_ALLOCATED = 160 * MIB  # everything made from one file: strings, copies of arrays, dense matrices
_MAX_DEPTH = 100  # nesting of containers
_MAX_RECORD_DEPTH = 4  # chumpy expressions inside chumpy expressions
_MAX_SIZE = 10_000_000  # elements of one array
_PLAIN_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])\Z")


class _Refused(Exception):
    """Inside this module: why the file is not acceptable; becomes a DataError that names the file."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise _Refused(message)


class _Name:
    """What an allowed global stands for. Only ``call`` is ever called, with the arguments of REDUCE."""

    def __init__(self, label: str, call: Callable[..., Any] | None = None, record: bool = False) -> None:
        self.label = label
        self.call = call
        self.record = record


class _Record:
    """A foreign object (chumpy or SciPy) as inert state: its class label and the dictionary given to BUILD."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.state: dict[Any, Any] = {}


class _Dtype:
    """A NumPy dtype under construction: bool, signed, unsigned or float, nothing else."""

    def __init__(self, code: Any, align: Any = 0, copy: Any = 1) -> None:
        _require(isinstance(code, str), f"dtype code must be a string, got {type(code).__name__}")
        _require(
            _PLAIN_DTYPE.match(code) is not None,
            f"only arrays of bool, int, uint and float are read, got dtype {code[:20]!r}",
        )
        self.dtype = np.dtype(code)

    def build(self, state: Any) -> None:
        _require(isinstance(state, tuple) and len(state) in (8, 9), "state of a dtype must be a tuple of 8")
        order = state[1]
        _require(order in ("<", ">", "=", "|"), "byte order of a dtype must be one of < > = |")
        _require(state[2:5] == (None, None, None), "structured dtypes are not read")
        if order != "|":
            self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """A NumPy array between REDUCE (which gives no data) and BUILD (which does)."""

    def __init__(self) -> None:
        self.value: NDArray[Any] | None = None


class _Machine:
    """The pickle virtual machine, restricted; ``run`` returns the object on STOP with every record evaluated."""

    def __init__(self, data: bytes, encoding: str, max_opcodes: int = _MAX_OPCODES) -> None:
        self.data = data
        self.encoding = encoding
        self.max_opcodes = max_opcodes
        self.position = 0
        self.allocated = 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        names: dict[tuple[str, str], _Name] = {}
        for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            names[module, "_reconstruct"] = _Name("_reconstruct", self._reconstruct)
            names[module, "scalar"] = _Name("scalar", self._scalar)
        for module in ("numpy.core.numeric", "numpy._core.numeric"):  # arrays of protocol 5
            names[module, "_frombuffer"] = _Name("_frombuffer", self._frombuffer)
        names["numpy", "ndarray"] = _Name("ndarray")
        names["numpy", "dtype"] = _Name("dtype", _Dtype)
        names["_codecs", "encode"] = _Name("encode", self._encode)
        for module in ("__builtin__", "builtins"):
            names[module, "set"] = _Name("set", self._set)
            names[module, "bytes"] = _Name("bytes", bytes_of_nothing)
            names[module, "object"] = _Name("object")
        for module in ("copy_reg", "copyreg"):
            names[module, "_reconstructor"] = _Name("_reconstructor", self._reconstructor)
        for module, label in (
            ("chumpy.ch", "Ch"),
            ("chumpy.reordering", "Select"),
            ("scipy.sparse.csc", "csc_matrix"),
            ("scipy.sparse._csc", "csc_matrix"),
            ("scipy.sparse.csr", "csr_matrix"),
            ("scipy.sparse._csr", "csr_matrix"),
            ("scipy.sparse.coo", "coo_matrix"),
            ("scipy.sparse._coo", "coo_matrix"),
        ):
            names[module, label] = _Name(label, record=True)
        self.names = names

    # -- bytes and budget

    def charge(self, size: int) -> None:
        self.allocated += size
        if self.allocated > _MAX_ALLOCATED:
            raise _Refused(f"needs more than {_MAX_ALLOCATED // MIB} MiB of memory when unpacked")

    def read(self, size: int) -> bytes:
        if size > len(self.data) - self.position:
            left = len(self.data) - self.position
            raise _Refused(f"truncated: {size} bytes expected at offset {self.position}, {left} left")
        if size > 16:  # single numbers are paid for by the limit on instructions
            self.charge(size)
        self.position += size
        return self.data[self.position - size : self.position]

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.read(size), "little")

    def line(self, limit: int | None = None) -> bytes:
        end = self.data.find(b"\n", self.position)
        _require(end >= 0, "truncated: a line of text has no end")
        _require(limit is None or end - self.position <= limit, "a number or a name is too long")
        text = self.read(end - self.position)
        self.position += 1
        return text

    def text(self, raw: bytes, encoding: str, errors: str = "strict") -> str:
        self.charge(len(raw) if raw.isascii() or encoding == "latin1" else 4 * len(raw))
        return raw.decode(encoding, errors)

    def old_string(self, raw: bytes) -> str | bytes:
        """A Python 2 ``str``: text or bytes, which only the reader can know (``encoding``)."""
        return raw if self.encoding == "bytes" else self.text(raw, self.encoding)

    def integer(self, raw: bytes) -> int:
        _require(len(raw) <= 9, "an integer beyond 64 bits")
        return int.from_bytes(raw, "little", signed=True)

    # -- stack

    def pop(self) -> Any:
        _require(
            len(self.stack) > (self.marks[-1] if self.marks else 0), "damaged: takes an object from an empty stack"
        )
        return self.stack.pop()

    def top(self) -> Any:
        _require(len(self.stack) > (self.marks[-1] if self.marks else 0), "damaged: the stack is empty")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        _require(bool(self.marks), "damaged: a mark is missing")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def put(self, index: int) -> None:
        # C Python's memo is an array as long as the largest index; ours is a dictionary and only counts entries.
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        _require(index in self.memo, f"damaged: memo entry {index} is read before it is written")
        self.stack.append(self.memo[index])

    def set_items(self, target: Any, items: list[Any]) -> None:
        _require(type(target) is dict and len(items) % 2 == 0, "damaged: sets items of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self.key(key)] = value

    def key(self, key: Any) -> Any:
        # Nested tuples can take exponential time to hash, large integers to collide; no file needs either.
        if type(key) not in (str, bytes) and not (isinstance(key, int) and abs(key) < 1 << 64):
            raise _Refused(f"a dictionary key or set element of type {_kind(key)} is not read")
        return key

    # -- the functions that stand in for the allowed globals

    def global_(self, module: Any, name: Any) -> _Name:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise _Refused("refers to a name that is no text")
        if (module, name) not in self.names:
            raise _Refused(f"refers to {module[:60]}.{name[:60]}, which is not on the list of harmless names")
        return self.names[module, name]

    def _reconstruct(self, kind: Any, shape: Any, code: Any) -> _Array:
        _require(isinstance(kind, _Name) and kind.label == "ndarray", "_reconstruct of something that is no ndarray")
        return _Array()

    def _encode(self, text: Any, encoding: Any = "utf-8") -> bytes:
        _require(isinstance(text, str) and encoding == "latin1", "_codecs.encode other than (str, 'latin1')")
        self.charge(len(text))
        return bytes(text.encode("latin1"))

    def _set(self, items: Any = ()) -> set[Any]:
        _require(type(items) in (list, tuple), "set() of something that is no list")
        self.charge(216 + 64 * len(items))
        return {self.key(item) for item in items}

    def _reconstructor(self, kind: Any, base: Any, state: Any) -> _Record:
        _require(
            isinstance(kind, _Name)
            and kind.record
            and isinstance(base, _Name)
            and base.label == "object"
            and state is None,
            "copyreg._reconstructor of something that is no chumpy or SciPy object",
        )
        return _Record(kind.label)

    def array(self, raw: Any, shape: Any, dtype: Any, fortran: bool) -> NDArray[Any]:
        """The array of a state, if its bytes are exactly as many as its shape and dtype say."""
        _require(isinstance(dtype, _Dtype), "an array without a proper dtype")
        if isinstance(raw, str):
            self.charge(len(raw))
            raw = raw.encode("latin1")
        _require(isinstance(raw, bytes | bytearray), f"an array whose data are {_kind(raw)} instead of bytes")
        _require(
            type(shape) is tuple and len(shape) <= 8 and all(type(n) is int and 0 <= n <= _MAX_SIZE for n in shape),
            "an array whose shape is no tuple of at most 8 lengths below ten million",
        )
        expected = math.prod(shape) * dtype.dtype.itemsize
        _require(
            len(raw) == expected,
            f"an array of shape {shape} and type {dtype.dtype} needs {expected} bytes, has {len(raw)}",
        )
        self.charge(2 * len(raw))
        values = np.frombuffer(raw, dtype.dtype) if raw else np.zeros(0, dtype.dtype)
        return values.reshape(shape, order="F" if fortran else "C").astype(dtype.dtype.newbyteorder("="), copy=True)

    def _scalar(self, dtype: Any, raw: Any) -> Any:
        return self.array(raw, (), dtype, False)[()]

    def _frombuffer(self, raw: Any, dtype: Any, shape: Any, order: Any) -> NDArray[Any]:
        _require(order in ("C", "F"), "array order must be C or F")
        return self.array(raw, shape, dtype, order == "F")

    def reduce(self, function: Any, arguments: Any) -> Any:
        _require(
            isinstance(function, _Name) and function.call is not None and type(arguments) is tuple,
            f"calls {function.label if isinstance(function, _Name) else _kind(function)}, which is not allowed",
        )
        try:
            return function.call(*arguments)
        except TypeError as error:  # wrong number of arguments
            raise _Refused(f"damaged: arguments of {function.label} do not fit") from error

    def new_object(self, kind: Any, arguments: Any) -> _Record:
        _require(isinstance(kind, _Name) and kind.record and arguments == (), "creates an object of a foreign class")
        return _Record(kind.label)

    def build(self, target: Any, state: Any) -> None:
        if isinstance(target, _Array):
            # version 1 states have the version in front, the oldest ones do not
            if type(state) is tuple and len(state) == 5:
                state = state[1:]
            _require(type(state) is tuple and len(state) == 4, "damaged: state of an array must be a tuple of 5")
            shape, dtype, fortran, raw = state
            target.value = self.array(raw, shape, dtype, bool(fortran))
        elif isinstance(target, _Dtype):
            target.build(state)
        elif isinstance(target, _Record):
            _require(type(state) is dict, f"state of a {target.label} must be a dictionary, got {_kind(state)}")
            target.state = state
        elif not (isinstance(target, set) and state == {}):  # sets of protocols 0 to 3 come with an empty state
            raise _Refused(f"sets the state of a {_kind(target)}")

    # -- the loop

    def run(self) -> object:
        for _ in range(self.max_opcodes):
            code = self.read(1)
            if code == pickle.STOP:
                break
            self.step(code)
        else:
            raise _Refused(f"has more than {self.max_opcodes:,} instructions")
        _require(len(self.stack) == 1 and not self.marks, "damaged: ends with something left on the stack")
        _require(self.position == len(self.data), f"{len(self.data) - self.position} bytes follow the end")
        return _Evaluation(self.charge).plain(self.stack[0])

    def step(self, code: bytes) -> None:
        push = self.stack.append
        match code:
            case pickle.PROTO:
                version = self.unsigned(1)
                _require(version <= 5, f"pickle protocol {version} is not known")
            case pickle.FRAME:
                size = self.unsigned(8)
                _require(size <= len(self.data) - self.position, "truncated: a frame is longer than the file")
            case pickle.MARK:
                self.marks.append(len(self.stack))
            case pickle.POP:
                if self.marks and self.marks[-1] == len(self.stack):
                    self.marks.pop()
                else:
                    self.pop()
            case pickle.POP_MARK:
                self.pop_mark()
            case pickle.DUP:
                push(self.top())
            case pickle.NONE:
                push(None)
            case pickle.NEWTRUE:
                push(True)
            case pickle.NEWFALSE:
                push(False)
            case pickle.INT:
                digits = self.line(25)
                push({b"00": False, b"01": True}[digits] if digits in (b"00", b"01") else int(digits))
            case pickle.BININT:
                push(int.from_bytes(self.read(4), "little", signed=True))
            case pickle.BININT1:
                push(self.unsigned(1))
            case pickle.BININT2:
                push(self.unsigned(2))
            case pickle.LONG:
                push(int(self.line(25).removesuffix(b"L")))
            case pickle.LONG1:
                push(self.integer(self.read(self.unsigned(1))))
            case pickle.LONG4:
                push(self.integer(self.read(self.unsigned(4))))
            case pickle.FLOAT:
                push(float(self.line(60)))
            case pickle.BINFLOAT:
                push(struct.unpack(">d", self.read(8))[0])
            case pickle.STRING:
                raw = self.line()
                _require(
                    len(raw) >= 2 and raw[:1] == raw[-1:] and raw[:1] in (b"'", b'"'),
                    "damaged: a string without quotes",
                )
                push(self.old_string(codecs.escape_decode(raw[1:-1])[0]))
            case pickle.BINSTRING:
                push(self.old_string(self.read(self.unsigned(4))))
            case pickle.SHORT_BINSTRING:
                push(self.old_string(self.read(self.unsigned(1))))
            case pickle.BINBYTES | pickle.BINBYTES8 | pickle.SHORT_BINBYTES:
                width = {pickle.BINBYTES: 4, pickle.BINBYTES8: 8, pickle.SHORT_BINBYTES: 1}[code]
                push(self.read(self.unsigned(width)))
            case pickle.BYTEARRAY8:
                size = self.unsigned(8)
                self.charge(min(size, len(self.data)))
                push(bytearray(self.read(size)))
            case pickle.UNICODE:
                push(self.text(self.line(), "raw-unicode-escape"))
            case pickle.BINUNICODE | pickle.BINUNICODE8 | pickle.SHORT_BINUNICODE:
                width = {pickle.BINUNICODE: 4, pickle.BINUNICODE8: 8, pickle.SHORT_BINUNICODE: 1}[code]
                push(self.text(self.read(self.unsigned(width)), "utf-8", "surrogatepass"))
            case pickle.EMPTY_TUPLE:
                push(())
            case pickle.TUPLE1 | pickle.TUPLE2 | pickle.TUPLE3:
                items = [self.pop() for _ in range(1 + [pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3].index(code))]
                push(tuple(reversed(items)))
            case pickle.TUPLE:
                push(tuple(self.pop_mark()))
            case pickle.EMPTY_LIST:
                push([])
            case pickle.LIST:
                push(self.pop_mark())
            case pickle.APPEND | pickle.APPENDS:
                items = [self.pop()] if code == pickle.APPEND else self.pop_mark()
                _require(type(self.top()) is list, "damaged: appends to something that is no list")
                self.top().extend(items)
            case pickle.EMPTY_DICT:
                push({})
            case pickle.DICT:
                items = self.pop_mark()
                push({})
                self.set_items(self.top(), items)
            case pickle.SETITEM | pickle.SETITEMS:
                items = [self.pop(), self.pop()][::-1] if code == pickle.SETITEM else self.pop_mark()
                self.set_items(self.top(), items)
            case pickle.EMPTY_SET:
                self.charge(216)
                push(set())
            case pickle.ADDITEMS:
                items = self.pop_mark()
                _require(type(self.top()) is set, "damaged: adds to something that is no set")
                self.top().update(self.key(item) for item in items)
            case pickle.FROZENSET:
                push(frozenset(self.key(item) for item in self.pop_mark()))
            case pickle.PUT:
                self.put(int(self.line(25)))
            case pickle.BINPUT:
                self.put(self.unsigned(1))
            case pickle.LONG_BINPUT:
                self.put(self.unsigned(4))
            case pickle.MEMOIZE:
                self.put(len(self.memo))
            case pickle.GET:
                self.get(int(self.line(25)))
            case pickle.BINGET:
                self.get(self.unsigned(1))
            case pickle.LONG_BINGET:
                self.get(self.unsigned(4))
            case pickle.GLOBAL:
                module, name = self.line(1000).decode(), self.line(1000).decode()
                push(self.global_(module, name))
            case pickle.STACK_GLOBAL:
                name, module = self.pop(), self.pop()
                push(self.global_(module, name))
            case pickle.REDUCE:
                arguments, function = self.pop(), self.pop()
                push(self.reduce(function, arguments))
            case pickle.NEWOBJ:
                arguments, kind = self.pop(), self.pop()
                push(self.new_object(kind, arguments))
            case pickle.BUILD:
                state = self.pop()
                self.build(self.top(), state)
            case pickle.PERSID | pickle.BINPERSID:
                raise _Refused("refers to an object outside the file (persistent id)")
            case pickle.EXT1 | pickle.EXT2 | pickle.EXT4:
                raise _Refused("refers to the extension registry of copyreg")
            case pickle.OBJ | pickle.INST | pickle.NEWOBJ_EX:
                raise _Refused("creates an object of a foreign class")
            case pickle.NEXT_BUFFER | pickle.READONLY_BUFFER:
                raise _Refused("its arrays are in buffers outside the file")
            case _:
                raise _Refused(f"byte {code!r} at offset {self.position - 1} is no pickle instruction")


def bytes_of_nothing() -> bytes:
    """``bytes()``: how protocols 0 to 2 write an empty byte string; it takes no arguments here."""
    return b""


def _kind(value: object) -> str:
    return value.label if isinstance(value, _Record | _Name) else type(value).__name__


class _Evaluation:
    """Turns records into arrays: a tree walk that visits each object once, so that shared parts cost nothing twice."""

    def __init__(self, charge: Callable[[int], None]) -> None:
        self.charge = charge
        self.done: dict[int, Any] = {}
        self.open: set[int] = set()

    def plain(self, value: Any, depth: int = 0, records: int = 0) -> Any:
        if value is None or isinstance(value, str | bytes | bytearray | int | float | np.generic | np.ndarray):
            return value
        if id(value) in self.done:
            return self.done[id(value)]
        _require(id(value) not in self.open, "an object contains itself")
        _require(depth <= _MAX_DEPTH, f"containers are nested more than {_MAX_DEPTH} deep")
        self.open.add(id(value))
        result = self._visit(value, depth + 1, records)
        self.open.discard(id(value))
        self.done[id(value)] = result
        return result

    def _visit(self, value: Any, depth: int, records: int) -> Any:
        if isinstance(value, set | frozenset):
            return value
        if isinstance(value, list | tuple):
            return type(value)([self.plain(item, depth, records) for item in value])
        if isinstance(value, dict):
            return {
                key: self._named(key, item, depth, records) if depth == 1 else self.plain(item, depth, records)
                for key, item in value.items()
            }
        if isinstance(value, _Array):
            _require(value.value is not None, "damaged: an array without data")
            return value.value
        if isinstance(value, _Record):
            _require(records < _MAX_RECORD_DEPTH, f"expressions are nested more than {_MAX_RECORD_DEPTH} deep")
            return self._record(value, depth, records + 1)
        raise _Refused(f"holds a bare {_kind(value)}, which is no data")

    def _named(self, key: Any, value: Any, depth: int, records: int) -> Any:
        try:
            return self.plain(value, depth, records)
        except _Refused as error:
            raise _Refused(f"key {str(key)[:60]!r}: {error}") from error

    def _array(self, record: _Record, key: str, depth: int, records: int) -> NDArray[Any]:
        _require(key in record.state, f"a {record.label} without {key!r}")
        value = self.plain(record.state[key], depth, records)
        _require(isinstance(value, np.ndarray), f"{key!r} of a {record.label} is {_kind(value)}, not an array")
        return np.asarray(value)

    def _indices(self, record: _Record, key: str, depth: int, records: int, limit: int) -> NDArray[np.int64]:
        """An index array of a record, flat, all of it in 0..limit-1."""
        values = self._array(record, key, depth, records)
        _require(values.dtype.kind in "iu" and values.ndim == 1, f"{key!r} of a {record.label} must be flat integers")
        _require(
            values.size == 0 or (int(values.min()) >= 0 and int(values.max()) < limit),
            f"{key!r} of a {record.label} goes beyond 0..{limit - 1}",
        )
        self.charge(8 * values.size)
        return values.astype(np.int64)

    def _shape(self, record: _Record, key: str) -> tuple[int, ...]:
        shape = record.state.get(key)
        shape = tuple(shape) if isinstance(shape, list | tuple) and len(shape) <= 8 else ()
        shape = tuple(int(n) if isinstance(n, np.integer) else n for n in map(_scalar_of, shape))
        _require(
            len(shape) > 0 and all(type(n) is int and n >= 0 for n in shape) and math.prod(shape) <= _MAX_SIZE,
            f"{key!r} of a {record.label} is no usable shape",
        )
        return shape

    def _record(self, record: _Record, depth: int, records: int) -> NDArray[Any]:
        if record.label == "Ch":
            return self._array(record, "x", depth, records)
        if record.label == "Select":
            source = self._array(record, "a", depth, records)
            picked = self._indices(record, "idxs", depth, records, source.size)
            self.charge(source.nbytes + picked.size * source.itemsize)
            values = source.ravel()[picked]
            if record.state.get("preferred_shape") is None:
                return values
            shape = self._shape(record, "preferred_shape")
            _require(math.prod(shape) == values.size, f"a Select of {values.size} elements cannot have shape {shape}")
            return values.reshape(shape)
        return self._dense(record, depth, records)

    def _dense(self, record: _Record, depth: int, records: int) -> NDArray[Any]:
        """The dense matrix of a csc, csr or coo record; duplicate entries add up."""
        shape = self._shape(record, "_shape")
        _require(len(shape) == 2, f"a {record.label} must have two dimensions")
        data = self._array(record, "data", depth, records)
        _require(data.ndim == 1 and data.dtype.kind in "iuf", f"'data' of a {record.label} must be flat numbers")
        if record.label == "coo_matrix":
            if "coords" in record.state:  # SciPy 1.13 and later
                coords = record.state["coords"]
                _require(type(coords) is tuple and len(coords) == 2, "'coords' of a coo_matrix must be two arrays")
                record.state.update(row=coords[0], col=coords[1])
            rows = self._indices(record, "row", depth, records, shape[0])
            columns = self._indices(record, "col", depth, records, shape[1])
            _require(len(rows) == len(columns) == len(data), "'data', 'row' and 'col' of a coo_matrix differ in length")
        else:
            major, minor = (1, 0) if record.label == "csc_matrix" else (0, 1)
            inner = self._indices(record, "indices", depth, records, shape[minor])
            pointers = self._indices(record, "indptr", depth, records, len(data) + 1)
            _require(
                len(pointers) == shape[major] + 1
                and pointers[0] == 0
                and pointers[-1] == len(data) == len(inner)
                and bool(np.all(np.diff(pointers) >= 0)),
                f"'indptr' of a {record.label} does not fit its shape {shape} and {len(data)} entries",
            )
            outer = np.repeat(np.arange(shape[major]), np.diff(pointers))
            rows, columns = (inner, outer) if major == 1 else (outer, inner)
        self.charge(math.prod(shape) * data.itemsize)
        dense = np.zeros(shape, data.dtype)
        np.add.at(dense, (rows, columns), data)
        return dense


def _scalar_of(value: Any) -> Any:
    """A NumPy scalar as it is; a 0-d array record (how some writers store a length) as its number."""
    if isinstance(value, _Array) and value.value is not None and value.value.ndim == 0:
        return value.value[()]
    return value


def _read_whole(path: Path, max_bytes: int, what: str) -> bytes:
    """The bytes of a regular file of at most ``max_bytes``."""
    if not path.exists():
        raise MissingFileError(f"expected {what}, found no such file", path=path)
    if not path.is_file():
        raise DataError(f"expected {what}, found something that is no regular file", path=path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise DataError(
                f"expected {what} of at most {max_bytes:,} bytes, got {size:,}",
                path=path,
                remedy="check that this is the right file",
            )
        return file.read(max_bytes)


def load_restricted_pickle(
    path: str | Path,
    *,
    max_bytes: int = 64 * MIB,
    encoding: Literal["latin1", "ASCII", "bytes"] = "latin1",
    max_opcodes: int = _MAX_OPCODES,
) -> object:
    """The plain content of a pickle that is not trusted: containers, numbers, text and NumPy arrays.

    Reads protocols 0 to 5 of Python 2 and 3 and runs nothing of the file. chumpy's ``Ch`` and ``Select`` and SciPy's
    csc, csr and coo matrices become (dense) arrays without either library. Time and memory are bounded whatever the
    file says.

    Args:
        path: the file.
        max_bytes: larger files are refused unread.
        encoding: how Python 2 strings are read; ``latin1`` keeps the bytes of arrays, ``bytes`` leaves them undecoded.
        max_opcodes: files with more instructions are refused; 200,000 take a second, an array takes 10 to 30.

    Returns:
        Nested dict, list, tuple, set, str, bytes, int, float, bool, None, NumPy scalars and writable arrays (native
        byte order; bool, int, uint, float only). Parts that the file shares are shared in the result.

    Raises:
        MissingFileError: there is no such file.
        DataError: anything else: hostile, damaged, too large, object arrays, names that are not on the list.
    """
    path = Path(path)
    if encoding not in ("latin1", "ASCII", "bytes"):
        raise DataError(f"encoding must be latin1, ASCII or bytes, got {encoding!r}")
    data = _read_whole(path, max_bytes, "a pickle")
    if not data:
        raise DataError("expected a pickle, got an empty file", path=path, remedy="copy or download it again")
    if data[:64].lstrip()[:1] == b"<":
        raise DataError(
            f"expected a pickle, got a web page or another text ({data[:24]!r})",
            path=path,
            remedy="a download that needs a login gives such a page: log in and get the file again",
        )
    try:
        return _Machine(data, encoding, max_opcodes).run()
    except (_Refused, ValueError, OverflowError, RecursionError, MemoryError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:300]
        reason = reason if isinstance(error, _Refused) else f"damaged: {reason}"
        raise DataError(
            f"expected a pickle of plain data and arrays, refused this one: {reason}",
            path=path,
            remedy="get the original file again, or one saved as .npz",
        ) from error


# ---------------------------------------------------------------------------------------------------------------------
# .npy and .npz


def _array_from_npy(data: bytes) -> NDArray[Any]:
    """The array in the bytes of an .npy file; its header is checked against the length before anything is allocated."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        _require(version in ((1, 0), (2, 0)), f"format version {version} is not read")
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(stream, max_header_size=10_000)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, TokenError) as error:
        raise _Refused(f"not an .npy array ({str(error).splitlines()[0][:120]})") from error
    _require(
        dtype.kind in "biufUS" and dtype.fields is None and dtype.subdtype is None,
        f"only plain numbers and text are read, got dtype {dtype}",
    )
    _require(
        all(type(n) is int and n >= 0 for n in shape) and len(shape) <= 8, f"shape {str(shape)[:60]} is impossible"
    )
    raw = data[stream.tell() :]
    expected = math.prod(shape) * dtype.itemsize
    _require(
        len(raw) == expected, f"shape {str(shape)[:60]} and type {dtype} need {expected} bytes, {len(raw)} are there"
    )
    if expected == 0:
        _require(max(shape, default=0) <= _MAX_SIZE, f"shape {str(shape)[:60]} is impossible")
        return np.zeros(shape, dtype)
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C").copy()


def load_npy(path: str | Path, *, max_bytes: int = 512 * MIB) -> NDArray[Any]:
    """The array of an ``.npy`` file of numbers or text, at most ``max_bytes`` long.

    Raises:
        MissingFileError, DataError: no such file; object or structured arrays, a header that does not fit the length.
    """
    path = Path(path)
    data = _read_whole(path, max_bytes, "an .npy array")
    try:
        return _array_from_npy(data)
    except _Refused as error:
        raise DataError(str(error), path=path, remedy="get or write the file again") from error


def load_npz(path: str | Path, *, max_bytes: int = 512 * MIB) -> dict[str, NDArray[Any]]:
    """All arrays of an ``.npz`` file by name; numbers and text only, never objects.

    Sizes are checked before anything is unpacked: the announced sizes of all members together may not exceed
    ``max_bytes``, and a member yields no more than it announced.

    Raises:
        MissingFileError, DataError: no such file; not a zip file, too large when unpacked, a member that is no array.
    """
    path = Path(path)
    data = _read_whole(path, max_bytes, "an .npz archive")
    arrays: dict[str, NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            _require(total <= max_bytes, f"unpacks to {total:,} bytes, more than the {max_bytes:,} allowed")
            for member in members:
                name = member.filename.removesuffix(".npy")
                _require(name != member.filename, f"member {member.filename[:60]!r} is no .npy array")
                _require(name not in arrays, f"member {name[:60]!r} is there twice")
                _require(
                    member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED),
                    f"member {name[:60]!r} is packed in a way that is not read",
                )
                try:
                    arrays[name] = _array_from_npy(archive.read(member))
                except _Refused as error:
                    raise _Refused(f"member {name[:60]!r}: {error}") from error
    except _Refused as error:
        raise DataError(str(error), path=path, remedy="get or write the file again") from error
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, ValueError, OSError) as error:
        raise DataError(
            f"expected an .npz archive, got a damaged or different file ({str(error)[:120]})",
            path=path,
            remedy="get or write the file again",
        ) from error
    return arrays
