"""Centres: centre of mass, detection, crops, the network, its training and the files it writes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.datasets import msra
from shared.datasets.centers import read_centers
from shared.errors import DataError, MissingFileError
from tests.shared.test_msra import bin_bytes, label_text
from v2v_posenet import centers, make_centers, train_center
from v2v_posenet.center_net import (
    CenterNet,
    CenterRefiner,
    center_loss,
    learning_rate,
    load_center_checkpoint,
    save_center_checkpoint,
)
from v2v_posenet.make_centers import FoldData, MakeCenters
from v2v_posenet.train_center import CenterData, TrainCenter

K = msra.K


def render_spheres(points_mm: np.ndarray, radii_mm: np.ndarray, size: tuple[int, int] = (320, 240)) -> np.ndarray:
    """(H, W) float32 depth of spheres, OpenCV axes; 0 where none is hit. Exact ray-sphere intersection."""
    v, u = np.mgrid[: size[1], : size[0]]
    ray = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones(u.shape)], -1)
    a = (ray * ray).sum(-1)
    depth = np.full(u.shape, np.inf)
    for point, radius in zip(points_mm, radii_mm, strict=True):
        b = ray @ point
        under = b * b - a * (point @ point - radius**2)
        hit = under > 0
        depth[hit] = np.minimum(depth[hit], (b[hit] - np.sqrt(under[hit])) / a[hit])
    return np.where(np.isfinite(depth), depth, 0).astype(np.float32)


def blob_hand(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A hand of spheres: (21, 3) joints in the order msra, and the spheres (S, 3) with radii, OpenCV axes, mm."""
    fingers = np.array([[-24, -45, 0], [-8, -50, 0], [8, -48, 0], [24, -42, 0], [-38, -10, -8.0]])
    along = np.array([[0, -1, 0]] * 4 + [[-0.8, -0.6, 0]], float)
    joints = [np.array([0.0, 45, 0])]
    for base, direction in zip(fingers, along, strict=True):
        curl = rng.uniform(0, 1.2)
        steps = [direction * np.cos(k * curl) - np.array([0, 0, 1]) * np.sin(k * curl) for k in (1, 1.5, 2)]
        joints += [base, *(base + np.cumsum(steps, 0) * 24)]
    chain = np.stack(joints)
    chain = np.concatenate([chain[:1], chain[1:]])
    between = (chain[1:].reshape(5, 4, 3)[:, 1:] + chain[1:].reshape(5, 4, 3)[:, :-1]).reshape(-1, 3) / 2
    palm = np.array([[x, y, 0] for x in (-20, 0, 20) for y in (-30, -5, 20)], float)
    spheres = np.concatenate([chain, between, palm])
    radii = np.concatenate([np.full(len(chain), 9.0), np.full(len(between), 9.0), np.full(len(palm), 17.0)])
    angle = rng.uniform(-0.5, 0.5)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    place = np.array([rng.uniform(-60, 60), rng.uniform(-30, 30), rng.uniform(300, 450)])
    return chain @ turn.T + place, spheres @ turn.T + place, radii


def blob_tree(root: Path, subjects: tuple[int, ...] = (0, 1, 3), frames: int = 16, empty: int = 0) -> Path:
    """An MSRA folder of blob hands; the last ``empty`` frames of every person show nothing."""
    for s in subjects:
        folder = root / f"P{s}" / "1"
        folder.mkdir(parents=True)
        labels = []
        for i in range(frames):
            joints, spheres, radii = blob_hand(np.random.default_rng((s, i)))
            depth = render_spheres(spheres, radii) * (i < frames - empty)
            rows, columns = np.nonzero(depth if depth.any() else depth == 0)
            left, top = columns.min(), rows.min()
            crop = depth[top : rows.max() + 1, left : columns.max() + 1]
            (folder / f"{i:06d}_depth.bin").write_bytes(bin_bytes(crop, left, top))
            labels.append(joints * [1, -1, -1])
        (folder / "joint.txt").write_text(label_text(np.stack(labels)))
    return root


# --- geometry ---


def test_mass_center_of_a_plate_is_its_middle() -> None:
    depth = np.zeros((30, 40), np.float32)
    depth[10:21, 5:16] = 300
    point = centers.mass_center(depth, K, (100, 50), iterations=2)
    np.testing.assert_allclose(point, [(110 - 160) * 300 / 241.42, (65 - 120) * 300 / 241.42, 300])
    np.testing.assert_allclose(centers.project(point, K), [110, 65])


def test_mass_center_drops_what_is_outside_the_cube() -> None:
    depth = np.zeros((60, 90), np.float32)
    depth[10:40, 10:40] = 300
    depth[10:20, 75:90] = 900  # far behind and aside
    alone = depth * (depth < 500)
    for cube, same in ((250.0, True), (5000.0, False)):
        point = centers.mass_center(depth, K, (100, 80), cube_mm=cube, iterations=4)
        wanted = centers.mass_center(alone, K, (100, 80), cube_mm=cube, iterations=4)
        assert np.allclose(point, wanted) == same
    assert not np.allclose(centers.mass_center(depth, K, (100, 80), iterations=0), wanted)


def test_no_hand_is_none() -> None:
    depth = np.zeros((240, 320), np.float32)
    assert centers.mass_center(depth, K) is None
    assert centers.detect_hand(depth, K) is None
    depth[:7, :7] = 300
    assert centers.mass_center(depth, K) is None  # 49 of 50 pixels
    assert centers.mass_center(depth, K, min_pixels=49) is not None
    depth[:] = 1501
    assert centers.mass_center(depth, K) is None
    assert centers.mass_center(depth, K, far_mm=2000) is not None
    assert centers.mass_center(np.zeros((0, 0), np.float32), K) is None
    depth[:] = 300
    assert centers.mass_center(depth, K, start_mm=(0, 0, 900)) is None  # nothing in that cube


def test_detection_finds_the_hand_before_a_body_and_a_wall() -> None:
    joints, spheres, radii = blob_hand(np.random.default_rng(1))
    hand = render_spheres(spheres, radii)
    depth = np.full((240, 320), 1400, np.float32)
    depth[60:, 90:260] = 900
    depth[hand > 0] = hand[hand > 0]
    depth[3:8, 3:8] = 200  # a speck nearer than the hand, too small to be one
    found = centers.detect_hand(depth, K)
    assert found is not None
    np.testing.assert_allclose(found, centers.mass_center(hand, K, iterations=5), atol=3)
    assert np.linalg.norm(found - joints.mean(0)) < 40
    shifted = centers.detect_hand(depth[20:, 30:], K, (30, 20))
    np.testing.assert_allclose(shifted, found, atol=1)
    speck = centers.detect_hand(depth, K, min_region=10, iterations=0)
    assert speck is not None
    assert speck[2] == pytest.approx(200)


def test_cube_box_is_the_projected_cube() -> None:
    left, top, right, bottom = centers.cube_box((0, 0, 241.42), 100, K)
    assert (left, top, right, bottom) == (110, 70, 210, 170)
    with pytest.raises(DataError, match=r"z > 0 mm\), got z = -5"):
        centers.cube_box((0, 0, -5), 100, K)


def test_crop_patch_values_and_placement() -> None:
    depth = np.zeros((240, 320), np.float32)
    depth[70:170, 110:210] = 241.42  # fills the cube's outline exactly
    depth[70:120, 110:160] = 241.42 - 80  # nearer than the cube: left upper quarter
    depth[120:170, 160:210] = 241.42 + 25  # half way to the far side: right lower quarter
    depth[120:170, 110:160] = 900  # behind the cube: left lower quarter
    patch = centers.crop_patch(depth, K, (0, 0), (0, 0, 241.42), 100)
    assert patch.dtype == np.float32
    for rows, columns, value in ((0, 0, -1), (0, 64, 0), (64, 64, 0.5), (64, 0, 1)):
        np.testing.assert_allclose(patch[rows : rows + 64, columns : columns + 64], value, atol=1e-6)
    outside = centers.crop_patch(depth, K, (0, 0), (160, 0, 241.42), 100)
    assert (outside[:, 64:] == 1).all()  # beyond the image's right edge: background
    part = centers.crop_patch(depth[70:, 110:], K, (110, 70), (0, 0, 241.42), 100)
    np.testing.assert_array_equal(part, patch)


def test_crop_patch_keeps_the_aspect_of_unequal_focal_lengths() -> None:
    wide = K * [[2], [1], [1]]
    depth = np.full((240, 640), 241.42, np.float32)
    patch = centers.crop_patch(depth, wide, (0, 0), (0, 0, 241.42), 100)
    assert (patch == 0).all()  # 200 x 100 pixels: rows beyond the cube's outline are image, not padding
    depth[:100] = 0
    assert (centers.crop_patch(depth, wide, (0, 0), (0, 0, 241.42), 100) == 1).any(1).sum() == 64 - 13


@pytest.mark.parametrize("angle", [0.0, 0.7, 3.0])
def test_rotation_of_patch_and_point_agree(angle: float) -> None:
    """A small ball seen in the turned patch lies where rotate_about sends its centre."""
    center, ball = np.array([10.0, -20, 350]), np.array([40.0, -5, 350])
    depth = render_spheres(ball[None], np.array([6.0]))
    patch = centers.crop_patch(depth, K, (0, 0), center, 200, angle_rad=angle)
    rows, columns = np.nonzero(patch < 1)
    moved = centers.rotate_about(ball, center, K, angle)
    assert moved[2] == ball[2]
    offset = (centers.project(moved, K) - centers.project(center, K)) / (200 * 241.42 / 350) * 128
    np.testing.assert_allclose([columns.mean() - 63.5, rows.mean() - 63.5], offset, atol=1.0)
    if angle == 0:
        np.testing.assert_allclose(moved, ball)


def test_tracking_starts_at_the_mean_of_the_last_joints() -> None:
    np.testing.assert_array_equal(centers.track_center([[0, 0, 300], [2, 4, 320]]), [1, 2, 310])
    for bad in ([1, 2, 3], [[1, 2]], [[0, 0, np.nan]]):
        with pytest.raises(DataError, match="tracking needs finite joints"):
            centers.track_center(bad)


# --- network ---


def test_network_has_the_described_sizes() -> None:
    model = CenterNet()
    with torch.no_grad():
        x = torch.zeros(2, 1, 128, 128)
        sizes = [model.branches[0](x).shape[1], model.branches[1](x[..., :64, :64]).shape[1]]
        sizes.append(model.branches[2](x[..., :32, :32]).shape[1])
        assert model(x).shape == (2, 3)
    assert sizes == [8 * 11 * 11, 8 * 11 * 11, 8 * 8 * 8]
    assert sum(sizes) == 2448
    assert model.head[0].weight.shape == (1024, 2448)
    with pytest.raises(ValueError, match="1, 128, 128"):
        model(torch.zeros(1, 1, 64, 64))


def test_network_branches_see_the_middle() -> None:
    model = CenterNet(2, 8)
    x = torch.randn(1, 1, 128, 128)
    edge = x.clone()
    edge[..., :40, :] = 0  # outside the central 32, inside the central 64
    seen = []
    hooks = [b.register_forward_hook(lambda _m, i, _o: seen.append(i[0])) for b in model.branches]
    model(x), model(edge)
    for hook in hooks:
        hook.remove()
    assert [tuple(s.shape[-2:]) for s in seen[:3]] == [(128, 128), (64, 64), (32, 32)]
    assert not torch.equal(seen[1], seen[4])
    assert torch.equal(seen[2], seen[5])


def test_loss_and_schedule() -> None:
    model = CenterNet(1, 2)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(0.5)
    weights = sum(p.numel() for name, p in model.named_parameters() if name.endswith("weight"))
    pred, gt = torch.tensor([[1.0, 2, 3], [0, 0, 0]]), torch.zeros(2, 3)
    torch.testing.assert_close(center_loss(model, pred, gt).item(), 14 / 2 + 1e-4 * 0.25 * weights)
    torch.testing.assert_close(center_loss(model, pred, gt, 0.0).item(), 7.0)
    assert learning_rate(0) == pytest.approx(5e-5)
    assert learning_rate(1) == pytest.approx(5e-4 * np.exp(-0.04))
    assert learning_rate(10, 1.0) == pytest.approx(np.exp(-0.4))


class Shift(torch.nn.Module):
    """Stands for a trained network: half a cube edge to the right, whatever it sees."""

    config = {"filters": 1, "hidden": 2}

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 0, 0]))

    def forward(self, patch: torch.Tensor) -> torch.Tensor:
        return self.weight.expand(len(patch), 3)


def test_refiner_adds_half_cube_edges() -> None:
    refiner = CenterRefiner(Shift(), 200.0, "mean", "msra", 3, 50, 1)  # type: ignore[arg-type]
    depth = np.full((240, 320), 400, np.float32)
    np.testing.assert_allclose(refiner(depth, K, (0, 0), (5, 6, 400)), [105, 6, 400])
    np.testing.assert_allclose(refiner(depth, K, (0, 0), (5, 6, 400), iterations=2), [205, 6, 400])
    both = refiner.refine(np.zeros((2, 128, 128)), [[0, 0, 300], [1, 1, 400]])
    np.testing.assert_allclose(both, [[100, 0, 300], [101, 1, 400]])


# --- training and files ---


def tiny_options(root: Path, out: Path, **changes: object) -> TrainCenter:
    options = TrainCenter(CenterData(str(root)), str(out), filters=4, hidden=64, lr=2e-3, device="cpu", batch_size=16)
    return replace(options, **changes)  # type: ignore[arg-type]


def test_samples_point_from_start_to_truth(tmp_path: Path) -> None:
    root = blob_tree(tmp_path, frames=3, empty=1)
    samples = train_center.make_samples(tiny_options(root, tmp_path), "train", progress=False)
    assert len(samples) == 2 * 4  # two people, two frames with a hand, twice
    kinds = set()
    for epoch in range(8):
        samples.epoch = epoch
        for index in range(len(samples)):
            patch, offset = samples[index]
            again = samples[index]
            assert patch.shape == (1, 128, 128)
            np.testing.assert_array_equal(patch, again[0])
            row = index // 2
            start = (samples.rough_mm if index % 2 else samples.truth_mm)[row]
            plain = (samples.truth_mm[row] - start) / 100
            if np.allclose(offset, plain, atol=1e-6):
                kinds.add("none")
            elif np.isclose(offset[2], plain[2], atol=1e-6):
                kinds.add("turn")
            else:
                kinds.add("shift")
                assert np.abs(offset - plain).max() < 0.3  # six standard deviations of 5 mm, in half cube edges
    assert kinds == {"none", "turn", "shift"}
    other = replace(samples, seed=1)
    assert any(not np.array_equal(samples[i][1], other[i][1]) for i in range(len(samples)))


def test_network_beats_the_center_of_mass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = blob_tree(tmp_path / "db", frames=40)
    result = train_center.train(tiny_options(root, tmp_path / "run", epochs=8), progress=False)
    with capsys.disabled():
        print(f"centre of mass {result['center_of_mass_mm']:.2f} mm, network {result['network_mm']:.2f} mm", end=" ")
    assert result["network_mm"] < 0.8 * result["center_of_mass_mm"]
    assert "distance to the true centre, P3" in capsys.readouterr().out

    checkpoint = str(tmp_path / "run/center_net.pt")
    options = MakeCenters(FoldData(str(root)), str(tmp_path / "net"), "network", checkpoint, device="cpu")
    make_centers.make_centers(options, progress=False)
    made = msra.open(root, "test", centers=tmp_path / "net")
    assert made.centers_mm is not None
    apart = np.linalg.norm(made.centers_mm - made.joints_mm.mean(1), axis=1).mean()
    assert apart == pytest.approx(result["network_mm"], abs=0.01)
    assert len(msra.open(root, "train", centers=tmp_path / "net")) == 80
    with pytest.raises(DataError, match=r"left out P3, so it has seen P1.*test_subject 1"):
        make_centers.make_centers(replace(options, data=FoldData(str(root), 1)), progress=False)
    twice = replace(options, out=str(tmp_path / "net2"), iterations=2)
    make_centers.make_centers(twice, progress=False)
    first, second = (
        read_centers(Path(f) / "center_test_3_refined.txt", y_up=True)[0] for f in (options.out, twice.out)
    )
    assert 0 < np.abs(first - second).max() < 60


def test_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    root = blob_tree(tmp_path / "db", frames=4)
    straight, stopped = tiny_options(root, tmp_path / "a", epochs=3), tiny_options(root, tmp_path / "b", epochs=1)
    train_center.train(straight, progress=False)
    train_center.train(stopped, progress=False)
    train_center.train(replace(stopped, epochs=3, resume=True), progress=False)
    a, b = (torch.load(tmp_path / d / "center_net.pt", weights_only=True)["state_dict"] for d in "ab")
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
    with pytest.raises(DataError, match=r"a checkpoint is here already.*--resume"):
        train_center.train(straight, progress=False)
    with pytest.raises(DataError, match=r"seed: 0 then, 1 now.*another --out"):
        train_center.train(replace(straight, seed=1, resume=True), progress=False)


@pytest.mark.parametrize("method", ["com", "gt-mean"])
def test_center_files_of_the_simple_methods(tmp_path: Path, method: str) -> None:
    root = blob_tree(tmp_path / "db", frames=3, empty=1)
    options = MakeCenters(FoldData(str(root)), str(tmp_path / "out"), method)  # type: ignore[arg-type]
    make_centers.make_centers(options, progress=False)
    data = msra.open(root, "test", centers=tmp_path / "out")
    assert len(data) == (2 if method == "com" else 3)
    if method == "com":
        assert (tmp_path / "out/center_test_3_refined.txt").read_text().endswith("\ninvalid invalid invalid\n")
        want = np.stack([train_center.rough_center(data[i]) for i in range(2)])
    else:
        want = data.joints_mm.mean(1)
    np.testing.assert_allclose(data.centers_mm, want, atol=1e-9)
    with pytest.raises(DataError, match=r"here already.*--overwrite"):
        make_centers.make_centers(options, progress=False)
    make_centers.make_centers(replace(options, overwrite=True), progress=False)


def test_wrong_options_and_checkpoints(tmp_path: Path) -> None:
    root = blob_tree(tmp_path / "db", frames=1, empty=1)
    out = str(tmp_path / "out")
    with pytest.raises(DataError, match="--method network needs --checkpoint"):
        make_centers.make_centers(MakeCenters(FoldData(str(root)), out, "network"))
    with pytest.raises(DataError, match="--method com takes no --checkpoint"):
        make_centers.make_centers(MakeCenters(FoldData(str(root)), out, "com", "x.pt"))
    with pytest.raises(DataError, match="no frame of the train split shows a hand"):
        train_center.train(tiny_options(root, tmp_path / "run"), progress=False)
    with pytest.raises(DataError, match="--batch_size must be above 0, got 0"):
        train_center.train(tiny_options(root, tmp_path / "run", batch_size=0), progress=False)
    if not torch.cuda.is_available():
        with pytest.raises(DataError, match="torch sees no CUDA device"):
            train_center.train(tiny_options(root, tmp_path / "run", device="cuda"), progress=False)
    path = tmp_path / "c.pt"
    with pytest.raises(MissingFileError, match=r"no such centre checkpoint.*train_center"):
        load_center_checkpoint(path)
    path.write_bytes(b"<html>not a checkpoint</html>")
    with pytest.raises(DataError, match="not a readable checkpoint"):
        load_center_checkpoint(path)
    torch.save({"format": "handpose/v2v_posenet"}, path)
    with pytest.raises(DataError, match="found handpose/v2v_posenet"):
        load_center_checkpoint(path)
    torch.save([1], path)
    with pytest.raises(DataError, match="found list"):
        load_center_checkpoint(path)
    save_center_checkpoint(path, CenterRefiner(CenterNet(1, 2), 200.0, "mean", "msra", 3, 50, 1))
    assert load_center_checkpoint(path)[0].model.config == {"filters": 1, "hidden": 2}
    content = torch.load(path, weights_only=True)
    torch.save(content | {"model": {"filters": 2, "hidden": 2}}, path)
    with pytest.raises(DataError, match="entries do not fit"):
        load_center_checkpoint(path)
    del content["cube_mm"]
    torch.save(content, path)
    with pytest.raises(DataError, match=r"entries do not fit.*cube_mm"):
        load_center_checkpoint(path)


def test_a_run_that_diverges_stops_and_says_so(tmp_path: Path) -> None:
    root = blob_tree(tmp_path / "db", frames=4)
    with pytest.raises(DataError, match=r"the loss is (nan|inf) in epoch \d.*lower --lr"):
        train_center.train(tiny_options(root, tmp_path / "run", epochs=3, lr=1e12, batch_size=4), progress=False)


def run(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, check=False)


def test_programs_from_the_command_line(tmp_path: Path) -> None:
    root = blob_tree(tmp_path / "db", frames=3)
    config = tmp_path / "c.yaml"
    config.write_text(f"data: {{root: {root}, test_subject: 3}}\nfilters: 1\nhidden: 4\nepochs: 1\ndevice: cpu\n")
    done = run("v2v_posenet.train_center", "--config", str(config), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "network" in done.stdout
    again = run("v2v_posenet.train_center", "--config", str(tmp_path / "run/center_options.yaml"))
    assert again.returncode == 2
    assert "a checkpoint is here already" in again.stderr
    words = ("--data.root", str(root), "--out", str(tmp_path / "c"), "--method", "network")
    done = run("v2v_posenet.make_centers", *words, "--checkpoint", str(tmp_path / "run/center_net.pt"))
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [
        f"center_{s}_3_refined.txt" for s in ("test", "train")
    ]
    wrong = run("v2v_posenet.make_centers", *words, "--methd", "com")
    assert wrong.returncode == 2
    assert "methd" in wrong.stderr


@pytest.mark.parametrize("program", ["train_center", "make_centers"])
def test_help_is_quick_and_gives_units(program: str) -> None:
    code = (
        f"import sys; from v2v_posenet.{program} import main\n"
        "try: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    assert "[mm]" in done.stdout
    assert "[pixels]" in done.stdout
