"""Random hand poses as the author's synthesiser draws them (``dataset/joint_angle.py``), a whole batch at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Flexion patterns of a finger; the first two are what "free" fingers may also be.
STRAIGHT, OPEN, HALF_OPEN, PINCHING, CLOSED = range(5)
FREE = (STRAIGHT, OPEN, HALF_OPEN)
BENT = (PINCHING, CLOSED)
MODES = 10  # hand patterns of the released code, equally likely

# Which patterns each finger (index, middle, ring, little) may take, per hand pattern. The eleventh is written in the
# released code too, under a number that is taken already, and so never drawn there: ``extra_mode``.
_CHOICES: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((STRAIGHT,),) * 4,
    ((OPEN,),) * 4,
    ((HALF_OPEN,),) * 4,
    ((PINCHING,),) * 4,
    ((CLOSED,),) * 4,
    (FREE, BENT, BENT, BENT),
    (BENT, BENT, BENT, FREE),
    (FREE, FREE, BENT, BENT),
    (BENT, FREE, FREE, FREE),
    ((STRAIGHT, OPEN, HALF_OPEN, PINCHING, CLOSED),) * 4,
    (FREE, BENT, BENT, FREE),
)
# Degrees (low, high) of the angles a, b, c from which the three bent patterns are built.
_CURL_DEGREES = {HALF_OPEN: ((0, 30), (60, 90), (60, 90)), PINCHING: ((60, 90), (5, 35), (5, 35))}
_CURL_DEGREES[CLOSED] = ((60, 90), (60, 90), (60, 90))
_FLAT_RADIANS = {OPEN: ((-0.1, 0.15), (-0.1, 0.3), (-0.1, 0.24)), STRAIGHT: ((-0.25, 0), (-0.4, 0), (-0.34, 0))}
REST_BEND = (0.2, 0.4, 0.34)  # radians by which the rest hand is bent already at the three joints of a finger

_J = math.radians(10)  # jitter of the angles a, b, c


def _spans() -> tuple[tuple[float, float], ...]:
    turn, quarter = 3.14, math.radians(90) + _J
    flexions = (
        (-0.25, -0.2 + 1.2 * quarter),
        (-0.4, -0.4 + 1.4 * quarter),
        (-0.34 - 1.7 * math.radians(5), -0.34 + 1.7 * quarter),
    )
    e = math.radians(5)
    low, high = -0.35 / 1.55 - e, 0.65 / 1.55 + e
    abductions = [(min(k * low, k * high), max(k * low, k * high)) for k in (1.55, 0.75, -0.75, -2.2)]
    fingers = [span for abduction in abductions for span in (abduction, *flexions)]
    thumb = [(-0.5, 0.5), (-0.25, 0.7), (-0.0625, 0.175), (-1.7, 0.3)]
    palm = [(-turn, turn), (-turn, 0.0), (-turn, turn), (-15.0, 15.0), (-15.0, 15.0), (-35.0, 15.0)]
    return (*palm, *fingers, *thumb)


USUAL_RANGES = _spans()  # lowest and highest value that each number of a sampled pose can take; radians, mm


def sample_poses(count: int, generator: torch.Generator, *, extra_mode: bool = False) -> Tensor:
    """(count, 26) float32 poses: radians, translation in mm (spec: released ``dataset/joint_angle.py``).

    Args:
        count: how many.
        generator: source of all draws; the same state gives the same poses.
        extra_mode: also draw the eleventh hand pattern (index and little free), unreachable in the released code.
    """

    def uniform(low: float | Tensor, high: float | Tensor, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    pose = torch.empty(count, 26)
    ranges = torch.tensor(USUAL_RANGES[:6])
    pose[:, :6] = uniform(ranges[:, 0], ranges[:, 1], 6)

    spread = (uniform(0.0, 1.0, 1) - 0.35) / 1.55 + uniform(-math.radians(5), math.radians(5), 4)
    flexion = _flexion(count, generator, extra_mode)
    pose[:, 6:22] = torch.cat(((spread * torch.tensor([1.55, 0.75, -0.75, -2.2]))[..., None], flexion), 2).flatten(1)

    bend = torch.where(torch.rand(count, generator=generator) < 0.5, uniform(-0.25, 0.10), uniform(0.1, 0.7))
    pose[:, 22] = uniform(-0.5, 0.5)
    pose[:, 23] = bend
    pose[:, 24] = 0.25 * bend
    pose[:, 25] = uniform(-1.7, 0.3)
    return pose


def _flexion(count: int, generator: torch.Generator, extra_mode: bool) -> Tensor:
    """(count, 4, 3) radians: the hand pattern, from it each finger's pattern, from that its three angles."""
    modes = torch.randint(MODES + extra_mode, (count,), generator=generator)
    sizes = torch.tensor([[len(choices) for choices in mode] for mode in _CHOICES])  # (11, 4)
    table = torch.tensor([[(choices * 5)[:5] for choices in mode] for mode in _CHOICES])  # (11, 4, 5)
    pick = (torch.rand(count, 4, generator=generator) * sizes[modes]).long()
    pattern = table[modes].gather(2, pick[..., None])[..., 0]  # (count, 4)

    low, high = torch.zeros(5, 3), torch.zeros(5, 3)
    for kind, spans in _CURL_DEGREES.items():
        low[kind], high[kind] = torch.deg2rad(torch.tensor(spans, dtype=torch.float32)).unbind(1)
    for kind, flat in _FLAT_RADIANS.items():
        low[kind], high[kind] = torch.tensor(flat).unbind(1)
    drawn = low[pattern] + (high - low)[pattern] * torch.rand(count, 4, 3, generator=generator)
    jitter = (2 * torch.rand(count, 4, 3, generator=generator) - 1) * _J
    a, b, c = (drawn + jitter).unbind(-1)
    bent = torch.stack((a + 0.2 * b, 0.2 * a + b + 0.2 * c, 0.7 * b + c), -1) - torch.tensor(REST_BEND)
    return torch.where((pattern >= HALF_OPEN)[..., None], bent, drawn)
