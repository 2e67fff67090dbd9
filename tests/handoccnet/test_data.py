"""Boxes, crops, targets and data sets against the author's code, and the rules behind them."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from handoccnet import data
from handoccnet.affine import (
    apply_affine,
    bbox_of_points,
    check_bbox,
    crop_affine,
    square_bbox,
    warp,
)
from handoccnet.config import AugmentOptions, DataOptions
from handoccnet.data import Augmentation, HandSamples, cut, draw_augmentation, load_labels, to_camera
from shared.errors import DataError
from shared.mano import ManoLayer, ManoModel, load_mano, mirror_model
from shared.metrics import handoccnet_errors
from shared.standin.dexycb import write_dexycb
from shared.standin.ho3d import write_ho3d
from shared.training import sample_rng

SIZE = (640, 480)


def picture(seed: int) -> NDArray[np.uint8]:
    """The fixtures' synthetic picture (their README)."""
    y, x, c = np.ogrid[0:480, 0:640, 0:3]

    def wave(n: Any, p: int) -> Any:
        return np.abs(n % (2 * p) - p)

    values = wave(x + 7 * c + seed, 97) + wave(y + 11 * c + 2 * seed, 61) + wave(x + y + 3 * seed, 83)
    return np.asarray(values, np.uint8)


@pytest.fixture(scope="module")
def hand() -> ManoModel:
    return load_mano("standin")


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny trees of both sets in the official layouts."""
    root = tmp_path_factory.mktemp("sets")
    write_ho3d(root / "ho3d", frames=4, seed=3)
    write_dexycb(root / "dexycb", frames=24, seed=3)
    return root


# ------------------------------------------------------------------------------------------------ boxes and crops


def test_boxes_equal_the_originals(golden: Path) -> None:
    z = np.load(golden / "handoccnet/bbox_affine.npz")
    worst = 0.0
    for expected, expansion in zip(z["processed_f64"], (1.0, 1.25, 1.5), strict=True):
        ours = square_bbox(z["boxes"], SIZE, expansion)
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(expected))
        worst = max(worst, float(np.nanmax(np.abs(ours - expected))))
    for points, plain, masked in zip(z["joints"], z["joints_bbox15"], z["joints_bbox12_valid"], strict=True):
        worst = max(worst, float(np.abs(bbox_of_points(points, 1.5) - plain).max()))
        worst = max(worst, float(np.abs(bbox_of_points(points, 1.2, z["valid"]) - masked).max()))
    print(f"boxes: max diff {worst:.3g} px")
    assert worst < 1e-4


def test_affines_equal_the_originals(golden: Path) -> None:
    z = np.load(golden / "handoccnet/bbox_affine.npz")
    worst = 0.0
    for (cx, cy, w, h, scale, degrees), *expected in zip(
        z["affine_params"].astype(np.float64), z["affine"], z["affine_inv"], strict=True
    ):
        ours = crop_affine([cx - w / 2, cy - h / 2, w, h], scale=scale, angle_deg=degrees)
        for a, b in zip(ours, expected, strict=True):
            worst = max(worst, float(np.abs(a - b).max() / np.abs(b).max()))
    print(f"affines: max relative diff {worst:.3g}")
    assert worst < 1e-5


def test_crops_equal_the_originals(golden: Path) -> None:
    z = np.load(golden / "handoccnet/crops.npz")
    image = picture(int(z["seed"]))
    np.testing.assert_allclose(square_bbox(z["bbox"], SIZE, 1.25), z["processed_f64"], atol=1e-4)
    worst, mean = 0.0, 0.0
    for i, box in enumerate(z["processed_f64"]):
        augmentation = Augmentation(float(z["scale"][i]), float(z["rot"][i]))
        crop = cut(image, box, left=bool(z["flip"][i]), augmentation=augmentation)
        off = np.abs(crop.image.permute(1, 2, 0).numpy()[::2, ::2] * 255 - z["crop"][i] / 64)
        worst, mean = max(worst, float(off.max())), max(mean, float(off.mean()))
    colours = tuple(float(c) for c in z["colour"])
    assert len(colours) == 3
    augmented = cut(
        image, z["processed_f64"][2], augmentation=Augmentation(float(z["scale"][2]), float(z["rot"][2]), colours)
    )
    off = np.abs(augmented.image.permute(1, 2, 0).numpy()[::4, ::4] * 255 - z["augmented"] / 64)
    print(f"crops: max diff {max(worst, off.max()):.3g} grey levels, mean {mean:.3g}")
    assert max(worst, off.max()) < 0.05
    assert mean < 0.01


def test_clipped_rule_keeps_the_pixel_and_cuts() -> None:
    assert square_bbox([10, 20, 30, 30], SIZE, 1.0, rule="clipped").tolist() == [9.5, 19.5, 30, 30]
    assert square_bbox([10, 20, 30, 30], SIZE, 1.0).tolist() == [10, 20, 29, 29]
    shifted, cut_off = (square_bbox([-50, 10, 100, 10], SIZE, 1.0, rule=rule) for rule in ("reference", "clipped"))
    assert shifted[0] == 0
    assert shifted[2] == 99  # moved in whole
    assert cut_off[2] == 50  # the half that is in the picture
    assert cut_off[0] + cut_off[2] / 2 == 24.5
    assert np.isnan(square_bbox([700, 10, 50, 50], SIZE, 1.0, rule="clipped")).all()


def test_integer_boxes_are_not_cut_to_integers() -> None:
    assert square_bbox([300, 330, 90, 50], SIZE, 1.25).tolist() == [288.875, 298.875, 111.25, 111.25]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([1, 2, 3], "four finite numbers"),
        ([1, 2, np.nan, 4], "four finite numbers"),
        ([10, 10, 0, 5], "no extent: width 0, height 5"),
        ([700, 10, 20, 20], "lies outside the picture of 640 x 480"),
        ([-30, 10, 20, 20], "lies outside the picture"),
        ([10, 480, 20, 20], "lies outside the picture"),
    ],
)
def test_boxes_that_cannot_be_used(box: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        check_bbox(box, SIZE, name="frame 7")
    assert "frame 7" in str(error.value)
    assert check_bbox([-10, -10, 20, 20], SIZE, name="x").tolist() == [-10, -10, 20, 20]


def test_box_of_points_refuses_nothing_and_nan() -> None:
    with pytest.raises(DataError, match="finite points"):
        bbox_of_points([[np.nan, 1.0]], 1.5)
    with pytest.raises(DataError, match="got 0 valid ones"):
        bbox_of_points([[0.0, 1.0]], 1.5, [0])


def test_warp_reads_only_a_part_but_gives_the_same() -> None:
    rgb = picture(1)
    A, back = crop_affine([600, 440, 80, 80], scale=1.2, angle_deg=33)  # across the corner of the picture
    whole = warp(np.pad(rgb, ((0, 400), (0, 400), (0, 0))), A)
    assert torch.equal(warp(rgb, A) == 0, whole == 0)
    np.testing.assert_allclose(warp(rgb, A).numpy(), whole.numpy(), atol=0.02)
    assert warp(rgb, crop_affine([2000, 2000, 50, 50])[0]).abs().max() == 0
    np.testing.assert_allclose(apply_affine(back, apply_affine(A, [[3.0, 4.0]])), [[3.0, 4.0]], atol=1e-3)


def test_identity_crop_is_the_picture() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (256, 256, 3)).astype(np.uint8)
    identity = np.array([[1, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(warp(rgb, identity).permute(1, 2, 0).numpy(), rgb, atol=2e-3)


# ------------------------------------------------------------------------------------------------ data sets


def golden_tree(golden: Path, root: Path) -> tuple[Path, Path]:
    """The fixtures' mini sets on disk: (root, annotations)."""
    seeds = np.load(golden / "handoccnet/datasets.npz")["image_seeds"].tolist()
    files = ("HO3D_train_data", "HO3D_evaluation_data", "DEX_YCB_s0_train_data", "DEX_YCB_s0_test_data")
    folders = ("train", "evaluation", "", "")
    for file, folder, seed in zip(files, folders, seeds, strict=True):
        source = golden / f"handoccnet/{file}.json"
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        shutil.copy(source, root / "annotations" / source.name)
        for i, record in enumerate(json.loads(source.read_text())["images"]):
            target = root / folder / record["file_name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(seed + i)).save(target)
    return root, root / "annotations"


@pytest.fixture(scope="module")
def mini(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return golden_tree(golden, tmp_path_factory.mktemp("mini"))


@pytest.mark.parametrize(
    ("key", "dataset", "split"),
    [
        ("ho3d_train", "ho3d", "train"),
        ("ho3d_eval", "ho3d", "test"),
        ("dex_train", "dexycb", "train"),
        ("dex_test", "dexycb", "test"),
    ],
)
def test_samples_equal_the_originals(
    golden: Path, mini: tuple[Path, Path], hand: ManoModel, key: str, dataset: Any, split: Any
) -> None:
    root, annotations = mini
    z = np.load(golden / "handoccnet/datasets.npz")
    options = DataOptions(dataset=dataset, root=str(root), annotations=str(annotations), mano="standin")
    labels = load_labels(options, split, hand)
    samples = HandSamples(labels, augment=AugmentOptions())
    worst: dict[str, float] = {"bbox": 0.0, "img": 0.0}
    for i in range(3):
        augmentation = None
        if split == "train":
            colour = tuple(float(c) for c in z["aug_colour"][i])
            assert len(colour) == 3
            augmentation = Augmentation(float(z["aug_scale"][i]), float(z["aug_rot"][i]), colour)
        sample = samples.sample(i, augmentation)
        off = np.abs(sample["image"].numpy()[:, ::8, ::8] * 255 - z[f"{key}_img"][i] / 64)
        worst["img"] = max(worst["img"], float(off.max()))
        box = labels.bbox_xywh[i].copy()
        worst["bbox"] = max(worst["bbox"], float(np.abs(box - z[f"{key}_bbox"][i]).max()))
        pairs = {"root": ("root_mm", 1e-3)}
        if split == "train":
            pairs |= {
                "joints_img": ("joints_img", 1.0),
                "joints_coord_cam": ("joints_root_mm", 1e-3),
                "mano_pose": ("pose", 1.0),
                "mano_shape": ("betas", 1.0),
            }
        for name, (ours, unit) in pairs.items():
            difference = np.abs(sample[ours] * unit - z[f"{key}_{name}"][i]).max()
            worst[name] = max(worst.get(name, 0.0), float(difference))
    print(f"{key}: max diff " + ", ".join(f"{name} {value:.3g}" for name, value in worst.items()))
    limits = {"bbox": 1e-3, "img": 0.5, "root": 1e-6, "joints_img": 1e-5, "joints_coord_cam": 1e-6, "mano_pose": 1e-5}
    for name, value in worst.items():
        assert value < limits.get(name, 1e-6), name


def test_dexycb_errors_equal_the_originals(golden: Path, mini: tuple[Path, Path], hand: ManoModel) -> None:
    z = np.load(golden / "handoccnet/metrics.npz")
    options = DataOptions(dataset="dexycb", root=str(mini[0]), annotations=str(mini[1]), mano="standin")
    labels = load_labels(options, "test", hand)
    assert labels.left.any()
    assert not labels.left.all()
    pred_mm, _ = to_camera(z["dex_pred"] * 1000, np.zeros((3, 1, 3)), labels.root_mm, labels.left)
    root, aligned = handoccnet_errors(pred_mm, labels.joints_mm)
    worst = max(np.abs(root - z["dex_mpjpe_mm_f64"]).max(), np.abs(aligned - z["dex_pa_mpjpe_mm_f64"]).max())
    print(f"DexYCB errors: max diff {worst:.3g} mm")
    assert worst < 1e-3


def test_annotation_files_and_metas_give_the_same(official: Path, hand: ManoModel, tmp_path: Path) -> None:
    from handoccnet.prepare import prepare

    for dataset in ("ho3d", "dexycb"):
        options = DataOptions(dataset=dataset, root=str(official / dataset), mano="standin", missing="skip")
        prepare(options, tmp_path)
        splits: tuple[Any, ...] = ("train", "test")
        for split in splits:
            direct = load_labels(options, split, hand, mirror_model(hand))
            with_files = DataOptions(
                dataset=dataset, root=str(official / dataset), annotations=str(tmp_path), mano="standin"
            )
            annotated = load_labels(with_files, split, hand)
            assert annotated.names == [
                re.sub(r"/(\w+)$", r"/rgb/\1", n) if dataset == "ho3d" else re.sub(r"/(\d+)$", r"/color_\1", n)
                for n in direct.names
            ]
            for column in ("bbox_xywh", "pose", "betas", "root_mm", "left", "K"):
                np.testing.assert_allclose(getattr(annotated, column), getattr(direct, column), atol=1e-9)


def test_targets_agree_with_the_picture(official: Path, hand: ManoModel) -> None:
    """MANO of the labels, turned and mirrored like the crop, has the joints where the labels have them."""
    for dataset, tips in (("ho3d", "ho3d"), ("dexycb", "manopth")):
        options = DataOptions(dataset=dataset, root=str(official / dataset), mano="standin", missing="skip")  # type: ignore[arg-type]
        labels = load_labels(options, "train", hand, mirror_model(hand))
        layer = ManoLayer(hand, n_pca=None, flat_hand_mean=False, tips=tips, joint_order="thumb_first")
        samples = HandSamples(labels, augment=AugmentOptions(), seed=1)
        batch = HandSamples.collate([samples[(2, i)] for i in range(len(samples))])
        joints = layer(batch["pose"], batch["betas"]).joints
        off = joints - joints[:, :1] - batch["joints_root_mm"]
        off[batch["left"], 12] = 0  # left tip 445 mirrors no right one: the network's middle tip is 444
        print(f"{dataset}: MANO of the targets, max diff {off.abs().max():.3g} mm")
        assert off.abs().max() < 0.02
        assert (dataset == "ho3d") or bool(batch["left"].any())


def test_left_hands_are_mirrored_in_picture_and_labels(official: Path, hand: ManoModel) -> None:
    options = DataOptions(dataset="dexycb", root=str(official / "dexycb"), mano="standin", missing="skip")
    labels = load_labels(options, "train", hand, mirror_model(hand))
    i = int(labels.left.argmax())
    sample = HandSamples(labels).sample(i)
    rgb = np.ascontiguousarray(np.asarray(Image.open(labels.paths[i]).convert("RGB"))[:, ::-1])
    box = labels.bbox_xywh[i].copy()
    box[0] = 640 - 1 - box[0] - box[2]
    mirrored = cut(rgb, box)
    np.testing.assert_allclose(sample["image"].numpy(), mirrored.image.numpy(), atol=1e-4)
    back = apply_affine(sample["to_picture"], sample["joints_img"] * 256)
    np.testing.assert_allclose(back, labels.keypoints_2d[i], atol=1e-3)
    pred, _ = to_camera(sample["joints_root_mm"][None], np.zeros((1, 1, 3)), labels.root_mm[i : i + 1], [True])
    np.testing.assert_allclose(pred[0], labels.joints_mm[i], atol=1e-3)


def test_augmentation_follows_from_seed_epoch_and_index(official: Path, hand: ManoModel) -> None:
    options = DataOptions(root=str(official / "ho3d"), mano="standin")
    labels = load_labels(options, "train", hand)
    samples = HandSamples(labels, augment=AugmentOptions(), seed=7)
    again = pickle.loads(pickle.dumps(samples))  # what a loader's worker process gets
    assert torch.equal(samples[(3, 1)]["image"], again[(3, 1)]["image"])
    assert not torch.equal(samples[(3, 1)]["image"], samples[(4, 1)]["image"])
    assert torch.equal(samples[1]["image"], HandSamples(labels)[(3, 1)]["image"])
    drawn = [draw_augmentation(sample_rng(0, 0, i), AugmentOptions()) for i in range(2000)]
    scales, turns = np.array([a.scale for a in drawn]), np.array([a.rotate_deg for a in drawn])
    assert (scales.min(), scales.max()) == (0.75, 1.25)
    assert 55 < np.abs(turns).max() <= 60
    assert 0.37 < (turns == 0).mean() < 0.43
    colours = np.array([a.colour for a in drawn])
    assert 0.8 <= colours.min() < 0.81 < 1.19 < colours.max() <= 1.2


# ------------------------------------------------------------------------------------------------ what is refused


def options_of(root: Path, **changes: Any) -> DataOptions:
    return DataOptions(root=str(root), mano="standin", **changes)


def edit_annotation(source: Path, target: Path, change: Any) -> Path:
    content = json.loads(source.read_text())
    change(content["annotations"][0])
    target.mkdir(exist_ok=True)
    (target / source.name).write_text(json.dumps(content))
    return target


@pytest.mark.parametrize(
    ("file", "split", "change", "message"),
    [
        ("HO3D_train_data", "train", lambda a: a["mano_param"]["pose"].__setitem__(0, float("nan")), "mano_param.pose"),
        ("HO3D_train_data", "train", lambda a: a.pop("mano_param"), "21 joints and MANO parameters"),
        ("HO3D_train_data", "train", lambda a: a["joints_coord_cam"][3].__setitem__(2, -1.0), "behind the camera"),
        ("HO3D_evaluation_data", "test", lambda a: a.update(bbox=[900, 10, 20, 20]), "outside the picture"),
        ("HO3D_evaluation_data", "test", lambda a: a.update(bbox=[10, 10, 0, 20]), "no extent"),
        ("HO3D_evaluation_data", "test", lambda a: a.pop("bbox"), "needs a box, and this one has none"),
    ],
)
def test_broken_annotations(
    mini: tuple[Path, Path], hand: ManoModel, tmp_path: Path, file: str, split: Any, change: Any, message: str
) -> None:
    annotations = edit_annotation(mini[1] / f"{file}.json", tmp_path / "a", change)
    with pytest.raises(DataError, match=message):
        load_labels(options_of(mini[0], annotations=str(annotations)), split, hand)


def test_a_training_box_outside_the_picture_is_left_out_and_counted(
    mini: tuple[Path, Path], hand: ManoModel, tmp_path: Path
) -> None:
    def move(annotation: dict[str, Any]) -> None:
        for joint in annotation["joints_coord_cam"]:
            joint[0] += 5.0

    annotations = edit_annotation(mini[1] / "HO3D_train_data.json", tmp_path / "a", move)
    labels = load_labels(options_of(mini[0], annotations=str(annotations)), "train", hand)
    assert len(labels) == 2
    assert "1 left out because their box misses the picture" in labels.summary
    assert not labels.complete


def test_a_dexycb_test_frame_without_box_gets_the_whole_picture(
    mini: tuple[Path, Path], hand: ManoModel, tmp_path: Path
) -> None:
    def move(annotation: dict[str, Any]) -> None:
        annotation["joints_img"] = [[u + 5000, v] for u, v in annotation["joints_img"]]

    annotations = edit_annotation(mini[1] / "DEX_YCB_s0_test_data.json", tmp_path / "a", move)
    labels = load_labels(options_of(mini[0], dataset="dexycb", annotations=str(annotations)), "test", hand)
    assert len(labels) == 3
    assert labels.bbox_xywh[0].tolist() == [0, 0, 639, 479]


def test_listed_frames_that_are_absent(official: Path, hand: ManoModel, tmp_path: Path) -> None:
    root = tmp_path / "ho3d"
    shutil.copytree(official / "ho3d", root)
    first = (root / "evaluation.txt").read_text().split()[0]
    sequence, number = first.split("/")
    (root / "evaluation" / sequence / "rgb" / f"{number}.png").unlink()
    with pytest.raises(DataError, match=rf"1 of 2 frames of evaluation.txt are not there, the first is {sequence}"):
        load_labels(options_of(root), "test", hand)
    sequence, number = (root / "train.txt").read_text().split()[0].split("/")
    (root / "train" / sequence / "rgb" / f"{number}.png").unlink()
    with pytest.raises(DataError, match=rf"1 of 5 frames of train.txt are not there, the first is {sequence}"):
        load_labels(options_of(root), "train", hand)
    assert "1 missing on disk" in load_labels(options_of(root, missing="skip"), "train", hand).summary


def test_a_part_of_a_test_split_has_to_be_asked_for(official: Path, hand: ManoModel) -> None:
    with pytest.raises(DataError, match="frames or folders of s0_test are not there"):
        load_labels(options_of(official / "dexycb", dataset="dexycb"), "test", hand, mirror_model(hand))
    part = load_labels(
        options_of(official / "dexycb", dataset="dexycb", missing="skip"), "test", hand, mirror_model(hand)
    )
    assert not part.complete


def test_one_side_is_a_part(official: Path, hand: ManoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = data.dexycb.DexYCB.__init__

    def nothing_missing(self: Any, *args: Any) -> None:
        whole(self, *args)
        self.missing = 0

    monkeypatch.setattr(data.dexycb.DexYCB, "__init__", nothing_missing)
    for sides, complete in (("both", True), ("right", False)):
        options = options_of(official / "dexycb", dataset="dexycb", sides=sides, missing="skip")
        assert load_labels(options, "train", hand, mirror_model(hand)).complete is complete


def test_an_evaluation_frame_without_label_is_not_left_out(official: Path, hand: ManoModel, tmp_path: Path) -> None:
    root = tmp_path / "ho3d"
    shutil.copytree(official / "ho3d", root)
    sequence, number = (root / "evaluation.txt").read_text().split()[0].split("/")
    path = root / "evaluation" / sequence / "meta" / f"{number}.pkl"
    meta = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps({**meta, "handJoints3D": None}, 2).replace(b"cnumpy._core.", b"cnumpy.core."))
    with pytest.raises(DataError, match="1 of 2 evaluation frames have no label"):
        load_labels(options_of(root), "test", hand)


def test_an_unreadable_picture_is_named(official: Path, hand: ManoModel, tmp_path: Path) -> None:
    root = tmp_path / "ho3d"
    shutil.copytree(official / "ho3d", root)
    labels = load_labels(options_of(root), "test", hand)
    Path(labels.paths[0]).write_bytes(Path(labels.paths[0]).read_bytes()[:2000])
    with pytest.raises(DataError, match=re.escape(labels.paths[0])):
        HandSamples(labels)[0]


def test_missing_options(official: Path, hand: ManoModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--data\.root is empty"):
        load_labels(DataOptions(mano="standin"), "train", hand)
    with pytest.raises(DataError, match=r"mano.is.tue.mpg.de.*--data.mano standin"):
        data.open_mano(DataOptions())
    with pytest.raises(DataError, match=r"handoccnet.prepare"):
        load_labels(options_of(official / "ho3d", annotations=str(tmp_path)), "train", hand)
    with pytest.raises(DataError, match=r"--data.mano_left MANO_LEFT.pkl"):
        load_labels(options_of(official / "dexycb", dataset="dexycb"), "train", hand)
    rights = load_labels(
        options_of(official / "dexycb", dataset="dexycb", sides="right", missing="skip"), "train", hand
    )
    assert not rights.left.any()
    left = data.open_mano(options_of(official))[1]
    assert left is not None
    assert left.side == "left"


def test_limits_and_validation_split(official: Path, hand: ManoModel) -> None:
    whole = load_labels(options_of(official / "ho3d"), "train", hand)
    some = load_labels(options_of(official / "ho3d", train_limit=2), "train", hand)
    assert some.names == [whole.names[0], whole.names[-1]]
    assert some.summary.startswith("2 frames of:")
    assert whole.complete
    assert not some.complete
    val = load_labels(
        options_of(official / "dexycb", dataset="dexycb", dexycb_split="val", missing="skip"),
        "test",
        hand,
        mirror_model(hand),
    )
    test = load_labels(
        options_of(official / "dexycb", dataset="dexycb", missing="skip"), "test", hand, mirror_model(hand)
    )
    assert {n.split("/")[0] for n in val.names} == {"20200709-subject-01"}
    assert {n.split("/")[0] for n in test.names} == {"20200820-subject-03"}


def test_the_index_of_unlabelled_frames_is_kept_where_asked_for(
    official: Path, hand: ManoModel, tmp_path: Path
) -> None:
    plain = load_labels(options_of(official / "ho3d"), "train", hand)
    indexed = load_labels(options_of(official / "ho3d", index=str(tmp_path)), "train", hand)
    assert (tmp_path / "ho3d_train.json").is_file()
    assert indexed.names == plain.names


def test_the_box_rule_is_an_option(official: Path, hand: ManoModel) -> None:
    reference, clipped = (
        load_labels(options_of(official / "ho3d", box_rule=rule), "train", hand).bbox_xywh
        for rule in ("reference", "clipped")
    )
    np.testing.assert_allclose(clipped[:, 2] - reference[:, 2], 1.0, atol=1e-6)  # the pixel that the reference loses
