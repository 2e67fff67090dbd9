"""The synthetic set as training samples: cut, resize, noise, and the 22 numbers that go with the part that is shown.

The original's augmentation (its pretraining loader): 306 x 306 of the 320 x 320 picture from a start of 0..10, resized
with OpenCV's bilinear rule, Gaussian noise of standard deviation 1 of 255. Its translations are shifted and then not
scaled; here they are, unless ``reference_translation`` asks for the original's.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hand3d_wild.config import HeatmapOptions
from hand3d_wild.crop import CUT, MIDDLE, NETWORK, cut_points, cut_rgb
from hand3d_wild.data import cut_maps, noise_pool, with_noise
from hand3d_wild.synthesize import SIZE, paths_of, read_manifest
from shared.errors import DataError, MissingFileError
from shared.safe_io import atomic_path, load_npz
from shared.training import sample_rng

_STARTS = 11  # 0..10, both included


def cut_params(
    params: ArrayLike, start: tuple[float, float], *, reference_translation: bool = False
) -> NDArray[np.float64]:
    """(22,) numbers of a 320-pixel picture in the 256-pixel frame of a cut that begins at ``start`` (u, v).

    Args:
        params: (22,) scale and translation in pixels of the 320-pixel picture.
        start: of the cut.
        reference_translation: subtract the start and do not scale, as the original does (off by up to 50 pixels).
    """
    cut = np.array(params, np.float64)
    factor = NETWORK / CUT
    cut[0] *= factor
    cut[1:3] = (cut[1:3] - start) * (1 if reference_translation else factor)
    return cut


class SynthSamples:
    """A split of a synthetic set. ``samples[(epoch, index)]`` is augmented by (seed, epoch, index); ``samples[index]``
    is the middle of the picture without noise.

    A sample: ``name``, ``image`` (S, S, 3 or 24) float32 in 0..1, ``params`` (22,) float32 and ``joints_2d`` (21, 2)
    float32 in the 256-pixel frame.

    Args:
        root: folder that ``python -m hand3d_wild.synthesize`` wrote.
        split: ``"train"`` or ``"test"``.
        size: edge of the network's input, pixels.
        form: ``"rgb"`` or ``"heatmaps"``, whose maps are made of the joints.
        seed: of the augmentation.
        noise: standard deviation of the pixel noise in training, of 255.
        heatmaps: how much the maps' joints are shaken in training.
        reference_translation: see :func:`cut_params`.
        cache: folder for a memory-mapped file of decoded pictures, 0.3 MB each, made on first use; empty decodes every
            picture each time.
        limit: this many pictures, evenly spread; 0 for all.

    Raises:
        MissingFileError: no such set or split; pictures that are missing (some are named).
        DataError: the set is not complete, or damaged.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        *,
        size: int = NETWORK,
        form: str = "rgb",
        seed: int = 0,
        noise: float = 1.0,
        heatmaps: HeatmapOptions | None = None,
        reference_translation: bool = False,
        cache: str | Path = "",
        limit: int = 0,
    ) -> None:
        if split not in ("train", "test"):
            raise DataError(f'split must be "train" or "test", got {split!r}')
        self.root, self.split, self.size, self.seed, self.noise = Path(root), split, size, seed, noise
        self.heatmaps = (heatmaps or HeatmapOptions()) if form == "heatmaps" else None
        self.reference_translation = reference_translation
        self.manifest = read_manifest(root)
        if not self.manifest.get("complete"):
            raise DataError(
                "this synthetic set is not complete",
                path=root,
                remedy="finish it with python -m hand3d_wild.synthesize --resume and its options",
            )
        numbers = _numbers(self.root / split / "numbers.npz")
        count, train = len(numbers["params"]), int(self.manifest["options"]["train"])
        chosen = np.arange(count)
        if limit and limit < count:
            chosen = np.linspace(0, count - 1, limit).round().astype(np.int64)
        first = 0 if split == "train" else train
        self.paths = [paths_of(self.root, first + int(i), train)[0] for i in chosen]
        missing = [path.name for path in self.paths if not path.is_file()]
        if missing or not count:
            raise MissingFileError(
                f"{len(missing)} of {count} pictures are missing ({', '.join(missing[:5])})"
                if count
                else "the split holds no picture",
                path=self.root / split,
                remedy="finish the set with python -m hand3d_wild.synthesize --resume and its options"
                if missing
                else f"the set was made with --{split} 0",
            )
        self.params, self.joints_2d = numbers["params"][chosen], numbers["joints_2d"][chosen]
        self.pool = noise_pool(seed, size)
        self.cache = _open_cache(Path(cache), self.paths, self.manifest, split) if cache else None

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def summary(self) -> str:
        """One line for the log."""
        kept = ", decoded in a memory map" if self.cache is not None else ""
        return f"{self.split}: {len(self)} synthetic pictures of {self.manifest['mano']['source']}{kept}"

    def picture(self, index: int) -> NDArray[np.uint8]:
        """(320, 320, 3) RGB as rendered."""
        return self.cache[index] if self.cache is not None else read_picture(self.paths[index])

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Any]:
        rng, start, offset, noise = None, (int(MIDDLE), int(MIDDLE)), 0, 0.0
        if isinstance(key, tuple):
            rng = sample_rng(self.seed, *key)
            start = (int(rng.integers(_STARTS)), int(rng.integers(_STARTS)))
            offset, noise = int(rng.integers(len(self.pool) - 3 * self.size * self.size)), self.noise
        index = key[1] if isinstance(key, tuple) else key
        image = with_noise(cut_rgb(self.picture(index), start, size=self.size), noise, self.pool, offset)
        if self.heatmaps is not None:
            points, peaks = self.joints_2d[index].copy(), np.ones(21)
            if rng is not None:
                points += rng.normal(0, self.heatmaps.jitter, (21, 2))
                peaks = np.where(rng.uniform(size=21) < self.heatmaps.missing, 0, rng.uniform(0.4, 0.9, 21))
            image = np.concatenate((image, cut_maps(points, peaks, start, self.size)), -1)
        params = cut_params(self.params[index], start, reference_translation=self.reference_translation)
        return {
            "name": f"{self.split}/{self.paths[index].stem}",
            "image": image,
            "params": params.astype(np.float32),
            "joints_2d": cut_points(self.joints_2d[index], start).astype(np.float32),
        }

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch; pictures (B, C, S, S) float32 in channels-last memory."""
        import torch

        batch: dict[str, Any] = {"name": [sample["name"] for sample in samples]}
        for key in ("image", "params", "joints_2d"):
            batch[key] = torch.from_numpy(np.stack([sample[key] for sample in samples]))
        batch["image"] = batch["image"].permute(0, 3, 1, 2)
        return batch


def _numbers(path: Path) -> dict[str, NDArray[Any]]:
    arrays = load_npz(path)
    count = len(arrays["params"]) if "params" in arrays and arrays["params"].ndim else -1
    for name, shape in (("params", (22,)), ("joints_2d", (21, 2)), ("joints_m", (21, 3))):
        value = arrays.get(name)
        if value is None or value.shape != (count, *shape) or not np.isfinite(value).all():
            got = "none" if value is None else f"{value.shape}, or values that are not finite"
            raise DataError(
                f"expected {name} (N, {', '.join(map(str, shape))}) of finite numbers, got {got}",
                path=path,
                remedy="render the set again",
            )
    return arrays


def read_picture(path: Path) -> NDArray[np.uint8]:
    """(320, 320, 3) RGB of one PNG.

    Raises:
        MissingFileError, DataError: no such file, not readable, or of another size.
    """
    import cv2

    try:
        coded = np.fromfile(path, np.uint8)
    except FileNotFoundError:
        raise MissingFileError("no such picture", path=path) from None
    picture = cv2.imdecode(coded, cv2.IMREAD_COLOR) if len(coded) else None
    if picture is None:
        raise DataError(
            "cannot be read as a picture", path=path, remedy="delete it and run synthesize again with --resume"
        )
    if picture.shape != (SIZE, SIZE, 3):
        raise DataError(f"expected {SIZE} x {SIZE} pixels, got {picture.shape[1]} x {picture.shape[0]}", path=path)
    rgb: NDArray[np.uint8] = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
    return rgb


def _open_cache(folder: Path, paths: list[Path], manifest: dict[str, Any], split: str) -> NDArray[np.uint8]:
    """A memory map (N, 320, 320, 3) of the decoded pictures; made where there is none for this set."""
    described = json.dumps({key: manifest[key] for key in ("options", "mano")}, sort_keys=True)
    names = "\n".join(path.name for path in paths)
    key = hashlib.sha256(f"{described}\n{names}".encode()).hexdigest()[:16]
    path, shape = folder / f"{split}_{key}.npy", (len(paths), SIZE, SIZE, 3)
    if not path.is_file():
        with atomic_path(path) as temporary:
            store = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            for index, picture in enumerate(paths):
                store[index] = read_picture(picture)
            store.flush()
            del store
    try:
        cached: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"damaged ({error})", path=path, remedy="delete it; it is made again") from error
    if cached.shape != shape or cached.dtype != np.uint8:
        raise DataError(
            f"expected {shape} of uint8, got {cached.shape} of {cached.dtype}", path=path, remedy="delete it"
        )
    return cached
