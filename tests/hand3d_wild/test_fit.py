"""Fitting the 22 numbers to joints and silhouettes, and the exported meshes."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from hand3d_wild.decoder import OFFSET, Decoder
from hand3d_wild.fit import fit_hands, params_of
from hand3d_wild.overlay import mesh_overlay, obj_text, verts_uvz, write_obj, write_ply
from shared.errors import DataError
from shared.mano import load_mano


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(load_mano("standin"))


def hands(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    vector = torch.tensor(OFFSET).repeat(count, 1)
    vector[:, 0] += 100
    vector[:, 1:3] += 10 * torch.randn(count, 2, generator=generator)
    vector[:, 3:6] = 0.4 * torch.randn(count, 3, generator=generator)
    vector[:, 6:12] = 0.6 * torch.randn(count, 6, generator=generator)
    return vector


def silhouette(decoder: Decoder, vector: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        pred = decoder(vector[None])
    uvz = verts_uvz(pred.verts_2d[0], pred.verts_m[0], float(vector[0]))
    return mesh_overlay(np.zeros((256, 256, 3), np.uint8), uvz, decoder.faces).any(-1)


def test_fit_to_joints(decoder: Decoder) -> None:
    truth = hands(2)
    with torch.no_grad():
        joints = decoder(truth).joints_2d
    confidence = torch.ones(2, 21)
    confidence[1, 7] = 0
    joints[1, 7] = torch.nan
    fit = fit_hands(decoder, joints_2d=joints, confidence=confidence, steps=40)
    print(
        f"fit to joints: error {fit.error_px.tolist()} px, objective {fit.start.tolist()} -> {fit.objective.tolist()}"
    )
    assert fit.error_px.max() < 3
    assert (fit.objective < 0.3 * fit.start).all()
    one = fit_hands(decoder, joints_2d=joints[:1], start=truth[:1], steps=5)
    assert float(one.error_px[0]) < 1.5


def test_a_hand_does_not_depend_on_its_neighbours(decoder: Decoder) -> None:
    truth = hands(8)
    with torch.no_grad():
        joints = decoder(truth).joints_2d
    start = torch.tensor(OFFSET).repeat(8, 1)
    together = fit_hands(decoder, joints_2d=joints, start=start)
    for i in range(0, 8, 3):
        alone = fit_hands(decoder, joints_2d=joints[i : i + 1], start=start[i : i + 1])
        difference = float((alone.params[0] - together.params[i]).abs().max())
        print(f"hand {i}: objective {float(alone.objective):.4f} alone, max diff of the numbers {difference:.3g}")
        assert abs(float(alone.objective - together.objective[i])) < 0.01
        assert abs(float(alone.error_px - together.error_px[i])) < 0.05
    assert together.error_px.max() < 1.5  # what the prior leaves


def test_fit_to_a_mask_moves_the_hand_onto_it(decoder: Decoder) -> None:
    truth = hands(3)
    masks = np.stack([silhouette(decoder, vector) for vector in truth])
    off = truth.clone()
    off[:, 0] *= 0.8
    off[:, 1:3] += 12
    fit = fit_hands(decoder, mask=torch.from_numpy(masks).float(), start=off, steps=25)

    def iou(vectors: torch.Tensor) -> np.ndarray:
        ours = np.stack([silhouette(decoder, vector) for vector in vectors])
        return (ours & masks).sum((1, 2)) / (ours | masks).sum((1, 2))

    before, after = iou(off), iou(fit.params)
    print(f"fit to masks: IoU {before.round(2).tolist()} -> {after.round(2).tolist()}")
    assert (after > before + 0.2).all()
    assert after.min() > 0.6  # the loss is content within 4 pixels, a third of a finger
    assert fit.error_px.isnan().all()


def test_what_cannot_be_fitted(decoder: Decoder) -> None:
    with pytest.raises(DataError, match="nothing to fit to"):
        fit_hands(decoder)
    with pytest.raises(DataError, match=r"expected joints \(B, 21, 2\)"):
        fit_hands(decoder, joints_2d=torch.zeros(1, 5, 2))
    with pytest.raises(DataError, match="a joint of weight above 0"):
        fit_hands(decoder, joints_2d=torch.zeros(1, 21, 2), confidence=torch.zeros(1, 21))
    weights = torch.ones(1, 21)
    weights[0, 3] = -1  # would push the joint away from its label
    with pytest.raises(DataError, match=r"weights \(B, 21\) of at least 0"):
        fit_hands(decoder, joints_2d=torch.zeros(1, 21, 2), confidence=weights)
    with pytest.raises(DataError, match="each with hand pixels"):
        fit_hands(decoder, mask=torch.zeros(1, 256, 256))


def test_named_numbers() -> None:
    named = params_of(torch.arange(22.0))
    assert named["scale"] == [0.0]
    assert named["trans"] == [1.0, 2.0]
    assert len(named["betas"]) == 10


def test_obj_is_the_testers(golden: Path, tmp_path: Path) -> None:
    g = np.load(golden / "hand3d_wild/decoder.npz")
    faces = load_mano("standin").faces
    write_obj(tmp_path / "hand.obj", g["x3d"][0, 21:], faces)
    lines = (tmp_path / "hand.obj").read_text().splitlines()
    ours = np.array([[float(word) for word in line.split()[1:]] for line in lines[:778]])
    theirs = np.array([[float(word) for word in str(line).split()[1:]] for line in g["obj_vertex_lines"]])
    print(f"OBJ vertices: max diff {np.abs(ours - theirs).max():.3g}")
    assert np.abs(ours - theirs).max() <= 1.01e-6
    assert len(lines) == 778 + 1538
    assert lines[778] == "f {} {} {}".format(*(faces[0] + 1))
    with pytest.raises(DataError, match="finite vertices"):
        obj_text(np.full((3, 3), np.nan), faces)


def test_ply_reads_back(tmp_path: Path) -> None:
    model = load_mano("standin")
    write_ply(tmp_path / "hand.ply", model.v_template, model.faces)
    head, body = (tmp_path / "hand.ply").read_bytes().split(b"end_header\n", 1)
    assert b"element vertex 778" in head
    verts = np.frombuffer(body[: 778 * 12], "<f4").reshape(-1, 3)
    assert np.abs(verts - model.v_template * [1, -1, -1]).max() < 1e-6
    assert struct.unpack("<B3i", body[778 * 12 : 778 * 12 + 13]) == (3, *model.faces[0])
    assert len(body) == 778 * 12 + 1538 * 13


def test_the_overlay_is_orthographic(decoder: Decoder) -> None:
    """Every vertex is drawn where the network's camera puts it: the silhouette's box is the vertices' box."""
    vector = hands(1)[0]
    with torch.no_grad():
        flat = decoder(vector[None]).verts_2d[0].numpy()
    rows, columns = np.nonzero(silhouette(decoder, vector))
    box = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
    expected = np.concatenate((flat.min(0), flat.max(0)))
    print(f"overlay's box against the vertices': max diff {np.abs(box - expected).max():.3g} px")
    assert np.abs(box - expected).max() <= 1
