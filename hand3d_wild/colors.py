"""Colours of a hand's vertices: from coloured meshes, from registered scans, or procedural.

The original colours the registered meshes of 27 people of MANO's scan set with the nearest vertices of their raw scans
(``create_colored_meshes`` of boukhayma/3dhand). The scans are licensed; a user who has them gives the folders.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError, MissingFileError
from shared.mano import ManoModel
from shared.standin.render import skin_colors

Float = NDArray[np.float64]


def _number(path: Path) -> tuple[list[int], str]:
    return [int(digits) for digits in re.findall(r"\d+", path.stem)], path.name


def read_obj(path: str | Path) -> tuple[Float, NDArray[np.float32] | None, NDArray[np.int64]]:
    """((V, 3) vertices, (V, 3) colours in 0..1 or None, (F, 3) faces from 0) of a text OBJ file.

    Raises:
        MissingFileError: no such file.
        DataError: no vertices, lines of different lengths, numbers that are none, colours outside 0..1.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError("no such mesh", path=path)
    verts, faces = [], []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if words[:1] == ["v"]:
            verts.append(words[1:])
        elif words[:1] == ["f"]:
            faces.append([word.partition("/")[0] for word in words[1:]])
    try:
        table = np.array(verts, np.float64)
        triangles = np.array(faces, np.int64).reshape(-1, 3) - 1
    except ValueError as error:
        raise DataError(f"its lines are not a mesh's ({error})", path=path, remedy="export it again as OBJ") from error
    if table.ndim != 2 or table.shape[1] not in (3, 6) or not np.isfinite(table).all():
        raise DataError(
            f"expected lines 'v x y z' or 'v x y z r g b' of finite numbers, got an array {table.shape}", path=path
        )
    if table.shape[1] == 3:
        return table, None, triangles
    if table[:, 3:].min() < 0 or table[:, 3:].max() > 1:
        raise DataError(
            f"vertex colours must lie in 0..1, got {table[:, 3:].min():g} to {table[:, 3:].max():g}",
            path=path,
            remedy="divide them by 255",
        )
    return table[:, :3], table[:, 3:].astype(np.float32), triangles


def nearest_colors(verts: Float, scan_verts: Float, scan_colors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(V, 3): each vertex takes the colour of the nearest scan vertex."""
    from scipy.spatial import cKDTree

    return np.asarray(scan_colors[cKDTree(scan_verts).query(verts)[1]])


def load_colors(meshes: str | Path, mano: ManoModel, scans: str | Path = "") -> NDArray[np.float32]:
    """(N, 778, 3) colours in 0..1 of the meshes of a folder, in the order of the numbers in their names.

    Args:
        meshes: folder of ``*.obj`` in the topology of ``mano``, coloured; or registered ones without colours.
        mano: the hand that is to be coloured.
        scans: folder of raw scans named as the meshes; their colours are taken then.

    Raises:
        MissingFileError: no mesh in the folder, or no scan of that name.
        DataError: a mesh of another topology, or without colours where they are needed.
    """
    paths = sorted(Path(meshes).glob("*.obj"), key=_number)
    if not paths:
        raise MissingFileError("no .obj file here", path=meshes, remedy="leave out --meshes for procedural skin")
    found = []
    for path in paths:
        verts, colors, faces = read_obj(path)
        if len(verts) != len(mano.v_template) or (len(faces) and not np.array_equal(faces, mano.faces)):
            raise DataError(
                f"expected a mesh in the topology of {mano.source} ({len(mano.v_template)} vertices, {len(mano.faces)} "
                f"faces), got {len(verts)} vertices, {len(faces)} faces",
                path=path,
                remedy="use the registered meshes, and the hand model they belong to",
            )
        if scans:
            scan_verts, colors, _ = read_obj(Path(scans) / path.name)
            if colors is not None:
                colors = nearest_colors(verts, scan_verts, colors)
            path = Path(scans) / path.name
        if colors is None:
            raise DataError(
                "its vertices have no colours",
                path=path,
                remedy="give raw scans with 'v x y z r g b'" if scans else "give the coloured raw scans as --scans",
            )
        found.append(colors)
    return np.stack(found)


def vertex_normals(verts: Float, faces: NDArray[np.int64]) -> Float:
    """(V, 3) unit normals, area-weighted; outwards for counter-clockwise faces."""
    a, b, c = (verts[faces[:, k]] for k in range(3))
    flat = np.cross(b - a, c - a)
    normals = np.zeros_like(verts)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], flat)
    return np.asarray(normals / np.linalg.norm(normals, axis=1, keepdims=True).clip(1e-12))


def procedural_skin(mano: ManoModel, normals: Float, rng: np.random.Generator) -> NDArray[np.float32]:
    """(778, 3) colours in 0..1: a tone with soft unevenness, a paler palm, and the shading of a scan baked in.

    Args:
        mano: the hand at rest, the back of the hand towards +y.
        normals: :func:`vertex_normals` of its template.
        rng: tone, pattern and light.
    """
    skin = skin_colors(mano.v_template, rng).astype(np.float64)
    palm = np.clip(-normals[:, 1:2], 0, 1)
    skin = skin + palm * rng.uniform(0.0, 0.35) * (np.array([0.95, 0.75, 0.68]) - skin)
    light = rng.normal(size=3) * [1.0, 0.5, 1.0] + [0.0, rng.choice([-1.0, 1.0]) * rng.uniform(0.2, 1.5), 0.0]
    light /= np.linalg.norm(light)
    depth = rng.uniform(0.25, 0.6)  # how dark the far side is
    shade = 1 - depth * (0.5 - 0.5 * normals @ light)
    return np.asarray((skin * shade[:, None]).clip(0, 1), np.float32)
