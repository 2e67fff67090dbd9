import gzip
import io
import json
import time
import tracemalloc
import zipfile
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared import predictions as P
from shared.errors import DataError, MissingFileError
from tests.golden.fill import uniform


def table(n=3, j=2, seed=0):
    return np.random.default_rng(seed).uniform(1, 400, (n, j, 3)).round(3)


def put(tmp_path, content, name="file.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ------------------------------------------------------------------------------------------------------ text rows


@pytest.mark.parametrize("name", ["p.txt", "p.txt.gz"])
def test_round_trip(tmp_path, name):
    values = table()
    P.write_predictions(tmp_path / name, values)
    np.testing.assert_array_equal(P.read_predictions(tmp_path / name, 2), values)
    np.testing.assert_array_equal(P.read_predictions(tmp_path / name), values)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 5),
    st.sampled_from(["%.3f", "%.12g", "%e", "%.2E"]),
    st.sampled_from(["\n", " \n", "\r\n", " \r\r\n", "\n\n"]),
    st.sampled_from([" ", "  ", "\t"]),
    st.sampled_from([None, "a/b_%d.png", "a\\b_%d.png", "%07d"]),
    st.booleans(),
)
def test_variants_that_occur(tmp_path_factory, n, j, form, newline, blank, name, last):
    values = table(n, j, n * 10 + j)
    rows = [blank.join(([name % i] if name else []) + [form % v for v in f.ravel()]) for i, f in enumerate(values)]
    text = newline.join(rows) + (newline if last else "")
    path = put(tmp_path_factory.mktemp("v"), text)
    rows = P.read_rows(path, j)
    np.testing.assert_allclose(rows.values, values, rtol=0.01)
    if name:
        assert rows.names == [(name % i).replace("\\", "/") for i in range(n)]
    else:
        assert rows.names is None


def test_line_numbers_of_label_files_with_empty_lines(tmp_path):
    path = put(tmp_path, b"\xef\xbb\xbf1 2 3 \r\r\n\r\n4 5 6 \r\r\n")
    rows = P.read_rows(path, 1)
    assert rows.values.tolist() == [[[1, 2, 3]], [[4, 5, 6]]]
    assert rows.lines.tolist() == [1, 3]


def test_two_numbers_per_joint_and_missing_ground_truth(tmp_path):
    path = put(tmp_path, "1 2 nan nan\n3 4 5 6\n")
    values = P.read_rows(path, 2, 2, finite=False).values
    assert values.shape == (2, 2, 2)
    assert np.isnan(values[0, 1]).all()
    with pytest.raises(DataError, match=r"line 1, number 3: 'nan' is not finite"):
        P.read_rows(path, 2, 2)


def test_many_blocks(tmp_path):
    values = table(9000, 14, 5)
    names = [f"test/depth_1_{i:07d}.png" for i in range(9000)]
    P.write_predictions(tmp_path / "big.txt", values, names=names)
    assert (tmp_path / "big.txt").stat().st_size > 3 << 20
    rows = P.read_rows(tmp_path / "big.txt", 14)
    np.testing.assert_array_equal(rows.values, values)
    assert rows.names == names
    assert rows.lines.tolist() == list(range(1, 9001))


def test_rows_of_the_v2v_port_and_of_its_author(golden, tmp_path):
    g = np.load(golden / "v2v_posenet" / "metrics.npz")
    gt = uniform("v2v_posenet/public/metrics/gt", (200, 21, 3), -80, 80).astype(np.float64)
    pred = gt + uniform("v2v_posenet/public/metrics/noise", (200, 21, 3), -25, 25).astype(np.float64)
    pred[3, 2] = gt[3, 2]
    P.write_predictions(tmp_path / "test_res.txt", pred[:4], decimals=4)
    assert (tmp_path / "test_res.txt").read_bytes() == g["result_text_first4"].tobytes()
    P.write_predictions(tmp_path / "result.txt", [[[1.0, 2, 3]]], trailing_blank=True)
    assert (tmp_path / "result.txt").read_bytes() == b"1.000 2.000 3.000 \n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3 4 5 6\n1 2 3 4 5\n", r"line 2 has 5 numbers, expected 6 \(2 joints x 3\)"),
        ("1 2 3 4 5 6\n1 2 3 4 5 6 7\n", "line 2 has 7 numbers, expected 6"),
        ("1 2 3 4 5\n1 2 3 4 5 6 7\n", "line 1 has 5 numbers, expected 6"),  # the total is right
        ("a.png 1 2 3 4 5 6\n1 2 3 4 5 6\n", "line 2 has 5 numbers, expected 6"),
        ("a.png 1 2 3\n", "line 1 has 3 numbers, expected 6"),
        ("1 2 3 4 5 6\n1 2 x 4 5 6\n", "line 2, number 3: 'x' is not a number"),
        ("1 2 3 4 5 6\n\nn.png 2 3 4 5 6\n", "line 3, number 1: 'n.png' is not a number"),
        ("1 2 3 4 5 1_0\n", "number 6: '1_0' is not a number"),
        ("1 2 3 4 5 0x10\n", "number 6: '0x10' is not a number"),
        ("1,2,3,4,5,6\n", "line 1 has . numbers, expected 6"),
        ("a 1 2 3 4 5 6\nb 1 2 nan 4 5 6\n", "line 2, number 3: 'nan' is not finite"),
        ("1 2 3 4 5 1e999\n", "'1e999' is not finite"),
        ("1 2 3 4 5 -inf\n", "'-inf' is not finite"),
        ("", "the file has no rows"),
        ("hello\n", "line 1 has 0 numbers, expected 6"),
        ("\n \r\n", "the file has no rows"),
        ("1 2 3 4 5 6\n".encode("utf-16"), "not a text file"),
        (b"1 2 3\0 4 5 6\n", "not a text file"),
    ],
)
def test_bad_text_names_file_and_line(tmp_path, text, message):
    with pytest.raises(DataError, match=r"file\.txt: .*" + message):
        P.read_rows(put(tmp_path, text), 2)


def test_columns_that_are_no_triples(tmp_path):
    with pytest.raises(DataError, match="line 1 has 4 numbers, expected a multiple of 3"):
        P.read_predictions(put(tmp_path, "1 2 3 4\n"))
    with pytest.raises(DataError, match="line 2 has no numbers"):
        P.read_predictions(put(tmp_path, "\nhello\n"))
    with pytest.raises(MissingFileError, match=r"nothing\.txt: there is no such file"):
        P.read_predictions(tmp_path / "nothing.txt")
    with pytest.raises(DataError, match="more than 2 rows"):
        P.read_rows(put(tmp_path, "1 2 3\n" * 3), 1, max_rows=2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"values": np.zeros((3, 4))}, r"expected values \(N, J, D\)"),
        ({"values": np.full((2, 1, 3), [[[1.0]], [[np.nan]]])}, "row 1 to be written is not finite"),
        ({"values": np.zeros((2, 1, 3)), "names": ["a"]}, "expected 2 names"),
        ({"values": np.zeros((1, 1, 3)), "names": ["a b"]}, "names without blanks"),
    ],
)
def test_writing_nonsense(tmp_path, kwargs, message):
    with pytest.raises(DataError, match=message):
        P.write_predictions(tmp_path / "o.txt", **kwargs)
    assert not (tmp_path / "o.txt").exists()


# --------------------------------------------------------------------------------------------------------- DexYCB


def test_dexycb_lines(tmp_path):
    joints = table(4, 21)
    P.write_dexycb(tmp_path / "r.txt", [3, 1, 7, 5], joints)
    index, read = P.read_dexycb(tmp_path / "r.txt")
    assert index.tolist() == [3, 1, 7, 5]
    np.testing.assert_array_equal(read, joints)
    assert (tmp_path / "r.txt").read_text().startswith("3,")


def test_dexycb_errors(tmp_path):
    row = ",".join(["1"] * 63)
    with pytest.raises(DataError, match="line 2: frame 4 comes a second time"):
        P.read_dexycb(put(tmp_path, f"4,{row}\n4,{row}\n"))
    with pytest.raises(DataError, match=r"line 1: the frame index 1\.5 is no whole number"):
        P.read_dexycb(put(tmp_path, f"1.5,{row}\n"))
    with pytest.raises(DataError, match=r"line 1 has 65 numbers, expected 64 \(index"):
        P.read_dexycb(put(tmp_path, f"1,2,{row}\n"))
    with pytest.raises(DataError, match=r"expected finite joints \(2, 21, 3\)"):
        P.write_dexycb(tmp_path / "r.txt", [1, 2], np.zeros((1, 21, 3)))


# ----------------------------------------------------------------------------------------------------------- JSON


def meshes(n=3, v=778):
    rng = np.random.default_rng(0)
    return rng.uniform(-100, 500, (n, 21, 3)).round(3), rng.uniform(-100, 500, (n, v, 3)).round(3)


@pytest.mark.parametrize("name", ["pred.json", "pred.zip", "pred.json.gz"])
@pytest.mark.parametrize("axes", ["opengl", "opencv"])
def test_mesh_json_round_trip(tmp_path, name, axes):
    joints, verts = meshes()
    P.write_mesh_json(tmp_path / name, joints, verts, axes)
    for frames in (None, 3):
        again = P.read_mesh_json(tmp_path / name, axes, frames=frames)
        np.testing.assert_allclose(again[0], joints, atol=1e-9)
        np.testing.assert_allclose(again[1], verts, atol=1e-9)


def test_mesh_json_is_the_official_layout(tmp_path):
    joints, verts = meshes(2)
    P.write_mesh_json(tmp_path / "pred.zip", joints, verts, "opengl")
    with zipfile.ZipFile(tmp_path / "pred.zip") as archive:
        assert archive.namelist() == ["pred.json"]
        xyz, mesh = json.loads(archive.read("pred.json"))
    np.testing.assert_allclose(np.array(xyz) * [1000, -1000, -1000], joints, atol=1e-9)  # metres, y up, z negative
    assert np.shape(mesh) == (2, 778, 3)
    # And what Python's json writes (the official example does) is read, in every spacing.
    for kwargs in ({}, {"indent": 1}, {"separators": (",", ":")}):
        path = put(tmp_path, json.dumps([xyz, mesh], **kwargs), "own.json")
        np.testing.assert_allclose(P.read_mesh_json(path, "opengl")[0], joints, atol=1e-9)


def test_points_json(tmp_path):
    joints, verts = meshes()
    path = put(tmp_path, json.dumps((joints / 1000).tolist()), "evaluation_xyz.json")
    np.testing.assert_allclose(P.read_points_json(path, 21, "opencv"), joints, atol=1e-9)
    path = put(tmp_path, json.dumps((verts / 1000).tolist()), "evaluation_verts.json")
    np.testing.assert_allclose(P.read_points_json(path, 778, "opengl", frames=3), verts * [1, -1, -1], atol=1e-9)
    with pytest.raises(DataError, match="around the numbers"):
        P.read_points_json(path, 21, "opencv")
    short = put(tmp_path, json.dumps(np.zeros((2, 20, 3)).tolist()))
    with pytest.raises(DataError, match=r"expected nested lists|N x 21 x 3"):
        P.read_points_json(short, 21, "opencv")
    ragged = np.zeros((2, 21, 3)).tolist()
    ragged[1].pop()
    with pytest.raises(DataError, match=r"expected a list of N x 21 x 3 numbers, got 123"):
        P.read_points_json(put(tmp_path, json.dumps(ragged)), 21, "opencv")


ZERO21, ZERO778 = np.zeros((2, 21, 3)).tolist(), np.zeros((2, 778, 3)).tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps([ZERO21, ZERO778[:1]]), "2 frames of joints but 1 frames of vertices"),
        (json.dumps([ZERO21]), "another shape"),
        (json.dumps([ZERO21, ZERO778, []]), "another shape|missing or not"),
        (json.dumps([ZERO21, np.zeros((2, 777, 3)).tolist()]), "another shape"),
        (json.dumps([ZERO778, ZERO21]), "around the numbers"),
        (json.dumps({"xyz": ZERO21}), "expected nested lists of numbers only; found"),
        (json.dumps([ZERO21, ZERO778]).replace("0.0", "NaN", 1), "found 'NN?a?N"),
        (json.dumps([ZERO21, ZERO778]).replace("0.0", "1e999", 1), "missing or not a finite number"),
        (json.dumps([ZERO21, ZERO778]).replace("0.0, 0.0", "0.0 0.0, ", 1), "missing or not a finite number"),
        (json.dumps([ZERO21, ZERO778])[:-3], "another shape"),
        ("[]", "another shape|around the numbers"),
        ("", "another shape"),
        ("hello", "found 'h?llo"),
    ],
)
def test_bad_mesh_json(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        P.read_mesh_json(put(tmp_path, text), "opengl")


def test_too_many_frames_in_json(tmp_path):
    path = put(tmp_path, json.dumps([ZERO21 * 3, ZERO778 * 3]))
    with pytest.raises(DataError, match=r"more than the expected 4,794 numbers"):
        P.read_mesh_json(path, "opengl", frames=1)
    with pytest.raises(DataError, match=r"expected \(N, 21, 3\) joints"):
        P.write_mesh_json(path, np.zeros((2, 20, 3)), np.zeros((2, 778, 3)), "opengl")
    with pytest.raises(DataError, match=r"vertices of frame 1 are not finite"):
        P.write_mesh_json(path, np.zeros((2, 21, 3)), [np.zeros((778, 3)), np.full((778, 3), np.nan)], "opengl")


# -------------------------------------------------------------------------------------------------- hostile bytes


def zipped(data, name="pred.json"):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return out.getvalue()


GOOD_TEXT = b"".join(b"%d %d %d\n" % (i, i * 7 % 101, i * 13 % 997) for i in range(3000))
BIG = 64 << 20  # unpacked bytes of the bombs


def gzip_bomb(pattern):
    """A gzip of BIG bytes, made of many members so that it is written quickly."""
    return gzip.compress(pattern * ((1 << 20) // len(pattern))) * (BIG >> 20)


HOSTILE = {
    "truncated gzip": (lambda: gzip.compress(GOOD_TEXT)[:-300], "damaged or cut off"),
    "gzip with a flipped byte": (
        lambda: gzip.compress(GOOD_TEXT)[:2000] + b"!!!!" + gzip.compress(GOOD_TEXT)[2004:],
        "damaged or cut off|bytes|number",
    ),
    "only a gzip header": (lambda: b"\x1f\x8b", "damaged or cut off"),
    "zip without pred.json": (lambda: zipped(b"1 2 3", "other.txt"), "expected one pred.json in the zip"),
    "truncated zip": (lambda: zipped(GOOD_TEXT)[:-30], "damaged or cut off"),
    "gzip bomb of zeros": (lambda: gzip_bomb(b"0"), "longer than"),
    "gzip bomb of empty lines": (lambda: gzip_bomb(b"\n"), "hold only 0 words"),
    "gzip bomb of rows": (lambda: gzip_bomb(b"0 0 0\n"), "more than 10000 rows"),
    "endless line": (lambda: b"1 " * (40 << 20), "longer than 65,536 bytes"),
    "no line end": (lambda: b"7" * (40 << 20), "longer than"),
    "nothing but blanks": (lambda: (b" " * 1000 + b"\n") * 40_000, "hold only 0 words"),
}
HOSTILE_JSON = {
    "zip bomb of blanks": (lambda: zipped(b" " * BIG), "no comma"),
    "zip bomb of brackets": (lambda: zipped(b"[" * BIG), "no comma"),
    "zip bomb of commas": (lambda: zipped(b"[[[[1,1,1]" + b"," * BIG), "around the numbers"),
    "zip bomb of numbers": (
        lambda: zipped(b"[[" + b",".join([json.dumps(ZERO21[0]).encode()] * (BIG // 315))),
        "more than the expected",
    ),
    "nested lists": (lambda: b"[" * 5_000_000 + b"," + b"]" * 5_000_000, "no comma|around the numbers"),
    "truncated gzip": (lambda: gzip.compress(json.dumps([ZERO21, ZERO778]).encode())[:-9], "damaged or cut off"),
}


ALL_HOSTILE = HOSTILE | {f"json, {case}": value for case, value in HOSTILE_JSON.items()}


def read_hostile(path, case, bounded):
    if case.startswith("json"):
        return P.read_mesh_json(path, "opengl", frames=3 if bounded else None)
    return P.read_rows(path, max_rows=10_000 if bounded else None)


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("case", ALL_HOSTILE)
def test_hostile_files_end_soon_and_cheaply(tmp_path, case, bounded):
    make, message = ALL_HOSTILE[case]
    path = put(tmp_path, make())
    start = time.perf_counter()
    with pytest.raises(DataError, match=message if bounded or "bomb" not in case else "possibly a bomb"):
        read_hostile(path, case, bounded)
    seconds = time.perf_counter() - start
    print(f"{case}: {seconds:.2f} s")
    assert seconds < 2  # 0.4 s at most when measured


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("case", ["gzip bomb of rows", "json, zip bomb of numbers", "endless line"])
def test_hostile_files_take_little_memory(tmp_path, case, bounded):
    path = put(tmp_path, ALL_HOSTILE[case][0]())
    tracemalloc.start()
    with pytest.raises(DataError):
        read_hostile(path, case, bounded)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    print(f"{case}: {peak:.0f} MiB")
    assert peak < 100


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_give_rows_or_a_data_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("f") / "x"
    path.write_bytes(data)
    for read in (
        lambda: P.read_predictions(path, 1).shape,
        lambda: P.read_predictions(path).shape,
        lambda: P.read_dexycb(path),
        lambda: P.read_mesh_json(path, "opencv"),
    ):
        with suppress(DataError):
            read()


def test_real_files(real_data):
    expected = json.loads((real_data / "predictions" / "expected.json").read_text())
    for method in expected["methods"]:
        start = time.perf_counter()
        values = P.read_predictions(real_data / "predictions" / method["file"], method["joints"])
        seconds = time.perf_counter() - start
        print(f"{method['file']}: {seconds:.2f} s")
        assert values.shape == (method["frames"], method["joints"], 3)
    labels = P.read_rows(real_data / "icvl_labels" / "test_seq_1.txt.gz", 16)
    assert labels.values.shape == (702, 16, 3)
    assert labels.names[0] == "test_seq_1/image_0000.png"
    assert labels.lines[-1] in (702, 1403)
