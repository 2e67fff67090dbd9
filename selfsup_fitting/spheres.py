"""The 17 bones and 41 spheres of the hand: names, order, groups, and the figures of the author's hand.

Facts of ``mesh/preprocess.py``, ``mesh/joint_order.py`` and ``mesh/bone_length.py`` of the released code. Spheres are
numbered bone by bone; millimetres, offsets from the bone's rest origin along the axes of model space.
"""

from __future__ import annotations

FINGERS = ("index", "middle", "ring", "little", "thumb")  # order of the pose vector and of the bones
_FILE_NUMBER = {"index": 4, "middle": 3, "ring": 2, "little": 1, "thumb": 5}  # "finger4" is the index

BONES = (
    "metacarpals",
    "carpals",
    *(f"finger{_FILE_NUMBER[finger]}joint{k}" for finger in FINGERS for k in (1, 2, 3)),
)
PARENTS = (-1, 0, *(p for first in range(2, 17, 3) for p in (0, first, first + 1)))

POSE_NAMES = (
    *(f"palm rotation {axis}" for axis in "xyz"),
    *(f"palm translation {axis}" for axis in "xyz"),
    *(f"{finger} {what}" for finger in FINGERS for what in ("abduction", "flexion 1", "flexion 2", "flexion 3")),
)

# (bone, offset x, y, z, radius, NYU annotation or -1)
REFERENCE_SPHERES: tuple[tuple[int, float, float, float, float, int], ...] = (
    (0, -5.80, 17.69, 3.71, 20.0, 30),
    (0, -5.80, -17.69, 3.71, 20.0, 31),
    (0, -85.09, 0.0, 0.0, 22.4, 32),
    (0, -75.81, 23.75, 11.60, 22.4, 33),
    (0, -57.19, 0.0, 0.0, 24.0, 34),
    (0, 0.0, 0.0, 0.0, 22.4, 35),
    (0, -23.20, 0.0, 0.0, 20.0, -1),
    (0, -23.20, 11.60, 5.80, 20.0, -1),
    (0, -46.40, 17.40, 5.80, 20.0, -1),
    (0, -75.81, -17.69, 3.48, 20.0, -1),
    (0, -55.45, -17.69, 2.90, 20.0, -1),
    (2, -32.45, -2.03, 1.83, 16.0, 22),
    (2, -1.88, -2.35, 0.0, 16.8, 23),
    (3, -14.41, 0.46, 9.98, 13.6, 20),
    (3, 0.0, 1.94, 0.72, 14.4, 21),
    (4, -19.89, 0.70, 19.98, 11.2, 18),
    (4, -8.35, 1.71, 10.96, 12.8, 19),
    (5, -24.30, 3.28, 2.55, 16.0, 16),
    (5, -0.55, 0.03, -0.49, 16.8, 17),
    (6, -9.66, 1.28, 11.89, 14.4, 14),
    (6, 1.68, 3.16, 3.10, 16.0, 15),
    (7, -9.11, -1.65, 16.18, 12.0, 12),
    (7, -1.13, 2.17, -0.06, 13.6, 13),
    (8, -20.33, -1.60, 16.30, 15.2, 10),
    (8, -0.12, -3.68, 11.28, 16.0, 11),
    (9, -8.35, -0.26, 4.96, 13.6, 8),
    (9, 4.09, 0.23, -1.74, 14.4, 9),
    (10, -15.17, -6.58, 23.00, 9.6, 6),
    (10, -7.31, -1.42, 7.60, 11.2, 7),
    (11, -18.53, 1.83, 12.24, 13.6, 4),
    (11, 0.67, -1.36, 7.40, 16.8, 5),
    (12, -7.54, 1.77, 11.45, 11.2, 2),
    (12, 1.71, 0.09, 3.57, 12.8, 3),
    (13, -7.86, -0.49, 16.67, 8.0, 0),
    (13, 0.12, 0.41, 6.99, 9.6, 1),
    (14, -26.01, -19.89, 6.67, 22.4, 28),
    (14, 0.0, 0.0, 0.0, 22.4, 29),
    (15, -19.78, 0.99, -1.01, 16.0, 26),
    (15, -1.94, 3.39, -2.55, 20.0, 27),
    (16, -25.06, 4.49, 6.03, 13.6, 24),
    (16, -3.83, 5.51, 2.20, 15.2, 25),
)
NUM_SPHERES = len(REFERENCE_SPHERES)
SPHERE_BONES = tuple(row[0] for row in REFERENCE_SPHERES)
REFERENCE_RADII_MM = tuple(row[4] for row in REFERENCE_SPHERES)

# Loss groups: palm, then five fingers of six spheres; 0 is the palm, 1 to 5 are FINGERS.
GROUPS = (*(0 for _ in range(11)), *(1 + i // 6 for i in range(30)))
PALM = tuple(range(11))

# NYU's 36 annotations, in the order of its file.
NYU_JOINTS = (
    *(f"F{finger}_KNU{k}_{end}" for finger in (1, 2, 3, 4) for k in (3, 2, 1) for end in "AB"),
    *(f"TH_KNU{k}_{end}" for k in (3, 2, 1) for end in "AB"),
    *(f"PALM_{k}" for k in range(1, 7)),
)
SPHERE_TO_NYU = tuple(row[5] for row in REFERENCE_SPHERES)  # -1 where NYU has no annotation
NYU_CENTER = 32  # PALM_3, the middle of the crops

# The 14 joints that papers report, and the spheres that stand for them (same order). The author's stand-alone script
# leaves the two sides of the wrist out: EVAL_NYU_12.
EVAL_NYU = (0, 3, 6, 9, 12, 15, 18, 21, 24, 25, 27, 30, 31, 32)
EVAL_SPHERES = tuple(SPHERE_TO_NYU.index(joint) for joint in EVAL_NYU)
EVAL_NYU_12 = tuple(joint for joint in EVAL_NYU if joint not in (30, 31))
EVAL_SPHERES_12 = tuple(SPHERE_TO_NYU.index(joint) for joint in EVAL_NYU_12)

# Pairs of spheres of one bone whose distance the bone-length loss holds, with the author's lengths (0.9 x rest).
_PAIRS_AND_LENGTHS: tuple[tuple[int, int, float], ...] = (
    (3, 2, 25.2127),
    (2, 9, 18.2495),
    (3, 8, 27.5742),
    (8, 2, 38.5323),
    (2, 4, 25.1082),
    (2, 10, 31.1738),
    (9, 10, 18.3296),
    (8, 4, 19.1508),
    (4, 10, 16.2093),
    (8, 7, 21.5226),
    (7, 4, 32.7405),
    (4, 6, 30.5892),
    (6, 10, 33.2060),
    (7, 6, 11.6723),
    (0, 5, 17.0847),
    (5, 1, 17.0847),
    (7, 0, 16.6975),
    (7, 5, 23.9210),
    (6, 5, 20.8800),
    (6, 1, 22.5804),
    (11, 12, 27.5600),
    (13, 14, 15.4712),
    (15, 16, 13.2147),
    (17, 18, 21.7482),
    (19, 20, 13.0217),
    (21, 22, 16.6437),
    (23, 24, 18.8377),
    (25, 26, 12.7247),
    (27, 28, 16.2384),
    (29, 30, 18.0493),
    (31, 32, 11.0458),
    (33, 34, 11.3210),
    (35, 36, 30.0785),
    (37, 38, 16.2560),
    (39, 40, 19.4348),
)
BONE_PAIRS = tuple((a, b) for a, b, _ in _PAIRS_AND_LENGTHS)
REFERENCE_LENGTHS_MM = tuple(length for _, _, length in _PAIRS_AND_LENGTHS)
MEAN_SCALE = 0.9  # of the random axis scale: a hand's own reference lengths are MEAN_SCALE x its rest distances
