"""One reader a data set. ``shared.datasets.<name>.open(root, split, ...)`` gives a lazy, picklable sequence of Frames."""

from shared.datasets.base import Frame

__all__ = ["Frame"]
