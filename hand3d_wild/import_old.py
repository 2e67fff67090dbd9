"""Synthetic sets of the original programs in our form: ``python -m hand3d_wild.synthesize --import_old DIR``.

    DIR/%d.png, DIR/gt.pickle[, DIR/labels.pickle]     as ``create_synthetic_data`` wrote them (the last become the test
                                                       split), or
    DIR/train/..., DIR/test/...                        as ``split_syn_dataset`` left them

``gt.pickle`` lists for each picture 1 (valid), scale, u, v, rotation, pose and shape; ``labels.pickle`` 16 joints. The
pickles are read without running anything of them (:mod:`shared.safe_io`). Pictures keep the contrast that their writer
gave them (README, ledger 5); masks are drawn from the numbers.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import DataError, MissingFileError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hand3d_wild.synthesize_config import SynthesizeConfig

    Float = NDArray[np.float64]

KINEMATIC = (0, 1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19)  # joints of "wild" in labels.pickle: no fingertips
_MAX_PICTURES = 100_000
_MAX_OPCODES = 40 * _MAX_PICTURES  # about 33 an array
_AGREE = 0.5  # pixels between labels.pickle and the hand of the numbers; the same hand agrees to a thousandth


def read_rows(path: Path, length: int, what: str) -> Float:
    """(N, length) numbers of a pickled list of arrays.

    Raises:
        MissingFileError: no such file.
        DataError: refused or damaged (see :func:`shared.safe_io.load_restricted_pickle`), or not such a list.
    """
    import numpy as np

    from shared.safe_io import load_restricted_pickle

    content = load_restricted_pickle(path, max_opcodes=_MAX_OPCODES)
    try:
        rows = np.array(content, np.float64)
    except (TypeError, ValueError):
        rows = np.empty(0)
    if rows.ndim != 2 or rows.shape[1] != length or not 0 < len(rows) <= _MAX_PICTURES or not np.isfinite(rows).all():
        got = f"a list of {len(content)}" if isinstance(content, list) else type(content).__name__
        raise DataError(
            f"expected a list of 1 to {_MAX_PICTURES:,} arrays of {length} finite numbers ({what}), got {got}",
            path=path,
            remedy="give the folder that create_synthetic_data or split_syn_dataset wrote",
        )
    return rows


def find_parts(folder: Path, test: int) -> list[tuple[Path, Float, list[int]]]:
    """(folder, its numbers (N, 23), chosen pictures) of the training and the test split.

    Raises:
        MissingFileError: no ``gt.pickle`` in the folder or in its ``train`` and ``test``.
        DataError: a file that cannot be used; fewer pictures than the test split should have.
    """
    if not folder.is_dir():
        raise MissingFileError("--import_old: no such folder", path=folder, remedy="check the path")
    if (folder / "gt.pickle").is_file():
        rows = read_rows(folder / "gt.pickle", 23, "valid, scale, u, v, rotation, pose, shape")
        train = len(rows) - test
        if train < 1:
            raise DataError(
                f"holds {len(rows)} pictures, the last {test} of them should become the test split",
                path=folder,
                remedy="give a smaller --test",
            )
        return [(folder, rows, list(range(train))), (folder, rows, list(range(train, len(rows))))]
    parts = []
    for split in ("train", "test"):
        if not (folder / split / "gt.pickle").is_file():
            raise MissingFileError(
                f"no gt.pickle here, and none in {split}/",
                path=folder,
                remedy="give the folder that create_synthetic_data or split_syn_dataset wrote",
            )
        rows = read_rows(folder / split / "gt.pickle", 23, "valid, scale, u, v, rotation, pose, shape")
        parts.append((folder / split, rows, list(range(len(rows)))))
    return parts


def import_old(options: SynthesizeConfig, *, progress: bool = False) -> dict[str, int]:
    """Brings an old set into ours; returns the pictures per split. An interrupted import is begun again.

    Raises:
        MissingFileError, DataError: from :func:`find_parts`; a folder that is taken; numbers of another hand model;
            not one picture that can be used.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    from hand3d_wild.decoder import Decoder
    from hand3d_wild.render import render
    from hand3d_wild.synthesize import FORMAT, SIZE, SPLITS, VERSION, _write_png, make_folders, read_manifest
    from shared.datasets.images import read_rgb
    from shared.mano import load_mano
    from shared.safe_io import atomic_path, atomic_write_text

    out, mano = Path(options.out), load_mano(options.mano)
    if (out / "manifest.json").is_file():
        begun = read_manifest(out)
        if begun.get("complete") or "import_old" not in begun["options"]:
            raise DataError("this folder holds a set already", path=out, remedy="give another --out")
    parts = find_parts(Path(options.import_old), options.test)
    decoder = Decoder(mano, torch.float64)
    digest = hashlib.sha256()
    for folder, rows, chosen in parts:
        digest.update(rows[chosen].tobytes())
        check_labels(folder, rows, decoder)
    described: dict[str, Any] = {"import_old": digest.hexdigest()}
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "complete": False,
        "options": {**described, "train": 0, "test": 0},
        "mano": {"source": mano.source, "sha256": mano.sha256},
    }
    make_folders(out)
    atomic_write_text(out / "manifest.json", json.dumps(manifest, indent=1) + "\n")

    skipped: list[dict[str, str]] = []
    counts: dict[str, int] = {}
    colours = np.zeros((len(mano.v_template), 1), np.float32)
    for split, (folder, rows, chosen) in zip(SPLITS, parts, strict=True):
        kept: list[int] = []
        found: dict[str, list[Any]] = {"params": [], "joints_2d": [], "joints_m": []}
        for number in tqdm(chosen, desc=split, unit=" pictures", disable=not progress, mininterval=0.5):
            try:
                if rows[number, 0] != 1 or rows[number, 1] <= 0:
                    raise DataError("its numbers are marked as not valid, or its scale is not positive")
                picture = read_rgb(folder / f"{number}.png", expected_size=(SIZE, SIZE))
            except DataError as error:
                skipped.append({"split": split, "name": f"{number}.png", "problem": str(error)})
                continue
            with torch.no_grad():
                hand = decoder(torch.from_numpy(rows[number, None, 1:]))
            uvz = torch.cat((hand.verts_2d, hand.verts_m[..., 2:]), -1)[0].numpy()
            image, mask = (out / split / kind / f"{len(kept):06d}.png" for kind in ("images", "masks"))
            _write_png(mask, render(uvz, mano.faces, colours, SIZE).mask)
            _write_png(image, picture)
            found["params"].append(rows[number, 1:])
            found["joints_2d"].append(hand.joints_2d[0].numpy())
            found["joints_m"].append(hand.joints_m[0].numpy())
            kept.append(number)
        arrays = {
            name: np.array(found[name]).reshape(len(kept), *shape)
            for name, shape in (("params", (22,)), ("joints_2d", (21, 2)), ("joints_m", (21, 3)))
        }
        with atomic_path(out / split / "numbers.npz") as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, index=np.array(kept, np.int64), **arrays)
        counts[split] = len(kept)
    if not counts["train"]:
        first = skipped[0]
        raise DataError(f"not one picture could be used; {first['name']}: {first['problem']}", path=options.import_old)
    manifest |= {"options": {**described, **counts}, "skipped": skipped, "complete": True}
    atomic_write_text(out / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    if skipped:
        print(f"skipped: {len(skipped)} pictures (listed in manifest.json)")
        for item in skipped[:5]:
            print(f"  {item['split']}/{item['name']}: {item['problem']}")
    return counts


def check_labels(folder: Path, rows: Float, decoder: Any) -> None:
    """Whether the joints of ``labels.pickle``, where there is one, are those of the numbers.

    Raises:
        DataError: another count, or joints of another hand model.
    """
    import numpy as np
    import torch

    path = folder / "labels.pickle"
    if not path.is_file():
        return
    labels = read_rows(path, 32, "16 joints").reshape(-1, 16, 2)
    if len(labels) != len(rows):
        raise DataError(f"holds {len(labels)} pictures, gt.pickle beside it {len(rows)}", path=path)
    some = np.linspace(0, len(rows) - 1, min(64, len(rows))).astype(int)
    with torch.no_grad():
        joints = decoder(torch.from_numpy(rows[some, 1:])).joints_2d[:, list(KINEMATIC)].numpy()
    far = float(np.median(np.linalg.norm(joints - labels[some], axis=-1)))
    if not far < _AGREE:
        raise DataError(
            f"its joints are {far:.1f} pixels from those of {decoder.source} with the numbers of gt.pickle",
            path=path,
            remedy="give the hand model that the set was made with: --mano MANO_RIGHT.pkl",
        )
