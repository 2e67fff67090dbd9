"""The self-organising map of SO-HandNet: its grid, where its nodes start, and its training on point clouds.

A map is a grid of side × side nodes (8 × 8 in the paper); node m sits at row m // side, column m % side. It starts from
positions that repel one another within a box (:func:`potential_field`) and is trained once per frame
(:func:`train_som`), before anything else sees the frame.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import DataError

from .kernels import ops

TABLE = Path(__file__).with_name("som_8x8.txt")
SEED = 2017  # of the original's first positions
FIELD_STEPS, FIELD_STEP = 100, 0.01
RATE, WIDTH = 0.5, 0.4  # of the map at the start; both fall as 1 / (1 + 2 t / ROUNDS)
WARM_UP, ROUNDS = 20, 60  # updates at t = 0, then one for each t = 0 .. 59


def grid_side(nodes: int) -> int:
    """Side of the square grid of that many nodes.

    Raises:
        DataError: when it is not a square from 1 to 1024.
    """
    side = round(nodes**0.5) if 0 < nodes <= 1024 else 0
    if side * side != nodes or side == 0:
        raise DataError(f"nodes of the map: expected a square number from 1 to 1024, got {nodes}", remedy="take 64")
    return side


def potential_field(nodes: int) -> NDArray[np.float64]:
    """Start positions (nodes, 3) in about [-1, 1]: nodes that repel one another and are drawn to the centre (spec 2.2).

    The force on a node is the sum over all others of (x_j - x_k) / (|x_j - x_k| + 1e-5)^3, less x nodes / 1.5 in every
    coordinate of at least 0.01. At the end the nodes are sorted into rows by x and each row by y. Up to 8 × 8 every
    machine gets the same numbers to 3e-8; larger grids are chaotic, where the last bits of a sum decide.

    Raises:
        DataError: when the number is not a square from 1 to 1024.
    """
    side = grid_side(nodes)
    x = np.random.RandomState(SEED).rand(nodes, 3) * 2.0 - 1.0  # the published table comes from this old generator
    for _ in range(FIELD_STEPS):
        apart = x[:, None] - x
        distance = np.sqrt((apart**2).sum(axis=2, keepdims=True))
        force = (apart / (distance + 1e-5) ** 3).sum(axis=1)
        force -= np.where(np.abs(x) >= 0.01, x * nodes / 1.5, 0.0)
        x = x + FIELD_STEP * force
    rows = x[np.argsort(x[:, 0], kind="stable")].reshape(side, side, 3)
    order = np.argsort(rows[..., 1], axis=1, kind="stable")
    return np.take_along_axis(rows, order[..., None], axis=1).reshape(nodes, 3)


@cache
def initial_nodes(nodes: int = 64) -> Tensor:
    """Start positions (3, nodes) float32: the table that is shipped for 64 nodes, computed for other numbers.

    Raises:
        DataError: when the number is not a square from 1 to 1024.
    """
    table = np.loadtxt(TABLE) if nodes == 64 else potential_field(nodes)
    return torch.from_numpy(table.T.astype(np.float32))


@cache
def schedule(side: int) -> tuple[Tensor, Tensor]:
    """Weight factors (80, side) and learning rates (80,) of the updates, float32.

    The weight of node i for node j is exp(-d^2 / (2 pi width^2)), d their distance on the grid (pi stands in the
    original, spec 2.2): a product of one factor for the rows and one for the columns.
    """
    t = np.concatenate([np.zeros(WARM_UP), np.arange(ROUNDS)])
    q = 1.0 + 2.0 * t / ROUNDS
    factors = np.exp(-(np.arange(side) ** 2) / (2.0 * np.pi * (WIDTH / q[:, None]) ** 2))
    return torch.from_numpy(factors.astype(np.float32)), torch.from_numpy((RATE / q).astype(np.float32))


def train_som(cloud: Tensor, nodes: int = 64) -> Tensor:
    """Nodes (B, 3, nodes) of the maps of a batch of clouds (B, 3, N) after 80 updates, without gradients.

    A row of the result does not depend on the other clouds of the batch. A graph for torch.compile takes
    :func:`.ops.batch_som` with the tables of :func:`initial_nodes` and :func:`schedule` from outside.

    Args:
        cloud: (B, 3, N), the normalised positions of the frames, N of at least 1.
        nodes: a square number from 1 to 1024.

    Raises:
        DataError: for another shape, a number that is not a square, or clouds without points.
    """
    side = grid_side(nodes)
    if cloud.dim() == 3 and cloud.shape[2] == 0:
        raise DataError(f"cloud: expected at least one point in each cloud, got {tuple(cloud.shape)}")
    return ops.batch_som(cloud, initial_nodes(nodes), *schedule(side))
