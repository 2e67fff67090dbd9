import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from shared import camera, metrics, report
from shared.errors import DataError

K = camera.intrinsics(240.99, 240.96, 160, 120)


def hands(n=12):
    rng = np.random.default_rng(0)
    gt = rng.normal(scale=30, size=(n, 16, 3)) + np.array([0, 0, 400])
    pred = gt + rng.normal(scale=1, size=gt.shape) * np.linspace(1, 12, n)[:, None, None]
    return gt, pred


class Page(HTMLParser):
    """Collects tags, attributes and the text of a page; complains about tags that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_holds_everything_and_needs_nothing(tmp_path):
    gt, pred = hands()
    asked = []

    def frames(index):
        asked.append(index)
        return np.full((240, 320), 500.0, np.float32), K

    path = report.write_report(
        tmp_path / "run" / "report.html",
        title="<script>alert(1)</script> & co",
        config={"data": {"root": '"><b>x'}, "lr": 2.5e-4},
        gt_mm=gt,
        pred_mm=pred,
        baseline_mm=gt.mean(0),
        skeleton="icvl",
        frames=frames,
        tables=[("Speed <i>", ["device", "ms"], [["cpu & co", 3.14159]])],
        notes=["first note", "a < b"],
    )
    text = path.read_text("utf-8")
    page = Page(text)
    assert page.tags.count("img") == 6
    assert not {"script", "b", "i", "link", "iframe"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href"):
            assert value.startswith("data:image/png;base64,")
            Image.open(io.BytesIO(base64.b64decode(value.partition(",")[2]))).verify()
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    e = metrics.joint_errors(pred, gt)
    for wanted in (
        "<script>alert(1)</script> & co",
        "12 frames, 16 joints",
        "first note",
        "a < b",
        'data.root"><b>x',
        "lr0.00025",
        "Speed <i>",
        "cpu & co3.14",
        f"prediction{metrics.mean_error(e):.2f}",
        f"mean pose{metrics.mean_error(metrics.joint_errors(np.broadcast_to(gt.mean(0), gt.shape), gt)):.2f}",
        f"thumb_tip{metrics.per_joint_error(e)[3]:.2f}",
        f"{100 * metrics.success_rate(e, [20])[0]:.2f}",
    ):
        assert wanted in page.text, wanted
    examples = report.example_frames(e)
    assert asked == list(examples.values())
    for name, index in examples.items():
        assert f"{name}: frame {index}, mean error {e[index].mean():.2f} mm" in page.text
    written = {p.name for p in path.parent.iterdir()}
    assert written == {"report.html", "report_success_rate.png", "report_per_joint.png"} | {
        f"report_frame_{n}.png" for n in ("best", "median", "90th_percentile", "worst")
    }


def test_smallest_page_has_no_baseline_and_no_frames(tmp_path):
    gt, pred = hands(1)
    mask = np.ones((1, 16), bool)
    mask[0, 4] = False
    text = report.write_report(
        tmp_path / "r.html", title="t", config={}, gt_mm=gt, pred_mm=pred, skeleton="icvl", mask=mask
    ).read_text("utf-8")
    assert "mean pose" not in text
    assert "Frames</h2>" not in text
    assert "<td>index_root</td><td>–</td>" in text  # never labelled


def test_examples_are_the_best_and_the_worst():
    e = np.array([[5.0], [1.0], [np.nan], [9.0], [3.0], [4.0]])
    assert report.example_frames(e) == {"best": 1, "median": 5, "90th percentile": 3, "worst": 3}
    assert report.example_frames(np.full((2, 3), np.nan)) == {}


def test_frame_picture_takes_depth_and_colour_and_a_prediction_behind_the_camera():
    gt, pred = hands()
    pred[0, 5, 2] = -10
    for image in (np.zeros((240, 320)), np.zeros((240, 320, 3), np.uint8)):
        picture = report.frame_picture(image, K, gt[0], pred[0], "icvl", title="worst")
        assert picture.dtype == np.uint8
        assert picture.shape[1] > 900


@pytest.mark.parametrize("unit", ["mm", "px"])
def test_figures(tmp_path, unit):
    gt, pred = hands()
    errors = {"ours $x$": metrics.joint_errors(pred, gt), "theirs_1": metrics.joint_errors(pred + 4, gt)}
    report.plot_success_rates(errors, tmp_path / "a.png", unit=unit)
    report.plot_per_joint(errors, "icvl", tmp_path / "b.png", unit=unit)
    report.plot_joint_accuracy(errors["theirs_1"], "icvl", tmp_path / "c.png")
    for name in "abc":
        picture = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        assert picture.shape[1] > 600
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_errors(tmp_path):
    gt, pred = hands()
    common = {"title": "t", "config": {}, "skeleton": "icvl"}
    with pytest.raises(DataError, match=r"ground truth \(N, 16, 3\) .* got \(12, 15, 3\)"):
        report.write_report(tmp_path / "r.html", gt_mm=gt[:, :15], pred_mm=pred, **common)
    with pytest.raises(DataError, match="prediction of frame 3"):
        report.write_report(tmp_path / "r.html", gt_mm=gt, pred_mm=np.where(pred == pred[3], np.nan, pred), **common)
    assert not list(tmp_path.iterdir())
    e = metrics.joint_errors(pred, gt)
    with pytest.raises(DataError, match="nothing to plot"):
        report.plot_success_rates({}, tmp_path / "x.png")
    with pytest.raises(DataError, match=r"different numbers of joints: \[15, 16\]"):
        report.plot_success_rates({"a": e, "b": e[:, :15]}, tmp_path / "x.png")
    with pytest.raises(DataError, match="msra order has 21 joints, the errors 16"):
        report.plot_per_joint({"a": e}, "msra", tmp_path / "x.png")
    with pytest.raises(DataError, match="msra order has 21 joints, the errors 16"):
        report.plot_joint_accuracy(e, "msra", tmp_path / "x.png")
