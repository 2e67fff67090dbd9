"""The renderer against analytic surfaces and against a naive loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shared.errors import DataError
from shared.standin.render import (
    box_mesh,
    cylinder_mesh,
    join_meshes,
    noise_background,
    render_depth,
    shade,
    skin_colors,
    vertex_normals,
)

K = torch.tensor([[60.0, 0, 23.5], [0, 66.0, 18.2], [0, 0, 1]], dtype=torch.float64)
SIZE = (48, 36)


def rays() -> torch.Tensor:
    """(H, W, 3) rays with z = 1 through the pixel centres."""
    v, u = torch.meshgrid(torch.arange(SIZE[1]), torch.arange(SIZE[0]), indexing="ij")
    return torch.stack((u, v, torch.ones_like(u)), -1).double() @ torch.linalg.inv(K).T


def sphere(radius: float, center: tuple[float, float, float], rings: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    theta = np.linspace(0, np.pi, rings + 1)[1:-1]
    phi = np.arange(2 * rings) * np.pi / rings
    t, p = np.meshgrid(theta, phi, indexing="ij")
    grid = np.stack((np.sin(t) * np.cos(p), np.cos(t), np.sin(t) * np.sin(p)), -1).reshape(-1, 3)
    verts = np.concatenate((grid, [[0, 1, 0], [0, -1, 0]])) * radius + center
    n, faces = 2 * rings, []
    for i in range(len(theta) - 1):
        for j in range(n):
            a, b = i * n + j, i * n + (j + 1) % n
            faces += [(a, b, a + n), (b, b + n, a + n)]
    for j in range(n):
        faces += [(len(grid), (j + 1) % n, j), (len(grid) + 1, len(grid) - n + j, len(grid) - n + (j + 1) % n)]
    return torch.tensor(verts), torch.tensor(faces)


def test_tilted_plane_is_exact() -> None:
    # z = 300 + 0.4 x - 0.7 y as two huge triangles; where a ray d meets it, z = 300 / (1 - 0.4 dx + 0.7 dy)
    xy = torch.tensor([[-900.0, -700], [900, -700], [900, 700], [-900, 700]], dtype=torch.float64)
    verts = torch.cat((xy, (300 + xy @ torch.tensor([0.4, -0.7], dtype=torch.float64))[:, None]), 1)
    seen = render_depth(verts, torch.tensor([[0, 1, 2], [0, 2, 3]]), K, SIZE)
    d = rays()
    exact = 300 / (1 - 0.4 * d[..., 0] + 0.7 * d[..., 1])
    error = float((seen.depth_mm[0].double() - exact).abs().max())
    print(f"plane: max diff {error:.3g} mm")
    assert seen.mask.all()
    assert error < 1e-4
    assert torch.allclose(seen.bary.sum(-1), torch.ones(1, SIZE[1], SIZE[0]))
    # The barycentric weights give the point on the ray back: perspective-correct.
    corners = verts[torch.tensor([[0, 1, 2], [0, 2, 3]])[seen.face[0].long()]]
    points = (corners * seen.bary[0, ..., None].double()).sum(-2)
    assert torch.allclose(points, d * exact[..., None], atol=2e-3)


def test_sphere_is_where_it_should_be() -> None:
    center, radius = (12.0, -9.0, 400.0), 70.0
    verts, faces = sphere(radius, center)
    seen = render_depth(verts, faces, K, SIZE).depth_mm[0].double()
    d = rays()
    c = torch.tensor(center, dtype=torch.float64)
    a, b, e = (d * d).sum(-1), (d * c).sum(-1), float(c @ c) - radius**2
    root = b**2 - a * e
    exact = torch.where(root > 0, (b - root.clamp(min=0).sqrt()) / a, 0)
    rim = root.abs() < 0.02 * root.abs().max()  # the polygon is a little smaller than the sphere
    assert bool(((seen > 0) == (exact > 0))[~rim].all())
    error = float((seen - exact)[~rim].abs().max())
    print(f"sphere: max diff {error:.3g} mm")
    assert error < 0.3


def naive(verts: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel by pixel, triangle by triangle: Moeller and Trumbore's intersection."""
    depth = np.full((SIZE[1], SIZE[0]), np.inf)
    face = np.full(depth.shape, -1)
    all_rays = rays().numpy()
    for v in range(SIZE[1]):
        for u in range(SIZE[0]):
            for i, (a, b, c) in enumerate(verts[faces]):
                d = all_rays[v, u]
                h = np.cross(d, c - a)
                det = (b - a) @ h
                if abs(det) < 1e-12:
                    continue
                p = -a @ h / det
                q = np.cross(-a, b - a)
                r = d @ q / det
                z = (c - a) @ q / det
                if p >= 0 and r >= 0 and p + r <= 1 and 0 < z < depth[v, u]:
                    depth[v, u], face[v, u] = z, i
    return np.where(np.isinf(depth), 0, depth), face


def test_random_triangles_match_the_naive_loop() -> None:
    rng = np.random.default_rng(0)
    verts = rng.uniform((-120, -90, -60), (120, 90, 500), (24, 3))  # some reach behind the camera
    faces = rng.permutation(24).reshape(8, 3)
    depth, face = naive(verts, faces)
    seen = render_depth(torch.tensor(verts), torch.tensor(faces), K, SIZE)
    error = np.abs(seen.depth_mm[0].numpy() - depth).max()
    print(f"random triangles: max diff {error:.3g} mm, {np.count_nonzero(depth)} pixels")
    assert (verts[faces][..., 2] < 0).any()
    assert len(np.unique(face)) > 4
    assert np.array_equal(seen.face[0].numpy(), face)
    assert error < 1e-3


def test_batches_crops_and_chunks_are_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    verts, faces = sphere(60, (5, 5, 300), rings=6)
    batch = torch.stack((verts, verts + torch.tensor([30.0, -20, 80]), verts * 0.5))
    whole = render_depth(batch, faces, K, SIZE)
    each = [render_depth(v, faces, K.expand(1, 3, 3), SIZE) for v in batch]
    assert torch.equal(whole.depth_mm, torch.cat([e.depth_mm for e in each]))
    assert torch.equal(whole.face, torch.cat([e.face for e in each]))
    assert torch.equal(whole.bary, torch.cat([e.bary for e in each]))
    monkeypatch.setattr("shared.standin.render._CHUNK", 70)
    assert torch.equal(whole.depth_mm, render_depth(batch, faces, K, SIZE).depth_mm)
    crop = render_depth(batch, faces, K, SIZE, crop_ltrb=(10, 4, 33, 30))
    assert torch.equal(crop.depth_mm, whole.depth_mm[:, 4:30, 10:33])
    wider = render_depth(batch, faces, K, SIZE, crop_ltrb=(-5, -6, 60, 50))
    assert torch.equal(wider.depth_mm[:, 6 : 6 + SIZE[1], 5 : 5 + SIZE[0]], whole.depth_mm)
    cameras = torch.stack((K, K, K * torch.tensor([[2.0], [2.0], [1.0]])))
    assert torch.equal(render_depth(batch, faces, cameras, SIZE).depth_mm[:2], whole.depth_mm[:2])


def test_pixel_centres_are_whole_numbers() -> None:
    """A square whose edges lie a tenth of a pixel inside and outside of pixel centres covers exactly those centres."""
    eye = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    square = torch.tensor([[2.9, 3.9, 1], [6.1, 3.9, 1], [6.1, 8.1, 1], [2.9, 8.1, 1]], dtype=torch.float64)
    seen = render_depth(square, torch.tensor([[0, 1, 2], [0, 2, 3]]), eye, (12, 12)).mask[0]
    assert torch.nonzero(seen.any(0)).flatten().tolist() == [3, 4, 5, 6]
    assert torch.nonzero(seen.any(1)).flatten().tolist() == [4, 5, 6, 7, 8]
    assert seen[4:9, 3:7].all()


def test_ties_and_empty_pictures() -> None:
    triangle = torch.tensor([[-50.0, -50, 100], [50, -50, 100], [0, 50, 100]])
    twice = render_depth(triangle, torch.tensor([[0, 1, 2], [0, 1, 2]]), K, SIZE)
    assert set(twice.face.unique().tolist()) == {-1, 0}
    for verts in (triangle - torch.tensor([0.0, 0, 300]), triangle + torch.tensor([9000.0, 0, 0])):
        seen = render_depth(verts, torch.tensor([[0, 1, 2]]), K, SIZE)
        assert not seen.mask.any()
        assert seen.depth_mm.abs().max() == 0


def test_refuses_what_cannot_be_rendered() -> None:
    verts, faces = torch.rand(5, 3), torch.tensor([[0, 1, 2]])
    for arguments, message in (
        ((verts[:, :2], faces, K, SIZE), "verts_mm must have shape"),
        ((verts, faces[0], K, SIZE), "faces must have shape"),
        ((verts, faces, K[:2], SIZE), "K must have shape"),
        ((verts, faces, K * 2, SIZE), "last row of K"),
        ((verts, faces + 3, K, SIZE), "faces must index 5 vertices, got 3 to 5"),
        ((verts * torch.nan, faces, K, SIZE), "not finite"),
        ((verts, faces, K, (0, 10)), "nothing to render"),
    ):
        with pytest.raises(DataError, match=message):
            render_depth(*arguments)


def test_shading_lights_the_side_that_faces_the_light() -> None:
    verts, faces = sphere(60, (0, 0, 300), rings=20)
    outward = torch.nn.functional.normalize(verts - torch.tensor([0.0, 0, 300]), dim=-1)
    normals = vertex_normals(verts[None], faces)[0]
    assert float((normals * outward).sum(-1).min()) > 0.99
    seen = render_depth(verts, faces, K, SIZE)
    colors = torch.tensor([0.8, 0.5, 0.4]).expand(len(verts), 3)
    background = noise_background(SIZE, np.random.default_rng(0))
    picture = shade(seen, verts, faces, colors, background=background, light=(-1, 0, -0.3))[0].astype(int)
    mask = seen.mask[0].numpy()
    assert np.array_equal(picture[~mask], background[~mask])
    row = int(K[1, 2])
    columns = np.flatnonzero(mask[row])
    left, right = picture[row, columns[2]], picture[row, columns[-3]]
    assert left[0] > right[0] + 60, "the light comes from the left"
    assert left[0] > left[2], "reddish"
    black = shade(seen, verts, faces, colors)[0]
    assert black[~mask].max() == 0
    with pytest.raises(DataError, match="background must have shape"):
        shade(seen, verts, faces, colors, background=background[1:])


def test_colors_and_backgrounds_differ_by_seed_and_repeat() -> None:
    rest = np.random.default_rng(1).normal(size=(50, 3))
    first, again, other = (skin_colors(rest, np.random.default_rng(s)) for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (first[:, 0] > first[:, 2]).all()
    picture = noise_background((40, 30), np.random.default_rng(2))
    assert picture.shape == (30, 40, 3)
    assert picture.std() > 5


@pytest.mark.parametrize("mesh", [box_mesh((20, 40, 60)), cylinder_mesh(15, 50, sides=24)])
def test_objects_are_closed_and_face_outwards(mesh: tuple[np.ndarray, np.ndarray]) -> None:
    verts, faces = mesh
    edges = {(a, b) for f in faces.tolist() for a, b in zip(f, f[1:] + f[:1], strict=True)}
    assert len(edges) == 3 * len(faces)
    assert all((b, a) in edges for a, b in edges)
    a, b, c = verts[faces].transpose(1, 0, 2)
    volume = float((a * np.cross(b, c)).sum() / 6)
    assert volume > 0
    assert np.isclose(volume, 48000 if len(verts) == 8 else np.pi * 15**2 * 50, rtol=0.02)
    both_verts, both_faces = join_meshes(mesh, mesh)
    assert both_faces[len(faces) :].min() == len(verts)
    assert len(both_verts) == 2 * len(verts)
