"""Options of the synthetic pretraining set as a dataclass (no heavy import: ``--help`` is quick)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class SynthesizeConfig:
    """What is rendered and where it goes.

    Args:
        out: folder of the set; train/ and test/ are written into it
        mano: MANO_RIGHT.pkl, or an .npz made by python -m shared.mano_import, or the word standin
        meshes: folder of meshes in MANO's topology with coloured vertices (v x y z r g b); empty paints procedural skin
        scans: folder of raw coloured scans with the file names of the registered --meshes, which then need no colours
        backgrounds: folder of pictures, resized to the picture's shape; picture i takes background i modulo their
            number; empty paints procedural ones
        train: pictures of the training split [pictures]
        test: pictures of the test split [pictures]
        pose_range: largest absolute value of the six pose coefficients
        facing: largest turn about each of the picture's three axes away from a palm that faces the camera with its
            fingers up, instead of any rotation; 0 draws any rotation, as the original [degrees]
        spread: how much of the room around a hand in the middle of the picture it may move through, to each side; 1 is
            the original's, anywhere in the picture [0 to 1]
        shape_range: largest absolute value of the ten shape coefficients (the original's 0.03 is nearly the mean shape)
        workers: processes; the files do not depend on it [processes]
        seed: the same seed gives the same files
        resume: continue a set that was begun with the same options
        import_old: folder of a set of the original programs (numbered PNGs and gt.pickle), brought into this form
            instead of rendering one; without its train/ and test/ the last --test pictures become the test split
    """

    out: str = ""
    mano: str = ""
    meshes: str = ""
    scans: str = ""
    backgrounds: str = ""
    train: int = 18000
    test: int = 2000
    pose_range: float = 2.0
    facing: float = 0.0
    spread: float = 1.0
    shape_range: float = 0.03
    workers: int = 2
    seed: int = 0
    resume: bool = False
    import_old: str = ""
