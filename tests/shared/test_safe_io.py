"""Files that are not trusted: what must load loads bit-identical, and everything else is refused without running."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import DataError, MissingFileError
from shared.safe_io import atomic_path, atomic_write_text, load_npy, load_npz, load_restricted_pickle


@pytest.fixture
def load(tmp_path: Path) -> Any:
    """Writes bytes to a file and loads it as a pickle."""

    def run(data: bytes, **options: Any) -> Any:
        path = tmp_path / "some.pkl"
        path.write_bytes(data)
        return load_restricted_pickle(path, **options)

    return run


def same(a: Any, b: Any) -> bool:
    """Equal in value and type, arrays bit for bit."""
    if isinstance(b, np.ndarray):
        b = b.astype(b.dtype.newbyteorder("="))
        return type(a) is np.ndarray and (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in b)
    if isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b or (a != a and b != b))


# ------------------------------------------------------------------------------------------------------------ atomic


def test_atomic_write_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    atomic_write_text(target, "one\n")
    assert target.read_text() == "one\n"

    def interrupted() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        interrupted()
    assert target.read_text() == "one\n"
    assert os.listdir(target.parent) == ["file.txt"]


# ---------------------------------------------------------------------------------------------- pickles that must load


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=300),
    lambda children: (
        st.lists(children, max_size=5)
        | st.tuples(children, children)
        | st.dictionaries(st.text(max_size=8) | st.integers(-9, 9), children, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PLAIN, st.integers(0, 5), st.booleans())
def test_plain_data_of_every_protocol(load: Any, value: Any, protocol: int, shared: bool) -> None:
    value = [value, value] if shared else value
    assert same(load(pickle.dumps(value, protocol)), value)


ARRAYS = [
    np.arange(12, dtype=np.float64).reshape(3, 4),
    np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
    np.arange(24, dtype=np.int64).reshape(2, 3, 4)[:, ::2],
    np.arange(5, dtype=">i4"),
    np.array([True, False]),
    np.array(3.5),
    np.zeros((0, 3), np.float16),
    np.arange(300, dtype=np.uint8),
]


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_scalars_of_every_protocol(load: Any, protocol: int) -> None:
    value = {"arrays": ARRAYS, "scalars": [np.float32(1.5), np.int64(-3), np.bool_(True)], "again": ARRAYS[0]}
    loaded = load(pickle.dumps(value, protocol))
    assert same(loaded["arrays"], ARRAYS)
    assert same(loaded["scalars"], value["scalars"])
    assert loaded["again"] is loaded["arrays"][0]
    assert all(a.flags.writeable and a.dtype.isnative for a in loaded["arrays"])


def test_python_2_strings_follow_the_encoding(load: Any) -> None:
    data = b"\x80\x02U\x03a\xe9b."
    assert load(data) == "a\xe9b"
    assert load(data, encoding="bytes") == b"a\xe9b"
    with pytest.raises(DataError, match="damaged"):
        load(data, encoding="ASCII")
    assert load(b"S'a\\xe9\\n'\n.") == "a\xe9\n"
    with pytest.raises(DataError, match="encoding must be latin1, ASCII or bytes"):
        load(data, encoding="utf-8")


@pytest.mark.parametrize("kind", ["csc", "csr", "coo"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_scipy_matrices_become_dense(load: Any, kind: str, protocol: int) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    entries = (np.array([1.0, 2.0, 4.0, 0.5]), (np.array([0, 2, 2, 0]), np.array([1, 3, 3, 0])))  # one entry twice
    matrix = sparse.coo_matrix(entries, shape=(3, 5)).asformat(kind)
    assert same(load(pickle.dumps({"m": matrix}, protocol))["m"], matrix.toarray())


# ---- pickles written by hand, for classes that are not installed


class By:
    """Assembles opcodes."""

    @staticmethod
    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    @staticmethod
    def value(value: Any) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    @classmethod
    def record(cls, module: str, name: str, state: dict[str, bytes]) -> bytes:
        items = b"".join(cls.text(key) + part for key, part in state.items())
        return b"c" + f"{module}\n{name}\n".encode() + b")\x81}(" + items + b"ub"


def ch(array: Any) -> bytes:
    return By.record("chumpy.ch", "Ch", {"x": By.value(np.asarray(array)), "_status": By.value("new")})


def select(source: bytes, idxs: Any, shape: Any = None) -> bytes:
    state = {"a": source, "idxs": By.value(np.asarray(idxs))}
    return By.record("chumpy.reordering", "Select", state | ({"preferred_shape": By.value(shape)} if shape else {}))


def wrap(*parts: bytes) -> bytes:
    """A dictionary {"0": part, ...} in protocol 2."""
    items = b"".join(By.text(str(i)) + part for i, part in enumerate(parts))
    return b"\x80\x02}(" + items + b"u."


def test_chumpy_expressions_are_evaluated(load: Any) -> None:
    source = np.arange(24.0).reshape(2, 3, 4)
    idxs = np.arange(24).reshape(2, 3, 4)[..., :2].ravel()
    loaded = load(wrap(ch(source), select(ch(source), idxs, (2, 3, 2)), select(ch(source), idxs)))
    assert same(loaded["0"], source)
    assert same(loaded["1"], source[..., :2].copy())
    assert same(loaded["2"], source[..., :2].ravel())
    nested = select(select(select(ch(source), idxs), range(6)), [5, 0])
    assert same(load(wrap(nested))["0"], source[..., :2].ravel()[[5, 0]])


def test_official_style_file_loads(golden: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(gzip.decompress((golden / "mano" / "MANO_STANDIN_chumpy.pkl.gz").read_bytes()))
    loaded = load_restricted_pickle(path)
    want = load_npz(golden / "mano" / "standin_right.npz")
    assert isinstance(loaded, dict)
    compared = [key for key in want if key in loaded and isinstance(loaded[key], np.ndarray)]
    assert len(compared) == 10
    assert all(same(loaded[key], want[key]) for key in compared)
    print(f"bit-identical arrays: {len(compared)}, max diff 0")


# --------------------------------------------------------------------------------------------- pickles that must not


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.path, "ran"))


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_runs(load: Any, tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "witness"
    data = pickle.dumps({"x": Bomb(witness)}, protocol)
    with pytest.raises(DataError, match="not on the list of harmless names"):
        load(data)
    assert not witness.exists()
    pickle.loads(data)
    assert witness.exists(), "the bomb is a dud: this test would see nothing"


GLOBAL = b"\x80\x02c%s\n%s\n."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("__builtin__", "getattr"),
        ("numpy", "load"),
        ("numpy", "ndarray.dumps"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("chumpy.ch", "Concatenate"),
        ("scipy.sparse.csc", "spmatrix"),
        ("_codecs", "decode"),
        ("copyreg", "__newobj__"),
        ("shared.safe_io", "load_npz"),
    ],
)
def test_only_exact_names_are_known(load: Any, module: str, name: str) -> None:
    with pytest.raises(DataError, match="not on the list of harmless names"):
        load(GLOBAL % (module.encode(), name.encode()))
    stack_global = b"\x80\x04" + By.text(module) + By.text(name) + b"\x93."
    with pytest.raises(DataError, match="not on the list of harmless names"):
        load(stack_global)


ARRAY_HEAD = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
F8 = b"cnumpy\ndtype\n(U\x02f8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def state(shape: bytes, dtype: bytes, raw: bytes) -> bytes:
    return ARRAY_HEAD + b"(K\x01" + shape + dtype + b"\x89" + raw + b"tb"


HOSTILE = {
    "persistent id": (b"\x80\x02Pabc\n.", "persistent id"),
    "binary persistent id": (b"\x80\x02K\x01Q.", "persistent id"),
    "extension code": (b"\x80\x02\x82\x01.", "extension registry"),
    "inst": (b"(ios\nsystem\n.", "foreign class"),
    "obj": (b"(cnumpy\ndtype\nU\x02f8o.", "foreign class"),
    "newobj of ndarray": (b"\x80\x02cnumpy\nndarray\n)\x81.", "foreign class"),
    "newobj of Ch with arguments": (b"\x80\x02cchumpy.ch\nCh\nK\x01\x85\x81.", "foreign class"),
    "newobj_ex": (b"\x80\x04cchumpy.ch\nCh\n)}\x92.", "foreign class"),
    "out-of-band buffer": (b"\x80\x05\x97.", "buffers outside the file"),
    "call of a class": (b"\x80\x02cnumpy\nndarray\nK\x05\x85R.", "calls ndarray"),
    "call of a record": (b"\x80\x02cchumpy.ch\nCh\n)R.", "calls Ch"),
    "call of data": (b"\x80\x02U\x04eval)R.", "calls str"),
    "wrong arguments": (b"\x80\x02cnumpy.core.multiarray\nscalar\n)R.", "arguments of scalar do not fit"),
    "reconstruct of something else": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cchumpy.ch\nCh\nK\x00\x85U\x01btR.",
        "no ndarray",
    ),
    "reconstructor of a plain class": (
        b"\x80\x02ccopy_reg\n_reconstructor\n(cnumpy\nndarray\nc__builtin__\nobject\nNtR.",
        "no chumpy or SciPy object",
    ),
    "encode to another code": (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aU\x03hex\x86R.", "encode other than"),
    "bytes with arguments": (b"\x80\x02c__builtin__\nbytes\nK\x05\x85R.", "arguments of bytes do not fit"),
    "set of a number": (b"\x80\x02c__builtin__\nset\nK\x05\x85R.", "set\\(\\) of something that is no list"),
    "build on a list": (b"\x80\x02]}b.", "sets the state of a list"),
    "state that is no dictionary": (b"\x80\x02cchumpy.ch\nCh\n)\x81]b.", "must be a dictionary"),
    "bare name": (b"\x80\x02cnumpy\nndarray\n.", "bare ndarray"),
    "bare dtype": (b"\x80\x02" + F8 + b".", "bare"),
    "object array": (
        b"\x80\x02" + state(b"K\x01\x85", F8.replace(b"f8", b"O8"), b"](K\x01e"),
        "only arrays of bool, int, uint and float",
    ),
    "structured dtype": (b"\x80\x02" + F8.replace(b"<NNN", b"<NNK\x01") + b".", "structured dtypes"),
    "odd byte order": (b"\x80\x02" + F8.replace(b"U\x01<", b"U\x01?") + b".", "byte order"),
    "short dtype state": (b"\x80\x02cnumpy\ndtype\n(U\x02f8K\x00K\x01tRK\x01b.", "state of a dtype"),
    "dtype that is a number": (b"\x80\x02cnumpy\ndtype\nK\x01\x85R.", "dtype code must be a string"),
    "shape bomb": (b"\x80\x02" + state(b"\x8a\x05\x00\x00\x00\x00\x01\x85", F8, b"U\x00") + b".", "shape is no tuple"),
    "shape larger than data": (b"\x80\x02" + state(b"K\x09\x85", F8, b"U\x08" + bytes(8)) + b".", "needs 72 bytes"),
    "negative shape": (b"\x80\x02" + state(b"J\xff\xff\xff\xff\x85", F8, b"U\x00") + b".", "shape is no tuple"),
    "many dimensions": (b"\x80\x02" + state(b"(" + b"K\x01" * 9 + b"t", F8, b"U\x08" + bytes(8)) + b".", "at most 8"),
    "data that are a list": (b"\x80\x02" + state(b"K\x01\x85", F8, b"]") + b".", "list instead of bytes"),
    "no dtype": (b"\x80\x02" + state(b"K\x01\x85", b"N", b"U\x00") + b".", "without a proper dtype"),
    "short array state": (b"\x80\x02" + ARRAY_HEAD + b"K\x01\x85b.", "state of an array"),
    "array without data": (b"\x80\x02" + ARRAY_HEAD + b".", "array without data"),
    "odd array order": (
        b"\x80\x05cnumpy.core.numeric\n_frombuffer\n(C\x00" + F8 + b"K\x00\x85X\x01\x00\x00\x00AtR.",
        "order must be C or F",
    ),
    "tuple as a key": (b"\x80\x02}K\x01\x85K\x01s.", "dictionary key or set element of type tuple"),
    "colliding integers": (b"\x80\x02}\x8a\x09" + (2**65).to_bytes(9, "little") + b"K\x01s.", "of type int"),
    "list in a set": (b"\x80\x04\x8f(]\x90.", "set element of type list"),
    "huge integer": (b"\x80\x02\x8b\x00\x01\x00\x00" + bytes(256) + b".", "beyond 64 bits"),
    "long line of digits": (b"I" + b"9" * 5000 + b"\n.", "too long"),
    "memo index 2**31": (b"\x80\x02Nr\xff\xff\xff\x7fh\x00.", "memo entry 0 is read before"),
    "contains itself": (b"\x80\x02]q\x00h\x00a.", "contains itself"),
    "record that contains itself": (b"\x80\x02cchumpy.ch\nCh\n)\x81q\x00}U\x01xh\x00sb.", "contains itself"),
    "nesting": (b"\x80\x02" + b"](" * 200 + b"e" * 200 + b".", "nested more than"),
    "many instructions": (b"\x80\x02" + b"N0" * 60_000 + b"N.", "more than 100,000 instructions"),
    "truncated": (b"\x80\x02X\x10\x00\x00\x00abc", "truncated"),
    "no end": (b"\x80\x02N", "truncated"),
    "line without end": (b"I12", "no end"),
    "frame too long": (b"\x80\x04\x95" + (2**62).to_bytes(8, "little") + b"N.", "frame is longer"),
    "bytes too long": (b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"N.", "truncated"),
    "bytearray too long": (b"\x80\x05\x96" + (2**62).to_bytes(8, "little") + b"N.", "truncated"),
    "text too long": (b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"N.", "truncated"),
    "something behind the end": (b"\x80\x02N.N", "1 bytes follow the end"),
    "two objects": (b"\x80\x02NN.", "left on the stack"),
    "mark left": (b"\x80\x02(N.", "left on the stack"),
    "empty stack": (b"\x80\x020.", "empty stack"),
    "empty stack for memo": (b"\x80\x02q\x00.", "stack is empty"),
    "no mark": (b"\x80\x02t.", "mark is missing"),
    "odd items": (b"\x80\x02}(K\x01u.", "no dictionary"),
    "items of a list": (b"\x80\x02](K\x01K\x02u.", "no dictionary"),
    "append to a tuple": (b"\x80\x02)K\x01a.", "no list"),
    "add to a list": (b"\x80\x04](K\x01\x90.", "no set"),
    "string without quotes": (b"Sabc\n.", "without quotes"),
    "name that is no text": (b"\x80\x04K\x01K\x02\x93.", "a name that is no text"),
    "unknown protocol": (b"\x80\x09N.", "protocol 9"),
    "unknown instruction": (b"\x80\x02\xff.", "no pickle instruction"),
    "bad utf-8": (b"\x80\x02X\x01\x00\x00\x00\xff.", "damaged"),
    "bad number": (b"Iabc\n.", "damaged"),
    "web page": (b"<!DOCTYPE html><html>Please log in", "web page"),
    "text": (b"please log in to download", "expected a pickle of plain data and arrays"),
    "empty": (b"", "empty file"),
    "Ch without array": (wrap(By.record("chumpy.ch", "Ch", {})), "key '0': a Ch without 'x'"),
    "Ch of text": (wrap(By.record("chumpy.ch", "Ch", {"x": By.text("hello")})), "is str, not an array"),
    "index beyond": (wrap(select(ch(np.zeros(5)), [0, 5])), "beyond 0..4"),
    "index negative": (wrap(select(ch(np.zeros(5)), [-1])), "beyond 0..4"),
    "index of floats": (wrap(select(ch(np.zeros(5)), [0.0])), "flat integers"),
    "shape that does not fit": (wrap(select(ch(np.zeros(5)), [0, 1, 2], (2, 2))), "cannot have shape"),
    "shape that is none": (wrap(select(ch(np.zeros(5)), [0], ("a",))), "no usable shape"),
    "expressions too deep": (
        wrap(select(select(select(select(ch(np.zeros(5)), [0]), [0]), [0]), [0])),
        "nested more than 4 deep",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refuses(name: str, load: Any, tmp_path: Path) -> None:
    data, message = HOSTILE[name]
    with pytest.raises(DataError, match=message) as error:
        load(data)
    assert str(tmp_path / "some.pkl") in str(error.value)
    assert "\n" not in str(error.value)
    assert " -- " in str(error.value), "no remedy"


def csc(**changed: Any) -> bytes:
    fields: dict[str, Any] = {
        "_shape": (2, 3),
        "data": np.array([1.0, 2.0]),
        "indices": np.array([0, 1]),
        "indptr": np.array([0, 1, 1, 2]),
    }
    return By.record("scipy.sparse.csc", "csc_matrix", {k: By.value(v) for k, v in (fields | changed).items()})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"indices": np.array([0, 2])}, "goes beyond 0..1"),
        ({"indptr": np.array([0, 1, 2])}, "does not fit its shape"),
        ({"indptr": np.array([0, 2, 1, 2])}, "does not fit its shape"),
        ({"indptr": np.array([1, 1, 1, 2])}, "does not fit its shape"),
        ({"indices": np.array([0])}, "does not fit its shape"),
        ({"data": np.array([[1.0, 2.0]])}, "must be flat numbers"),
        ({"_shape": (2, 3, 1)}, "two dimensions"),
        ({"_shape": (10_000, 10_000)}, "no usable shape"),
        ({"_shape": (-2, 3)}, "no usable shape"),
    ],
)
def test_sparse_matrices_are_checked(load: Any, changed: dict[str, Any], message: str) -> None:
    assert load(wrap(csc()))["0"].tolist() == [[1, 0, 0], [0, 0, 2]]
    with pytest.raises(DataError, match=message):
        load(wrap(csc(**changed)))
    coo = {"_shape": By.value((2, 2)), "data": By.value(np.ones(2)), "row": By.value(np.array([0, 1]))}
    with pytest.raises(DataError, match="differ in length"):
        load(wrap(By.record("scipy.sparse.coo", "coo_matrix", coo | {"col": By.value(np.array([0]))})))
    with pytest.raises(DataError, match="must be two arrays"):
        load(wrap(By.record("scipy.sparse.coo", "coo_matrix", coo | {"coords": By.value(5)})))


def repeated(part: bytes, times: int, body: bytes) -> bytes:
    """Puts ``part`` into memo 0, then ``body`` (which may get it) again and again, each result dropped."""
    return b"\x80\x02" + part + b"q\x000" + (body + b"0") * times + b"N."


BOMBS = {
    "hash": b"\x80\x02)" + b"2\x86" * 60 + b"q\x000}h\x00K\x01s.",
    "repr of a shape": b"\x80\x02)" + b"2\x86" * 60 + b"q\x000" + state(b"h\x00", F8, b"U\x00") + b".",
    "equal parts": b"\x80\x02]" + b"q\x000](h\x00h\x00e" * 90 + b".",
    "big sets": repeated(b"(" + b"K\x01" * 40_000 + b"l", 10_000, b"c__builtin__\nset\nh\x00\x85R"),
    "big arrays": repeated(
        b"T" + struct.pack("<I", 8_000_000) + bytes(8_000_000), 800, state(b"J@B\x0f\x00\x85", F8, b"h\x00")
    ),
    "big encodings": repeated(
        b"X" + struct.pack("<I", 4_000_000) + b"a" * 4_000_000, 2000, b"c_codecs\nencode\nh\x00U\x06latin1\x86R"
    ),
    "sparse": wrap(
        *[
            By.record(
                "scipy.sparse.coo",
                "coo_matrix",
                {
                    "_shape": By.value((3000, 3000)),
                    "data": By.value(np.ones(1)),
                    "row": By.value(np.zeros(1, int)),
                    "col": By.value(np.zeros(1, int)),
                },
            )
        ]
        * 20
    ),
    "many lists": b"\x80\x02(" + b"]" * 99_000 + b"t.",
    "many sets": b"\x80\x04(" + b"\x8f" * 99_000 + b"t.",
}


_MEASURE = """
import re, sys, time
from pathlib import Path
from shared.errors import DataError
from shared.safe_io import load_restricted_pickle
# getrusage would report the peak of the process that started this one
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
start = peak()
for path in sys.argv[1:]:
    before = time.process_time()
    try:
        load_restricted_pickle(path)
    except DataError:
        pass
    print(time.process_time() - before, (peak() - start) / 1024, path)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc (Linux)")
def test_bombs_cost_little(tmp_path: Path) -> None:
    paths = []
    for name, data in BOMBS.items():
        paths.append(tmp_path / f"{name}.pkl")
        paths[-1].write_bytes(data)
    # In a process of its own: the peak of this one belongs to other tests.
    result = subprocess.run([sys.executable, "-c", _MEASURE, *paths], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    print(result.stdout)
    rows = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
    assert len(rows) == len(BOMBS)
    assert all(float(seconds) < 2 for seconds, _, _ in rows)  # 1 s on an idle machine
    assert 0 < max(float(mib) for _, mib, _ in rows) < 200


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_files_are_refused_or_read_but_nothing_else(load: Any, data: st.DataObject) -> None:
    good = pickle.dumps({"a": ARRAYS[0], "b": [1, "x", (2.5, None)], "c": np.float32(2)}, data.draw(st.integers(0, 5)))
    broken = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(good)))
    with suppress(DataError):  # any other exception fails the test
        load(bytes(broken[:cut]))


def test_the_limit_on_instructions_can_be_moved(tmp_path: Path) -> None:
    (tmp_path / "many.pkl").write_bytes(b"\x80\x02" + b"N0" * 60_000 + b"N.")
    assert load_restricted_pickle(tmp_path / "many.pkl", max_opcodes=120_003) is None
    with pytest.raises(DataError, match="more than 120,002 instructions"):
        load_restricted_pickle(tmp_path / "many.pkl", max_opcodes=120_002)


def test_every_known_opcode_is_decided() -> None:
    """No opcode of Python's own list falls through to "no pickle instruction"."""
    from shared.safe_io import _Machine, _Refused

    undecided = []
    for opcode in pickletools.opcodes:
        if opcode.name != "STOP":  # the loop's own
            try:
                _Machine(bytes(16) + b"\n", "latin1").step(opcode.code.encode("latin1"))
            except (_Refused, ValueError) as error:
                undecided += [opcode.name] if "no pickle instruction" in str(error) else []
    assert undecided == []


def test_files_that_are_missing_too_large_or_no_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        load_restricted_pickle(tmp_path / "absent.pkl")
    with pytest.raises(DataError, match="no regular file"):
        load_restricted_pickle(tmp_path)
    path = tmp_path / "large.pkl"
    path.write_bytes(pickle.dumps(bytes(1000)))
    with pytest.raises(DataError, match="at most 500 bytes"):
        load_restricted_pickle(path, max_bytes=500)


def test_foreign_python_objects_are_refused(load: Any) -> None:
    for value in (OrderedDict(a=1), date(2020, 1, 1), 1 + 2j, np.array(["text"]), np.array([None])):
        with pytest.raises(DataError):
            load(pickle.dumps(value, 2))


# ------------------------------------------------------------------------------------------------------------ npy, npz


def test_npz_and_npy_round_trip(tmp_path: Path) -> None:
    arrays = {f"a{i}": array for i, array in enumerate(ARRAYS)} | {
        "text": np.array("lbs"),
        "words": np.array(["a", "bc"]),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        loaded = load_npz(tmp_path / "x.npz")
        assert list(loaded) == list(arrays)
        assert all(np.array_equal(loaded[k], arrays[k]) and loaded[k].dtype == arrays[k].dtype for k in arrays)
    np.save(tmp_path / "x.npy", ARRAYS[1])
    assert np.array_equal(load_npy(tmp_path / "x.npy"), ARRAYS[1])


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


GOOD_NPY = npy(np.arange(4.0))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.array([None])), "only plain numbers and text"),
        (npy(np.zeros(2, [("x", "f8")])), "only plain numbers and text"),
        (GOOD_NPY[:-1], "need 32 bytes, 31 are there"),
        (GOOD_NPY + b"x", "need 32 bytes, 33 are there"),
        (GOOD_NPY.replace(b"(4,)", b"(9**9,)"), "not an .npy array"),
        (GOOD_NPY.replace(b"(4,), }       ", b"(400000000000,)}")[: len(GOOD_NPY)], "need 3200000000000 bytes"),
        (b"\x93NUMPY\x09\x00" + GOOD_NPY[8:], "version"),
        (GOOD_NPY.replace(b"(4,), }", b"(4,    "), "not an .npy array"),
        (b"hello", "not an .npy array"),
        (b"", "not an .npy array"),
    ],
)
def test_refuses_bad_arrays(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        load_npy(path)
    (tmp_path / "x.npz").write_bytes(zipped({"a.npy": data}))
    with pytest.raises(DataError, match=f"member 'a'.*{message}"):
        load_npz(tmp_path / "x.npz")


def test_refuses_bad_archives(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    good = zipped({"a.npy": GOOD_NPY})
    damaged = bytearray(zipped({"a.npy": npy(np.random.default_rng(0).normal(size=500))}))
    damaged[300] ^= 255
    doubled = zipped({"a.npy": GOOD_NPY, "b.npy": GOOD_NPY}).replace(b"b.npy", b"a.npy")
    for data, message in (
        (good[:50], "damaged or different"),
        (b"no zip at all", "damaged or different"),
        (bytes(damaged), "damaged or different"),
        (zipped({"a.npy": npy(np.zeros(2_000_000))}), "unpacks to 16,000,128 bytes"),
        (zipped({"readme.txt": b"hello"}), "is no .npy array"),
        (doubled, "is there twice"),
        (zipped({"a.npy": GOOD_NPY}, zipfile.ZIP_BZIP2), "packed in a way"),
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=message):
            load_npz(path, max_bytes=1_000_000)
    path.write_bytes(bytes(2000))
    with pytest.raises(DataError, match="at most 1,000 bytes"):
        load_npz(path, max_bytes=1000)
    with pytest.raises(MissingFileError):
        load_npy(tmp_path / "absent.npy")
