"""NYU: three views of one hand read back, the labels file, where the cameras stand, the store, and bad files."""

from __future__ import annotations

import contextlib
import gzip
import json
import pickle
import shutil
import subprocess
import sys
import time
import tracemalloc
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import loadmat, savemat
from scipy.spatial.transform import Rotation

from shared import camera
from shared.datasets import nyu
from shared.datasets.base import FrameDataset
from shared.errors import DataError, MissingFileError
from shared.skeletons import get, order
from shared.standin.all import write_sets
from shared.standin.nyu import JOINT_NAMES, rig, sample_nyu_hand, write_nyu
from shared.standin.scene import standin_layer, to_skeleton
from tests.shared.depth_checks import on_surface

FRAMES = 3


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nyu")
    write_nyu(root, frames=FRAMES, seed=1)
    return root


@pytest.fixture(scope="module")
def variables(tree: Path) -> dict[str, Any]:
    """What the label file of the tree holds; a test changes a copy and saves it."""
    return {k: v for k, v in loadmat(tree / "test" / "joint_data.mat").items() if k.startswith("joint_")}


def test_depth_is_green_times_256_plus_blue(tmp_path: Path) -> None:
    rgb = np.zeros((480, 640, 3), np.uint8)
    rgb[..., 0] = 9  # unused
    rgb[0, :4, 1] = [7, 2, 0, 255]
    rgb[0, :4, 2] = [209, 191, 0, 255]
    Image.fromarray(rgb).save(tmp_path / "a.png")
    depth = nyu.read_depth(tmp_path / "a.png")
    assert depth.dtype == np.float32
    assert depth[0, :5].tolist() == [2001, 703, 0, 65535, 0]  # 256 * 255 does not fit the file's type
    Image.fromarray(rgb[..., 0]).save(tmp_path / "grey.png")
    with pytest.raises(DataError, match=r"grey\.png: expected an RGB picture"):
        nyu.read_depth(tmp_path / "grey.png")
    Image.fromarray(rgb[:240, :320].copy()).save(tmp_path / "small.png")
    with pytest.raises(DataError, match="expected 640x480 pixels, the header says 320x240"):
        nyu.read_depth(tmp_path / "small.png")


@pytest.mark.parametrize("cam", [1, 2, 3])
def test_labels_fall_on_the_hand(tree: Path, cam: int) -> None:
    dataset = nyu.open(tree, "test", cameras=(cam,), joints="nyu36")
    assert isinstance(dataset, FrameDataset)
    good, flipped, mirrored = [], [], []
    for index in range(len(dataset)):
        frame = dataset[index]
        assert frame.joints_mm is not None
        assert frame.keypoints_2d is not None
        assert np.abs(camera.project(frame.joints_mm, frame.K) - frame.keypoints_2d).max() < 1e-6
        good.append(on_surface(frame, frame.joints_mm, 28))
        flipped.append(on_surface(frame, frame.joints_mm * [1, -1, 1], 28))
        mirrored.append(on_surface(frame, frame.joints_mm * [-1, 1, 1], 28))
    print(
        f"camera {cam}: on surface {np.mean(good):.2f}, y up {np.mean(flipped):.2f}, mirrored {np.mean(mirrored):.2f}"
    )
    assert np.mean(good) > 0.6  # the rest is hidden by other fingers, or curled into the palm
    assert max(np.mean(flipped), np.mean(mirrored)) < np.mean(good) - 0.3


def test_views_are_one_hand(tmp_path: Path) -> None:
    """Camera poses carry the side views' labels, and their depth pictures, onto camera 1's."""
    write_nyu(tmp_path, frames=FRAMES, seed=1, noise=False)
    dataset = nyu.open(tmp_path, "train", cameras=(1, 2, 3))
    truth = np.linalg.inv(rig())
    difference = np.abs(dataset.T_cam1_cam - truth).max()
    print(f"rig poses max diff {difference:.3g}, rms {dataset.rig_rms_mm.max():.3g} mm")
    assert difference < 1e-6
    views = dataset.views(1)
    assert [view.extra["camera"] for view in views] == [1, 2, 3]
    assert [view.name for view in views] == [f"train/depth_{cam}_0000002" for cam in (1, 2, 3)]
    first = views[0].joints_mm
    for view in views:
        assert view.joints_mm is not None
        T = view.extra["T_cam1_cam"]
        assert np.allclose(view.joints_mm @ T[:3, :3].T + T[:3, 3], first, atol=1e-6)
        wrong = np.linalg.inv(T)
        assert view.extra["camera"] == 1 or np.abs(view.joints_mm @ wrong[:3, :3].T + wrong[:3, 3] - first).max() > 50
    # a surface point that a side camera measured is no nearer to camera 1 than what that sees in its direction
    depth = views[1].full_depth_mm()
    v, u = np.nonzero(depth < nyu.FAR_MM)
    points = camera.uvd_to_xyz(np.stack([u, v, depth[v, u]], -1), nyu.K)
    points = points @ views[1].extra["T_cam1_cam"][:3, :3].T + views[1].extra["T_cam1_cam"][:3, 3]
    uv = np.rint(camera.project(points, nyu.K)).astype(int)
    seen = views[0].full_depth_mm()[uv[:, 1], uv[:, 0]]
    share = (seen - points[:, 2] < 4).mean()
    print(f"side points not in front of the front view: {share:.3f}")
    assert share > 0.97 - (seen == nyu.FAR_MM).mean()
    assert (seen < nyu.FAR_MM).mean() > 0.9


def test_frame_poses_equal_the_rig(tree: Path) -> None:
    xyz = nyu.read_labels(tree / "train" / "joint_data.mat").xyz_mm
    poses = nyu.frame_poses(xyz)
    assert poses.shape == (3, FRAMES, 4, 4)
    assert np.abs(poses - np.linalg.inv(rig())[:, None]).max() < 1e-6
    assert np.array_equal(poses[0], np.tile(np.eye(4), (FRAMES, 1, 1)))
    assert np.abs(poses[1:, :, :3, 3]).min() < np.abs(poses[1:, :, :3, 3]).max()
    assert np.abs(poses[1:, :, 3, :3]).max() == 0  # the translation is in the last column


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_rigid_fit_recovers_a_motion_and_never_mirrors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, R, t = rng.normal(0, 50, (2, 7, 3)), Rotation.random(rng=rng).as_matrix(), rng.normal(0, 300, 3)
    T = nyu.rigid_fit(points, points @ R.T + t)
    assert np.allclose(T[:, :3, :3], R, atol=1e-9)
    assert np.allclose(T[:, :3, 3], t, atol=1e-7)
    mirrored = nyu.rigid_fit(points, points * [-1, 1, 1])
    assert np.allclose(np.linalg.det(mirrored[:, :3, :3]), 1)


def test_rigid_fit_shapes() -> None:
    with pytest.raises(DataError, match=r"expected two arrays \(\.\.\., P, 3\) with P >= 3"):
        nyu.rigid_fit(np.zeros((2, 3)), np.zeros((2, 3)))


def test_fourteen_of_thirty_six(tree: Path, variables: dict[str, Any]) -> None:
    published = [0, 3, 6, 9, 12, 15, 18, 21, 24, 25, 27, 30, 31, 32]  # the joints filled in the authors' predictions
    assert order("nyu36", "nyu14").tolist() == published
    assert get("nyu36").joints[nyu.PALM] == "palm"
    some, every = nyu.open(tree, "test"), nyu.open(tree, "test", joints="nyu36")
    assert (some.skeleton, every.skeleton) == ("nyu14", "nyu36")
    assert np.array_equal(some.joints_mm, every.joints_mm[:, published])
    assert np.array_equal(every.joints_mm * [1, -1, 1], variables["joint_xyz"][0])  # the file's y is up
    keypoints = some[0].keypoints_2d
    assert keypoints is not None
    assert np.array_equal(keypoints, variables["joint_uvd"][0, 0, published, :2])
    assert [name[0] for name in variables["joint_names"][0]] == JOINT_NAMES
    assert [JOINT_NAMES[i] for i in (0, 3, 6, 24, 25, 27, 30, 32)] == [
        *("F1_KNU3_A", "F1_KNU2_B", "F2_KNU3_A", "TH_KNU3_A", "TH_KNU3_B", "TH_KNU2_B", "PALM_1", "PALM_3")
    ]


def test_real_labels_know_the_second_subject(real_data: Path) -> None:
    """Wrist width of the public test labels: constant for the first person, and it drops at the frame we name."""
    text = gzip.decompress((real_data / "predictions" / "nyu" / "nyu_test_groundtruth_label.txt.gz").read_bytes())
    uvd = np.array([line.split() for line in text.splitlines()], float).reshape(-1, 14, 3)
    joints = camera.uvd_to_xyz(uvd, nyu.K)
    sides = [get("nyu14").index(f"wrist_side_{i}") for i in (1, 2)]
    width = np.linalg.norm(joints[:, sides[0]] - joints[:, sides[1]], axis=-1)
    border = nyu.SUBJECT_2_FROM - 1
    print(f"wrist width {width[:border].mean():.2f} +- {width[:border].std():.2g}, then {width[border:].mean():.2f}")
    assert np.abs(width[:border] - 35.3).max() < 0.5
    assert width[border:].max() < 31


def test_real_wrist_points_are_named_like_ours(real_data: Path) -> None:
    """PALM_1 is on the little finger's side: in the public test labels, and in the stand-in's."""
    text = gzip.decompress((real_data / "predictions" / "nyu" / "nyu_test_groundtruth_label.txt.gz").read_bytes())
    uvd = np.array([line.split() for line in text.splitlines()], float).reshape(-1, 14, 3)
    names = get("nyu14").index
    for joints in (camera.uvd_to_xyz(uvd, nyu.K), to_skeleton(_flat_joints(), "nyu14")[None]):
        across = joints[:, names("wrist_side_2")] - joints[:, names("wrist_side_1")]
        to_thumb = joints[:, names("thumb_root")] - joints[:, [names(f"wrist_side_{i}") for i in (1, 2)]].mean(1)
        share = ((across * to_thumb).sum(-1) > 0).mean()
        print(f"wrist_side_2 on the thumb's side: {share:.3f}")
        assert share > 0.99


def _flat_joints() -> np.ndarray[Any, Any]:
    zero = torch.zeros(1, 58, dtype=torch.float64)
    return standin_layer()(zero[:, :48], zero[:, 48:]).joints[0].numpy()


def test_hands_of_the_tree(tree: Path) -> None:
    """Fingers point towards every camera, the forearm is seen, pictures are noisy, and do not depend on the workers."""
    xyz = nyu.read_labels(tree / "train" / "joint_data.mat").xyz_mm
    direction = xyz[:, :, 32] - xyz[:, :, 35]  # wrist to palm
    tilt = direction[..., 2] / np.linalg.norm(direction, axis=-1)
    print(f"towards the camera: {np.round(-tilt, 2).tolist()}")
    assert tilt[0].max() < -np.sin(np.deg2rad(25))
    assert tilt.max() < 0.25
    hand, faces = sample_nyu_hand(1, 0, person=0, center_mm=np.zeros(3))
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), 1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()  # closed
    volume = np.einsum("fi,fi->", hand.verts_mm[faces[:, 0]], np.cross(*hand.verts_mm[faces[:, 1:]].swapaxes(0, 1))) / 6
    assert volume > 3e5  # cubic mm; outside is outside
    assert np.linalg.norm(hand.verts_mm[778:] - hand.verts_mm[:778].mean(0), axis=1).max() > 200


def test_workers_and_noise(tree: Path, tmp_path: Path) -> None:
    write_sets(tmp_path / "two", ["nyu"], frames=FRAMES, seed=1, workers=2)
    write_nyu(tmp_path / "clean", frames=FRAMES, seed=1, noise=False)
    name = "test/depth_3_0000002.png"
    assert (tmp_path / "two/nyu" / name).read_bytes() == (tree / name).read_bytes()
    noisy, clean = nyu.read_depth(tree / name), nyu.read_depth(tmp_path / "clean" / name)
    both = (noisy < nyu.FAR_MM) & (clean < nyu.FAR_MM)
    print(f"noise {np.std((noisy - clean)[both]):.2f} mm, lost {(clean < nyu.FAR_MM).sum() - both.sum()} pixels")
    assert 1 < np.std((noisy - clean)[both]) < 5
    assert both.sum() < (clean < nyu.FAR_MM).sum()


def test_frame_and_summary(tree: Path) -> None:
    dataset = nyu.open(tree, "test")
    assert dataset.summary() == "NYU test: 3 frames, camera 1, nyu14"
    assert dataset.names() == [f"test/depth_1_{n:07d}" for n in (1, 2, 3)]
    frame = dataset[2]
    assert frame.name == "test/depth_1_0000003"
    assert frame.subject == "1"
    assert frame.depth_mm is not None
    assert frame.depth_mm.max() == nyu.FAR_MM  # kept: known to be empty
    assert (frame.depth_mm > 0).all()
    assert frame.extra["number"] == 3
    late = nyu.open(tree, "test")
    late.numbers = late.numbers + 2438  # 2439, 2440, 2441
    folder = late.folder
    assert folder is not None
    with pytest.raises(MissingFileError, match=r"depth_1_0002441\.png"):
        late[2]
    assert "rig fitted to 0.00 mm rms" in nyu.open(tree, "test", cameras=(1, 2)).summary()
    assert np.array_equal(pickle.loads(pickle.dumps(dataset))[0].depth_mm, dataset[0].depth_mm)


def test_second_subject(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nyu, "SUBJECT_2_FROM", 3)
    assert [nyu.open(tree, "test")[i].subject for i in range(3)] == ["1", "1", "2"]
    assert nyu.open(tree, "train")[2].subject == "1"


def test_centers_are_camera_one_y_up(tree: Path, tmp_path: Path) -> None:
    lines = (tree / "nyu_center" / "center_test_refined.txt").read_text().splitlines()
    (tmp_path / "c.txt").write_text("\n".join([lines[0], "invalid", lines[2]]) + "\n")
    dataset = nyu.open(tree, "test", cameras=(1, 2), centers=tmp_path / "c.txt")
    assert dataset.numbers.tolist() == [1, 3]
    assert dataset.skipped == {"frames without a centre": ["test/depth_1_0000002"]}
    assert dataset.centers_mm is not None
    assert np.linalg.norm(dataset.centers_mm - dataset.joints_mm.mean(1), axis=-1).max() < 60
    assert np.linalg.norm(dataset.centers_mm * [1, -1, 1] - dataset.joints_mm.mean(1), axis=-1).max() > 60
    front, side = dataset.views(1)
    assert np.array_equal(front.center_mm, dataset.centers_mm[1])
    assert side.center_mm is None
    (tmp_path / "c.txt").write_text(lines[0])
    with pytest.raises(DataError, match="1 centres for 3 labelled frames"):
        nyu.open(tree, "test", centers=tmp_path / "c.txt")


def test_missing_pictures(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree / "test", tmp_path / "dataset" / "test")  # the folder the archive unpacks to
    (tmp_path / "dataset" / "test" / "depth_2_0000001.png").unlink()
    assert len(nyu.open(tmp_path, "test")) == 3
    dataset = nyu.open(tmp_path, "test", cameras=(1, 2))
    assert dataset.numbers.tolist() == [2, 3]
    assert dataset.skipped == {"missing pictures of camera 2": ["test/depth_1_0000001"]}
    for file in (tmp_path / "dataset" / "test").glob("*.png"):
        file.unlink()
    with pytest.raises(MissingFileError, match=r"none of the 3 labelled pictures is here"):
        nyu.open(tmp_path, "test")


def test_frames_without_labels(tree: Path, variables: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(tree / "test", tmp_path / "test")
    names = ("joint_xyz", "joint_uvd")
    changed = {name: variables[name].copy() for name in names}
    for name in names:
        changed[name][1, 0] = changed[name][:, 2] = 0
    savemat(tmp_path / "test/joint_data.mat", changed)
    labels = nyu.read_labels(tmp_path / "test/joint_data.mat")
    assert nyu.labelled(labels.xyz_mm).tolist() == [[True, True, False], [False, True, False], [True, True, False]]
    for cameras, numbers in (((1,), [1, 2]), ((1, 2), [2])):
        dataset = nyu.open(tmp_path, "test", cameras=cameras)
        assert dataset.numbers.tolist() == numbers
        assert dataset.skipped == {
            "frames without labels": [f"test/depth_1_{n:07d}" for n in (1, 2, 3) if n not in numbers]
        }
        assert dataset.rig_rms_mm.max() < 1e-3


def test_missing_folders_and_options(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no folder of NYU here; looked for .*dataset/train.*NYU_Hand_Pose"):
        nyu.open(tmp_path, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(MissingFileError, match=r"joint_data\.mat: missing: NYU labels"):
        nyu.open(tmp_path, "train")
    with pytest.raises(MissingFileError, match="no such label file"):
        nyu.read_labels(tmp_path / "none.mat")
    with pytest.raises(DataError, match="split: expected train or test, got 'val'"):
        nyu.open(tmp_path, "val")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="joints: expected nyu14 or nyu36, got 'mano'"):
        nyu.open(tree, "test", joints="mano")  # type: ignore[arg-type]
    for cameras in ((), (0,), (1, 1), (4,)):
        with pytest.raises(DataError, match="cameras: expected different numbers out of 1, 2, 3"):
            nyu.open(tree, "test", cameras=cameras)
    with pytest.raises(DataError, match="root: expected the data set's folder, got None"):
        nyu.open(None, "test")
    with pytest.raises(DataError, match="frames: expected at least 1"):
        write_nyu(tmp_path, frames=0)


def test_same_seed_same_bytes(tree: Path, tmp_path: Path) -> None:
    write_nyu(tmp_path, frames=FRAMES, seed=1)
    for file in sorted(tree.rglob("*.*")):
        assert (tmp_path / file.relative_to(tree)).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_kinds_of_label_files(variables: dict[str, Any], tmp_path: Path, compressed: bool, dtype: Any) -> None:
    changed = {k: v.astype(dtype) if k != "joint_names" else v for k, v in variables.items()}
    savemat(tmp_path / "j.mat", changed | {"other": np.zeros(3)}, do_compression=compressed)
    labels = nyu.read_labels(tmp_path / "j.mat")
    assert labels.xyz_mm.dtype == np.float64
    assert np.array_equal(labels.xyz_mm * [1, -1, 1], changed["joint_xyz"])
    assert np.array_equal(labels.uvd, changed["joint_uvd"])


def _broken(kind: str, v: dict[str, Any]) -> dict[str, Any]:
    xyz, uvd = v["joint_xyz"].copy(), v["joint_uvd"].copy()
    if kind == "y down":
        xyz[..., 1] *= -1
    elif kind == "metres":
        uvd[..., :2] /= 1000
    elif kind == "camera order":
        xyz = xyz[[1, 0, 2]]
    elif kind == "nan":
        xyz[2, 1, 5, 0] = np.nan
    elif kind == "shape":
        xyz, uvd = xyz[:, :, :14], uvd[:, :, :14]
    elif kind == "two lengths":
        uvd = uvd[:, :2]
    elif kind == "complex":
        xyz = xyz + 1j
    elif kind == "zero":
        xyz, uvd = xyz * 0, uvd * 0
    return {"joint_xyz": xyz, "joint_uvd": uvd}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("y down", r"camera 1: joint_uvd and the projection of joint_xyz are \d+\.\d pixels apart"),
        ("metres", "camera 1: joint_uvd and the projection"),
        ("camera order", "camera 1: joint_uvd and the projection"),
        ("zero", "are nan pixels apart"),
        ("nan", "joint_xyz: expected finite numbers"),
        ("shape", r"expected joint_xyz and joint_uvd of shape \(3, frames, 36, 3\), got \(3, 3, 14, 3\)"),
        ("two lengths", r"got \(3, 3, 36, 3\) and \(3, 2, 36, 3\)"),
        ("complex", "joint_xyz is not a real numeric array"),
    ],
)
def test_bad_labels(variables: dict[str, Any], tmp_path: Path, kind: str, message: str) -> None:
    savemat(tmp_path / "j.mat", _broken(kind, variables), do_compression=True)
    with pytest.raises(DataError, match=message) as caught:
        nyu.read_labels(tmp_path / "j.mat")
    assert "j.mat" in str(caught.value)


def test_not_a_matlab_file(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "j.mat").write_bytes(b"x" * 500)
    with pytest.raises(DataError, match=r"j\.mat: not a MATLAB 5 file"):
        nyu.read_labels(tmp_path / "j.mat")
    (tmp_path / "j.mat").write_bytes(b"MATLAB 7.3 MAT-file, HDF5 schema".ljust(512))
    with pytest.raises(DataError, match=r"a MATLAB 7\.3 \(HDF5\) file.*save it again with -v7"):
        nyu.read_labels(tmp_path / "j.mat")
    content = (tree / "test" / "joint_data.mat").read_bytes()
    (tmp_path / "j.mat").write_bytes(content[:-500])
    with pytest.raises(
        DataError, match=r"damaged MATLAB file \(an element of \d+ bytes where \d+ are left\).*unpack it again"
    ):
        nyu.read_labels(tmp_path / "j.mat")
    savemat(tmp_path / "j.mat", {"a": 1})
    with pytest.raises(DataError, match="no variable joint_xyz; it has a"):
        nyu.read_labels(tmp_path / "j.mat")


def test_damaged_content(tree: Path, tmp_path: Path) -> None:
    content = bytearray((tree / "test" / "joint_data.mat").read_bytes())
    for at in range(3000, 3400, 7):  # inside joint_uvd
        content[at] ^= 0x55
    (tmp_path / "j.mat").write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"damaged MATLAB file|cannot be read|pixels apart"):
        nyu.read_labels(tmp_path / "j.mat")


def test_bomb(tmp_path: Path) -> None:
    zeros = np.zeros((3, 20_000, 36, 3))  # 52 MB each
    savemat(tmp_path / "j.mat", {"joint_xyz": zeros, "joint_uvd": zeros}, do_compression=True)
    assert (tmp_path / "j.mat").stat().st_size < 1_000_000
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(DataError, match=r"joint_xyz claims the shape \(3, 20000, 36, 3\) and 51840000 bytes"):
            nyu.read_labels(tmp_path / "j.mat")
        assert tracemalloc.get_traced_memory()[1] < 10e6
        assert time.process_time() - start < 1
    finally:
        tracemalloc.stop()


@settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 20_000), junk=st.binary(min_size=1, max_size=16), cut=st.integers(0, 40_000))
def test_arbitrary_damage(tree: Path, tmp_path: Path, at: int, junk: bytes, cut: int) -> None:
    content = (tree / "test" / "joint_data.mat").read_bytes()
    (tmp_path / "j.mat").write_bytes((content[:at] + junk + content[at + len(junk) :])[:cut])
    with contextlib.suppress(DataError):  # anything else fails the test
        assert nyu.read_labels(tmp_path / "j.mat").xyz_mm.shape[2:] == (36, 3)


def _prepare(tree: Path, out: Path, **options: Any) -> None:
    nyu.prepare(tree, out, ["test"], **{"jobs": 1, "progress": False} | options)


def test_store_has_the_same_pixels(tree: Path, tmp_path: Path) -> None:
    _prepare(tree, tmp_path)
    plain = nyu.open(tree, "test", cameras=(1, 2, 3))
    stored = nyu.open(None, "test", cameras=(1, 2, 3), store=tmp_path)
    assert f"from the store {tmp_path / 'test'}" in stored.summary()
    assert stored.names() == plain.names()
    assert np.array_equal(stored.joints_mm, plain.joints_mm)
    for index in range(FRAMES):
        for a, b in zip(plain.views(index), stored.views(index), strict=True):
            assert b.depth_mm is not None
            (left, top), (height, width) = b.crop_xy, b.depth_mm.shape
            full = a.full_depth_mm()
            assert np.array_equal(full[top : top + height, left : left + width], b.depth_mm)
            assert width * height < 0.6 * full.size
            full[top : top + height, left : left + width] = nyu.FAR_MM
            assert (full == nyu.FAR_MM).all()  # nothing of the hand was cut off
            assert np.array_equal(a.keypoints_2d, b.keypoints_2d)
    assert np.array_equal(nyu.open(None, "test", cameras=(3,), store=tmp_path)[1].depth_mm, stored.views(1)[2].depth_mm)
    assert stored.store is not None
    assert stored.store._depth is not None
    assert len(pickle.dumps(stored.store)) < 100_000  # the file is not in it
    with get_context("spawn").Pool(1) as pool:
        sums = pool.map(_depth_sum, [(stored, i) for i in range(FRAMES)])
    assert sums == [_depth_sum((stored, i)) for i in range(FRAMES)]


def _depth_sum(job: tuple[nyu.NyuDataset, int]) -> float:
    return float(np.sum(job[0][job[1]].depth_mm))


def test_crop_rectangles_hold_the_cube() -> None:
    rng = np.random.default_rng(0)
    centers = np.stack([rng.uniform(-250, 250, 300), rng.uniform(-150, 150, 300), rng.uniform(500, 1200, 300)], 1)
    boxes = nyu.crop_rectangles(centers, 300)
    points = centers[:, None] + rng.uniform(-150, 150, (300, 200, 3))
    uv = np.rint(camera.project(points, nyu.K))
    inside = ((uv >= 0) & (uv < nyu.SIZE)).all(-1)
    held = ((uv >= boxes[:, None, :2]) & (uv < boxes[:, None, :2] + boxes[:, None, 2:])).all(-1)
    assert held[inside].all()
    assert ((boxes[:, :2] >= 0) & (boxes[:, :2] + boxes[:, 2:] <= nyu.SIZE)).all()
    assert nyu.crop_rectangles(np.array([[0, 0, -500], [9000, 0, 700], [0, 9000, 700.0]]), 300)[:, 2:].max() == 0


def test_interrupted_preparation_continues(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _prepare(tree, tmp_path / "whole")
    monkeypatch.setattr(nyu, "_SHARD", 2)
    real, calls = nyu._write_shard, []

    def dies(task: Any) -> int:
        calls.append(task[3].tolist())
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(task)

    monkeypatch.setattr(nyu, "_write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        _prepare(tree, tmp_path / "part")
    with pytest.raises(MissingFileError, match=r"manifest\.json: missing from the store, or the store is not finished"):
        nyu.open(None, "test", store=tmp_path / "part")
    _prepare(tree, tmp_path / "part")
    assert calls == [[0, 1], [2, 3], [4, 5], [4, 5], [6, 7], [8]]  # what was done is not done again
    for name in ("depth.u16", "status.u8", "index.npy", "xyz_mm.npy", "uvd.npy", "manifest.json"):
        assert (tmp_path / "part/test" / name).read_bytes() == (tmp_path / "whole/test" / name).read_bytes()
    _prepare(tree, tmp_path / "part")
    assert len(calls) == 6  # nothing left to do


def test_two_processes_write_the_same_bytes(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nyu, "_SHARD", 2)
    _prepare(tree, tmp_path / "one")
    _prepare(tree, tmp_path / "two", jobs=2)
    for name in ("depth.u16", "status.u8"):
        assert (tmp_path / "two/test" / name).read_bytes() == (tmp_path / "one/test" / name).read_bytes()


def test_missing_damaged_and_absent_hands(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "tree"
    shutil.copytree(tree / "test", root / "test")
    (root / "test" / "depth_1_0000001.png").unlink()
    damaged = root / "test" / "depth_2_0000002.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:1000])
    labels = loadmat(root / "test" / "joint_data.mat")
    labels["joint_xyz"][2, 2] += [3000, 0, 0]  # out of camera 3's picture
    xyz = labels["joint_xyz"] * [1, -1, 1]
    savemat(
        root / "test/joint_data.mat", {"joint_xyz": labels["joint_xyz"], "joint_uvd": camera.xyz_to_uvd(xyz, nyu.K)}
    )
    _prepare(root, tmp_path / "store")
    error = capsys.readouterr().err
    assert "skipped: " in error
    assert "depth_2_0000002.png" in error
    assert "NYU test: 6 crops stored" in error
    assert "1 missing pictures, 1 damaged pictures, 1 hands outside the picture" in error
    manifest = json.loads((tmp_path / "store/test/manifest.json").read_text())
    assert list(manifest["skipped"].values()) == [1, 1, 1]
    for cam, left in ((1, [2, 3]), (2, [1, 3]), (3, [1, 2])):
        dataset = nyu.open(None, "test", cameras=(cam,), store=tmp_path / "store")
        assert dataset.numbers.tolist() == left
        assert len(dataset.skipped["frames that are not in the store"]) == 1
    damaged.write_bytes(whole)  # repaired: a rerun takes it in
    _prepare(root, tmp_path / "store")
    assert nyu.open(None, "test", cameras=(2,), store=tmp_path / "store").numbers.tolist() == [1, 2, 3]


def test_store_of_other_options(tree: Path, tmp_path: Path) -> None:
    _prepare(tree, tmp_path, cameras=(1,))
    with pytest.raises(DataError, match=r"holds a store of Plan\(.*asked for .*choose another --out"):
        _prepare(tree, tmp_path, cameras=(1,), cube_mm=250)
    with pytest.raises(DataError, match=r"the store has camera \(1,\), asked for \(1, 2\)"):
        nyu.open(None, "test", cameras=(1, 2), store=tmp_path)
    with pytest.raises(DataError, match="cube_mm: expected 50 to 2000, got 5"):
        _prepare(tree, tmp_path, cube_mm=5)
    with pytest.raises(
        MissingFileError, match=r"manifest\.json.*run or rerun: python -m shared\.datasets\.nyu prepare"
    ):
        nyu.open(None, "train", store=tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("manifest.json", b"{", "not a manifest of a store"),
        ("manifest.json", b"[" * 9000, "not a manifest of a store"),
        ("manifest.json", b"1" * 20_000, r"not a manifest of a store \(too large\)"),
        ("index.npy", b"", "damaged"),
        ("index.npy", b"\x93NUMPY", "damaged"),
        ("status.u8", b"\1", "damaged store"),
        ("depth.u16", b"", "damaged store"),
        ("xyz_mm.npy", None, r"expected float64 \(3, 3, 36, 3\), got int64"),
    ],
)
def test_damaged_store(tree: Path, tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    _prepare(tree, tmp_path, cameras=(1,))
    folder = tmp_path / "test"
    (folder / file).write_bytes((folder / "index.npy").read_bytes() if content is None else content)
    with pytest.raises(DataError, match=message):
        nyu.open(None, "test", store=tmp_path)
    if file in ("status.u8", "depth.u16"):
        with pytest.raises(DataError, match="another size than planned"):
            _prepare(tree, tmp_path, cameras=(1,))


def test_store_of_another_version_or_an_index_that_leaves_the_file(tree: Path, tmp_path: Path) -> None:
    _prepare(tree, tmp_path, cameras=(1,))
    manifest = tmp_path / "test" / "manifest.json"
    good = manifest.read_text()
    for old, new, message in (
        ('"version": 1', '"version": 2', "store version 2, this program reads 1"),
        ('"frames": 3', '"frames": 0', "absurd counts"),
        ('"frames": 3', '"frames": 4', r"expected int64 \(4, 5\)"),
    ):
        manifest.write_text(good.replace(old, new))
        with pytest.raises(DataError, match=message):
            nyu.open(None, "test", store=tmp_path)
    manifest.write_text(good)
    index = np.load(tmp_path / "test" / "index.npy")
    for row in ([0, 0, 0, 10**6, 10**6], [-5, 0, 0, 1, 1]):
        np.save(tmp_path / "test" / "index.npy", np.array([row, *index[1:]]))
        with pytest.raises(DataError, match="damaged store"):
            nyu.open(None, "test", store=tmp_path)


def test_command_line(tree: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shared.datasets.nyu", "prepare", "--out", str(tmp_path / "store"), "--jobs", "1"]
    done = subprocess.run([*command, "--root", str(tree)], capture_output=True, text=True, check=True)
    assert "NYU train: 9 crops stored" in done.stderr
    assert "NYU test" in done.stderr
    assert "crop/s" in done.stderr  # the bar
    assert len(nyu.open(None, "train", store=tmp_path / "store")) == FRAMES
    failed = subprocess.run([*command, "--root", str(tmp_path)], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert "no folder of NYU" in failed.stderr
    assert failed.stderr.count("\n") == 1
