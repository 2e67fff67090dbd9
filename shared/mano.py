"""The MANO hand model: its file, and a differentiable layer from pose and shape to mesh and joints.

Mathematics and file format: Romero, Tzionas, Black, "Embodied Hands", SIGGRAPH Asia 2017. The file is licensed and is
not part of this project (mano.is.tue.mpg.de, registration); ``load_mano("standin")`` gives a hand of our own in the
same format. Conventions that differ between public layers (tips, units, mean pose, centring) are named options here.

``python -m shared.mano_import`` checks a file and saves it without pickle.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shared.errors import DataError, MissingFileError
from shared.safe_io import MIB, atomic_path, load_npz, load_restricted_pickle
from shared.skeletons import SKELETONS, order

Array = NDArray[np.float64]
Side = Literal["right", "left"]

PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
JOINT_NAMES = SKELETONS["mano"].joints
"""The 21 joints in the order "mano": MANO's chain (pinky before ring), then the tips, thumb first."""

TIPS: dict[str, tuple[int, int, int, int, int]] = {
    "ho3d": (728, 353, 442, 576, 694),  # HO-3D's ground truth; HandOccNet
    "ho3d_viewer": (744, 333, 444, 555, 672),
    "freihand": (744, 320, 443, 555, 672),
    "manopth": (745, 317, 444, 556, 673),  # DexYCB too; left hand: middle 445
    "smplx": (744, 320, 443, 554, 671),
    "wild": (745, 333, 444, 555, 672),  # Boukhayma et al., "3D Hand Shape and Pose from Images in the Wild"
}
"""Fingertip vertices (thumb, index, middle, ring, pinky) of each package or data set."""

ORDERS: dict[str, tuple[int, ...]] = {
    name: tuple(order("mano", name).tolist()) for name in ("mano", "thumb_first", "wild", "msra", "hands2017")
}
"""Joint orders of :mod:`shared.skeletons` that the layer can give, as gather lists over :data:`JOINT_NAMES`."""

PALM_VERTS = (22, 95)  # back and palm side of the middle of the palm
STANDIN = Path(__file__).parent / "standin" / "hand.npz"
_REMEDY = 'MANO is given out at mano.is.tue.mpg.de after registration; "standin" is a free hand to try the program with'

_SHAPES: dict[str, tuple[int, ...]] = {
    "v_template": (778, 3),
    "f": (1538, 3),
    "shapedirs": (778, 3, 10),
    "posedirs": (778, 3, 135),
    "J_regressor": (16, 778),
    "weights": (778, 16),
    "kintree_table": (2, 16),
    "hands_components": (45, 45),
    "hands_mean": (45,),
}


@dataclass(frozen=True, eq=False)
class ManoModel:
    """The arrays of a MANO file, checked; metres and radians, float64.

    Attributes:
        v_template: (778, 3) rest vertices, m.
        faces: (1538, 3) int64 triangles, counter-clockwise from outside.
        shapedirs: (778, 3, 10) m per unit of beta.
        posedirs: (778, 3, 135) m per unit of the pose features.
        J_regressor: (16, 778) rest joints from shaped vertices.
        weights: (778, 16) skinning weights.
        hands_components: (45, 45) articulation basis, one component per row.
        hands_mean: (45,) mean articulation, axis-angle.
        hands_coeffs: (N, 45) coefficients of the training poses; None where the file has none.
        side: which hand.
        source: the file's path, or "standin".
        sha256: of the file's bytes, to store with results.
    """

    v_template: Array
    faces: NDArray[np.int64]
    shapedirs: Array
    posedirs: Array
    J_regressor: Array
    weights: Array
    hands_components: Array
    hands_mean: Array
    hands_coeffs: Array | None
    side: Side
    source: str
    sha256: str

    @property
    def joints(self) -> Array:
        """(16, 3) rest joints of the template, m."""
        return self.J_regressor @ self.v_template


def load_mano(path: str | Path, *, side: Side | None = None, flip_shapedirs_x: bool = False) -> ManoModel:
    """A MANO model from the official pickle, from an ``.npz`` of the same keys, or the project's own hand.

    Nothing in the file is executed (:func:`shared.safe_io.load_restricted_pickle`); neither chumpy nor SciPy is needed.

    Args:
        path: ``MANO_RIGHT.pkl``, ``MANO_LEFT.pkl``, an ``.npz``, or the word ``"standin"``.
        side: which hand is expected; by default the one that the file holds: an ``.npz`` of :func:`save_npz` says so,
            otherwise it is left if the file's name says so, else right.
        flip_shapedirs_x: negate the x component of the shape directions. The left model was released with it unmirrored
            (smplx issue 48); with the flip, equal betas give mirror-image hands.

    Raises:
        MissingFileError: there is no such file.
        DataError: the file is no MANO model; names the key and what is wrong with it. It holds the other hand than
            ``side``, by its content or its name.
    """
    if side not in (None, "right", "left"):
        raise DataError(f'side must be "right" or "left", got {side!r}')
    standin = str(path) == "standin"
    file = STANDIN if standin else Path(path)
    data: object
    try:
        if file.suffix == ".npz":
            data = load_npz(file, max_bytes=64 * MIB)
        else:
            data = load_restricted_pickle(file, max_bytes=16 * MIB)
    except MissingFileError:
        raise MissingFileError("expected a MANO model, found no such file", path=file, remedy=_REMEDY) from None
    except DataError as error:
        raise DataError(f"this is no MANO model: {error}", remedy=_REMEDY) from error
    checked = _check(data, file)
    held = checked["side"] or _side_of(file.name)
    if side and held and side != held:
        by = "" if checked["side"] else " by its name"
        raise DataError(
            f"this is the {held} hand{by}, expected the {side} one",
            path=file,
            remedy=f"give MANO_{side.upper()}.pkl, or the .npz that python -m shared.mano_import makes of it",
        )
    shapedirs = checked["shapedirs"]
    if flip_shapedirs_x:
        shapedirs = shapedirs * np.array([-1.0, 1.0, 1.0])[None, :, None]
    return ManoModel(
        v_template=checked["v_template"],
        faces=checked["f"],
        shapedirs=shapedirs,
        posedirs=checked["posedirs"],
        J_regressor=checked["J_regressor"],
        weights=checked["weights"],
        hands_components=checked["hands_components"],
        hands_mean=checked["hands_mean"],
        hands_coeffs=checked.get("hands_coeffs"),
        side=side or held or "right",
        source="standin" if standin else str(file),
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
    )


def _side_of(name: str) -> Side | None:
    """The hand that a file's name speaks of, None where it names neither or both."""
    sides: tuple[Side, ...] = ("right", "left")
    named = [side for side in sides if side in name.lower()]
    return named[0] if len(named) == 1 else None


def _check(data: object, path: Path) -> dict[str, Any]:
    """The arrays of a MANO file as float64 (faces int64) and its ``side`` or None, after the checks of its format."""

    def fail(message: str) -> DataError:
        return DataError(f"this is no MANO model: {message}", path=path, remedy=_REMEDY)

    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise fail(f"expected a dictionary with names as keys, got {type(data).__name__}")
    missing = [key for key in (*_SHAPES, "bs_style", "bs_type") if key not in data]
    if missing:
        raise fail(f"missing {', '.join(missing)}")
    side = str(data["side"]) if "side" in data else None
    if side not in (None, "right", "left"):
        raise fail(f"side must be right or left, got {side[:40]!r}")
    arrays: dict[str, Any] = {"side": side}
    for key, shape in _SHAPES.items():
        value = np.asarray(data[key]) if isinstance(data[key], np.ndarray | list | tuple | np.generic) else None
        if value is None or value.dtype.kind not in "iuf":
            raise fail(f"{key} must be an array of numbers, got {type(data[key]).__name__}")
        if key == "shapedirs" and value.ndim == 3 and value.shape[:2] == shape[:2] and value.shape[2] > 10:
            value = value[:, :, :10]
        if value.shape != shape:
            raise fail(f"{key} must have shape {shape}, got {value.shape}")
        if not np.isfinite(value).all():
            raise fail(f"{key} holds values that are not finite")
        arrays[key] = np.array(value, np.float64)
    if data.get("hands_coeffs") is not None:
        coeffs = np.asarray(data["hands_coeffs"])
        if coeffs.dtype.kind not in "iuf" or coeffs.ndim != 2 or coeffs.shape[1] != 45 or not np.isfinite(coeffs).all():
            raise fail(f"hands_coeffs must be finite numbers of shape (N, 45), got {coeffs.dtype} {coeffs.shape}")
        arrays["hands_coeffs"] = np.array(coeffs, np.float64)
    for key, expected in (("bs_style", "lbs"), ("bs_type", "lrotmin")):
        if str(data[key]) != expected:
            raise fail(f"{key} must be {expected!r}, got {str(data[key])[:40]!r}")
    faces = arrays["f"]
    if (faces != np.floor(faces)).any() or faces.min() < 0 or faces.max() > 777:
        raise fail(f"f must be vertex numbers 0 to 777, got {faces.min():g} to {faces.max():g}")
    arrays["f"] = faces.astype(np.int64)
    if arrays["weights"].min() < -1e-8 or np.abs(arrays["weights"].sum(1) - 1).max() > 1e-5:
        raise fail("weights must be non-negative with rows that sum to 1")
    if np.abs(arrays["J_regressor"].sum(1) - 1).max() > 1e-5:
        raise fail("the rows of J_regressor must sum to 1")
    parents = arrays["kintree_table"][0].copy()
    parents[parents == 2**32 - 1] = -1
    if tuple(parents[1:]) != PARENTS[1:] or parents[0] != -1:
        late = [k for k in range(1, 16) if not 0 <= parents[k] < k]
        detail = f"joint {late[0]} comes before its parent {parents[late[0]]:g}" if late else f"got {parents.tolist()}"
        raise fail(f"kintree_table must hold the parents {list(PARENTS)}; {detail}")
    return arrays


def save_npz(model: ManoModel, path: str | Path) -> None:
    """Writes a model in MANO's keys as plain arrays (float64), readable without pickle; loads back bit-identical."""
    arrays: dict[str, NDArray[Any]] = {
        "v_template": model.v_template,
        "f": model.faces.astype(np.uint32),
        "shapedirs": model.shapedirs,
        "posedirs": model.posedirs,
        "J_regressor": model.J_regressor,
        "J": model.joints,
        "weights": model.weights,
        "kintree_table": np.array([[p % 2**32 for p in PARENTS], list(range(16))]),
        "hands_components": model.hands_components,
        "hands_mean": model.hands_mean,
        "bs_style": np.array("lbs"),
        "bs_type": np.array("lrotmin"),
        "side": np.array(model.side),
    }
    if model.hands_coeffs is not None:
        arrays["hands_coeffs"] = model.hands_coeffs
    if Path(path).suffix != ".npz":
        raise DataError("the file to write must end in .npz, so that it is read as one", path=path)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


# ------------------------------------------------------------------------------------------------------------ rotations


def rotvec_to_rotmat(rotvec: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of axis-angle vectors (..., 3), radians; smooth at zero to all orders used.

    Rodrigues with sin(a)/a and (1 - cos a)/a^2 as functions of a^2, by their series for small angles, so that values
    and first and second derivatives are finite and right everywhere, zero included.
    """
    square = (rotvec * rotvec).sum(-1)
    small = square < 1e-4  # the third term left out is below 1e-15 here
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    a = torch.where(small, 1 - square / 6 * (1 - square / 20 * (1 - square / 42)), angle.sin() / angle)
    # 2 sin^2(a/2) / a^2 keeps its digits where 1 - cos a would lose them
    half = (angle / 2).sin() / angle
    b = torch.where(small, 0.5 - square / 24 * (1 - square / 30 * (1 - square / 56)), 2 * half * half)
    x, y, z = rotvec.unbind(-1)
    zero = torch.zeros_like(x)
    K = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).reshape(*rotvec.shape[:-1], 3, 3)
    eye = torch.eye(3, dtype=rotvec.dtype, device=rotvec.device)
    outer = rotvec[..., :, None] * rotvec[..., None, :]  # K K = r r^T - |r|^2 I
    rotmat: Tensor = eye + a[..., None, None] * K + b[..., None, None] * (outer - square[..., None, None] * eye)
    return rotmat


def _unit(vector: Tensor) -> Tensor:
    return torch.div(vector, torch.linalg.vector_norm(vector, dim=-1, keepdim=True).clamp(min=1e-8))


def rot6d_to_rotmat(rot6d: Tensor, *, robust: bool = False) -> Tensor:
    """Rotation matrices (..., 3, 3) of six numbers (..., 6), manopth's two constructions.

    Plain: the first three give the column x; z = x cross the other three; y = z cross x. Robust: both triples give x
    and y alike, turned symmetrically until they are perpendicular.
    """
    a, b = _unit(rot6d[..., :3]), rot6d[..., 3:]
    if robust:
        b = _unit(b)
        middle, across = _unit(a + b), _unit(a - b)
        x, y = _unit(middle + across), _unit(middle - across)
        z = _unit(torch.linalg.cross(x, y))
    else:
        x = a
        z = _unit(torch.linalg.cross(x, b))
        y = torch.linalg.cross(z, x)
    return torch.stack((x, y, z), -1)


def project_to_rotmat(matrix: Tensor) -> Tensor:
    """Nearest rotation (..., 3, 3) by SVD, as manopth does it: U V^T, third column negated where that mirrors.

    The derivative of an SVD does not exist where singular values are equal, that is, for exact rotations: to
    differentiate through rotations, give them to :meth:`ManoLayer.from_rotmats`.
    """
    u, _, vt = torch.linalg.svd(matrix)
    rotation = u @ vt
    sign = torch.where(torch.linalg.det(rotation) < 0, -1.0, 1.0).to(matrix.dtype)
    columns = torch.stack((torch.ones_like(sign), torch.ones_like(sign), sign), -1)
    return torch.mul(rotation, columns[..., None, :])


def mirror_pose(pose: Tensor) -> Tensor:
    """Axis-angle pose (..., 3 n) of the mirror-image hand (mirrored in x): y and z of every vector change sign."""
    sign = pose.new_tensor([1.0, -1.0, -1.0])
    return torch.mul(pose, sign.repeat(pose.shape[-1] // 3))


def mirror_model(model: ManoModel) -> ManoModel:
    """The other hand: everything mirrored in x, so that ``mirror_pose`` and equal betas give the mirror-image mesh."""
    flip = np.array([-1.0, 1.0, 1.0])
    rot = np.outer(flip, flip)  # R mirrors to M R M, and so does R - I
    sign = np.tile(np.array([1.0, -1.0, -1.0]), 15)
    posedirs = model.posedirs * flip[None, :, None] * np.tile(rot.ravel(), 15)
    return replace(
        model,
        v_template=model.v_template * flip,
        faces=model.faces[:, ::-1].copy(),
        shapedirs=model.shapedirs * flip[None, :, None],
        posedirs=posedirs,
        hands_components=model.hands_components * sign,
        hands_mean=model.hands_mean * sign,
        side="left" if model.side == "right" else "right",
        source=f"{model.source} (mirrored)",
    )


# ---------------------------------------------------------------------------------------------------------------- layer


class ManoOutput(NamedTuple):
    """What :class:`ManoLayer` returns.

    Attributes:
        verts: (B, 778, 3) in the layer's unit; None if only joints were asked for.
        joints: (B, 21, 3) in the layer's order and unit (16 where ``tips`` is None).
    """

    verts: Tensor | None
    joints: Tensor


class ManoLayer(nn.Module):
    """Pose and shape to mesh and joints: batched, differentiable, constants as buffers.

    Input of :meth:`forward` is one pose vector: the global rotation (3 numbers axis-angle, or 6), then ``n_pca``
    coefficients or 45 angles. The global rotation turns about the wrist joint, which keeps its place.

    Args:
        model: from :func:`load_mano`.
        n_pca: number of articulation coefficients, 1 to 45; None takes the 45 angles themselves.
        flat_hand_mean: True: zero articulation is the flat hand; False: the mean pose is added. Packages disagree on
            their default (manopth True; the official model and smplx False), so there is none here.
        tips: fingertip vertices by name (:data:`TIPS`), five ids of your own, or None for the 16 joints alone.
        joint_order: a name of :data:`ORDERS`, such as ``"thumb_first"``; ``"mano"`` if ``tips`` is None.
        unit: of the outputs **and** of ``transl``.
        center_joint: this joint (number in ``joint_order``) is moved to the origin, unless a translation other than
            zero is given; the translation then places the hand instead (manopth's rule, decided for the whole batch).
        root_rot_mode: ``"axisang"``, ``"rot6d"`` or ``"rot6d_robust"``.
        root_palm: replace joint 0 by the middle of the palm (mean of vertices 22 and 95).
        dtype: of the buffers; float32 is enough for training.

    Raises:
        DataError: an option outside the ones above, or a call with tensors of the wrong shape.
    """

    v_template: Tensor
    faces: Tensor
    blend: Tensor
    J_template: Tensor
    J_shape: Tensor
    weights: Tensor
    components: Tensor
    hands_mean: Tensor

    def __init__(
        self,
        model: ManoModel,
        *,
        n_pca: int | None,
        flat_hand_mean: bool,
        tips: str | tuple[int, int, int, int, int] | None = "manopth",
        joint_order: str = "mano",
        unit: Literal["mm", "m"] = "mm",
        center_joint: int | None = None,
        root_rot_mode: Literal["axisang", "rot6d", "rot6d_robust"] = "axisang",
        root_palm: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if n_pca is not None and not 1 <= n_pca <= 45:
            raise DataError(f"n_pca must be 1 to 45, or None for full axis-angle, got {n_pca}")
        if isinstance(tips, str) and tips not in TIPS:
            raise DataError(f"tips must be one of {', '.join(TIPS)}, five vertex ids or None, got {tips!r}")
        if joint_order not in ORDERS or (tips is None and joint_order != "mano"):
            known = ", ".join(ORDERS) if tips is not None else "mano (there are no tips)"
            raise DataError(f"joint_order must be one of {known}, got {joint_order!r}")
        if unit not in ("mm", "m"):
            raise DataError(f'unit must be "mm" or "m", got {unit!r}')
        if root_rot_mode not in ("axisang", "rot6d", "rot6d_robust"):
            raise DataError(f"root_rot_mode must be axisang, rot6d or rot6d_robust, got {root_rot_mode!r}")
        joints = 16 if tips is None else 21
        if center_joint is not None and not 0 <= center_joint < joints:
            raise DataError(f"center_joint must be 0 to {joints - 1}, got {center_joint}")
        ids = TIPS[tips] if isinstance(tips, str) else tips
        if tips == "manopth" and model.side == "left":
            ids = (745, 317, 445, 556, 673)
        if ids is not None and (len(ids) != 5 or not all(0 <= v < 778 for v in ids)):
            raise DataError(f"tips must be five vertex ids 0 to 777, got {ids}")
        self.tip_verts = ids
        self.n_pca = n_pca
        self.flat_hand_mean = flat_hand_mean
        self.joint_order = joint_order
        self.joint_names = tuple(JOINT_NAMES[j] for j in ORDERS[joint_order][:joints])
        self.unit = unit
        self.scale = 1000.0 if unit == "mm" else 1.0
        self.center_joint = center_joint
        self.root_rot_mode = root_rot_mode
        self.root_palm = root_palm
        self.side = model.side
        self.source = model.source
        self.sha256 = model.sha256

        def constant(name: str, values: NDArray[Any]) -> None:
            # Not in the state dict: a checkpoint must not carry a licensed model along.
            self.register_buffer(name, torch.tensor(values, dtype=dtype), persistent=False)

        constant("v_template", model.v_template)
        self.register_buffer("faces", torch.tensor(model.faces), persistent=False)
        # One product gives shape and pose blend shapes: rows are 10 betas, then 135 pose features.
        constant("blend", np.concatenate((model.shapedirs, model.posedirs), -1).reshape(2334, 145).T.copy())
        constant("J_template", model.joints)
        constant("J_shape", np.einsum("jv,vdb->bjd", model.J_regressor, model.shapedirs).reshape(10, 48))
        constant("weights", model.weights)
        constant("components", model.hands_components[: n_pca or 45])
        constant("hands_mean", model.hands_mean * (0.0 if flat_hand_mean else 1.0))

    def extra_repr(self) -> str:
        parts = (
            f"side={self.side}, source={self.source}, n_pca={self.n_pca}, flat_hand_mean={self.flat_hand_mean}",
            f"unit={self.unit}, joint_order={self.joint_order}, tips={self.tip_verts}",
            f"center_joint={self.center_joint}, root_rot_mode={self.root_rot_mode}, root_palm={self.root_palm}",
        )
        return ", ".join(parts)

    @property
    def pose_size(self) -> int:
        """Length of the pose vector that :meth:`forward` takes."""
        return (3 if self.root_rot_mode == "axisang" else 6) + (self.n_pca or 45)

    def full_pose(self, pose: Tensor) -> Tensor:
        """(B, 45) articulation angles of a pose vector (B, :attr:`pose_size`): mean and components applied."""
        hand = pose[:, self.pose_size - (self.n_pca or 45) :]
        return self.hands_mean + (hand @ self.components if self.n_pca is not None else hand)

    def pose_to_rotmats(self, pose: Tensor) -> Tensor:
        """(B, 16, 3, 3) rotations of a pose vector (B, :attr:`pose_size`), root first."""
        if pose.ndim != 2 or pose.shape[1] != self.pose_size:
            raise DataError(f"pose must have shape (B, {self.pose_size}), got {tuple(pose.shape)}")
        if self.root_rot_mode == "axisang":
            root = rotvec_to_rotmat(pose[:, :3])
        else:
            root = rot6d_to_rotmat(pose[:, :6], robust=self.root_rot_mode == "rot6d_robust")
        hand = rotvec_to_rotmat(self.full_pose(pose).reshape(-1, 15, 3))
        return torch.cat((root[:, None], hand), 1)

    def forward(
        self,
        pose: Tensor,
        betas: Tensor | None = None,
        transl: Tensor | None = None,
        *,
        with_verts: bool = True,
    ) -> ManoOutput:
        """Mesh and joints of pose vectors.

        Args:
            pose: (B, pose_size); or (B, 16, 3, 3) matrices, root first, which are projected to rotations (the mean hand
                pose is not added to them).
            betas: (B, 10) or (1, 10) shape; zeros by default.
            transl: (B, 3) or (1, 3) added to everything, in the layer's unit.
            with_verts: False skips the mesh: only the tips' vertices are skinned.
        """
        if pose.ndim == 4:
            if pose.shape[1:] != (16, 3, 3):
                raise DataError(f"rotation matrices must have shape (B, 16, 3, 3), got {tuple(pose.shape)}")
            rotmats = project_to_rotmat(pose)
        else:
            rotmats = self.pose_to_rotmats(pose)
        return self.from_rotmats(rotmats, betas, transl, with_verts=with_verts)

    def rest(self, betas: Tensor) -> tuple[Tensor, Tensor]:
        """((B, 778, 3) shaped vertices, (B, 16, 3) rest joints) of shapes (B, 10), metres."""
        shaped = self.v_template + (betas @ self.blend[:10]).reshape(-1, 778, 3)
        return shaped, self.J_template + (betas @ self.J_shape).reshape(-1, 16, 3)

    def from_rotmats(
        self, rotmats: Tensor, betas: Tensor | None = None, transl: Tensor | None = None, *, with_verts: bool = True
    ) -> ManoOutput:
        """As :meth:`forward`, from (B, 16, 3, 3) proper rotations (not projected)."""
        batch = len(rotmats)
        if betas is None:
            betas = rotmats.new_zeros(batch, 10)
        if betas.ndim != 2 or betas.shape[1] != 10 or betas.shape[0] not in (1, batch):
            raise DataError(f"betas must have shape ({batch}, 10) or (1, 10), got {tuple(betas.shape)}")
        if transl is not None and (transl.ndim != 2 or transl.shape[1] != 3 or transl.shape[0] not in (1, batch)):
            raise DataError(f"transl must have shape ({batch}, 3) or (1, 3), got {tuple(transl.shape)}")
        betas = betas.expand(batch, 10)
        rest_joints = self.J_template + (betas @ self.J_shape).reshape(-1, 16, 3)
        turn, place = _chain(rotmats, rest_joints)
        eye = torch.eye(3, dtype=rotmats.dtype, device=rotmats.device)
        features = torch.cat((betas, (rotmats[:, 1:] - eye).flatten(1)), 1)  # (B, 145)
        # Skinning transforms: rotation, and translation with the rest joint taken out.
        shift = place - (turn @ rest_joints[..., None])[..., 0]
        transforms = torch.cat((turn, shift[..., None]), -1).flatten(2)  # (B, 16, 12)

        def skin(ids: Tensor | None) -> Tensor:
            template, weights, blend = self.v_template, self.weights, self.blend
            if ids is not None:
                template, weights = template[ids], weights[ids]
                blend = blend.reshape(145, 778, 3)[:, ids].flatten(1)
            points = template + (features @ blend).reshape(batch, -1, 3)
            mix = (weights @ transforms).reshape(batch, -1, 3, 4)
            skinned: Tensor = (mix[..., :3] @ points[..., None])[..., 0] + mix[..., 3]
            return skinned

        extra = (*(self.tip_verts or ()), *(PALM_VERTS if self.root_palm else ()))
        verts = skin(None) if with_verts else None
        if extra:
            index = torch.tensor(extra, device=rotmats.device)
            points = verts[:, index] if verts is not None else skin(index)
        joints = place
        if self.tip_verts is not None:
            joints = torch.cat((place, points[:, :5]), 1)[:, list(ORDERS[self.joint_order])]
        if self.root_palm:
            joints = torch.cat((points[:, -2:].mean(1, keepdim=True), joints[:, 1:]), 1)
        joints = joints * self.scale
        verts = verts * self.scale if verts is not None else None
        offset = transl[:, None] if transl is not None else None
        if self.center_joint is not None and (transl is None or not bool(transl.any())):
            offset = -joints[:, self.center_joint : self.center_joint + 1]
        if offset is not None:
            joints = joints + offset
            verts = verts + offset if verts is not None else None
        return ManoOutput(verts, joints)


def _chain(rotmats: Tensor, rest_joints: Tensor) -> tuple[Tensor, Tensor]:
    """Global rotations (B, 16, 3, 3) and posed joints (B, 16, 3), metres, level by level: five fingers at a time."""
    fingers = rotmats[:, 1:].reshape(-1, 5, 3, 3, 3)  # (B, 5, 3 levels, 3, 3)
    rest = rest_joints[:, 1:].reshape(-1, 5, 3, 3)
    turn, place = rotmats[:, :1], rest_joints[:, :1]  # (B, 1 or 5, ...)
    before = place
    turns, places = [], []
    for level in range(3):
        place = place + (turn @ (rest[:, :, level] - before)[..., None])[..., 0]
        turn = turn @ fingers[:, :, level]
        before = rest[:, :, level]
        turns.append(turn)
        places.append(place)
    turn = torch.cat((rotmats[:, :1], torch.stack(turns, 2).flatten(1, 2)), 1)
    return turn, torch.cat((rest_joints[:, :1], torch.stack(places, 2).flatten(1, 2)), 1)
