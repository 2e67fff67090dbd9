"""HandOccNet as one ONNX file: a crop in; joints, vertices and MANO parameters out.

    python -m handoccnet.export --checkpoint best.pt --mano MANO_RIGHT.pkl --onnx hand.onnx

The file holds the MANO arrays as constants: it is licensed material like the MANO file itself, unless made with
``--mano standin``. ``--no-mano`` leaves the hand layer out; the file then ends at pose and shape and is free of it.
Writing needs the package onnxscript, the check afterwards onnxruntime.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import DataError, exit_on_error

if TYPE_CHECKING:
    from handoccnet.model import HandOccNet

OPSET = 18
OUTPUTS = ("joints_mm", "verts_mm", "pose", "betas", "joints_img", "gate")
TOLERANCES = {"joints_mm": 0.02, "verts_mm": 0.02, "pose": 1e-3, "betas": 1e-3, "joints_img": 1e-4, "gate": 1e-4}
"""Largest differences to torch that the check accepts: mm, mm, radians, -, fractions of the crop, -."""


def need(package: str) -> Any:
    """An imported package that only export uses.

    Raises:
        DataError: it is not installed; says how to get it.
    """
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DataError(
            f"export needs the package {package!r}, which is not installed ({error})",
            remedy="pip install onnx onnxscript onnxruntime",
        ) from error


def export_onnx(network: HandOccNet, path: str | Path, *, with_mano: bool = True) -> tuple[str, ...]:
    """Writes a trained network, its norms folded, for batches of any size; returns the names of its outputs.

    Args:
        network: trained; a copy is exported.
        path: file to write, complete or untouched.
        with_mano: False ends at ``pose`` and ``betas`` and leaves joints and vertices out.

    Raises:
        DataError: onnx or onnxscript is not installed.
    """
    import torch
    from torch import Tensor, nn

    from handoccnet.inference import simplify
    from shared.safe_io import atomic_path

    for package in ("onnx", "onnxscript"):
        need(package)
    outputs = OUTPUTS if with_mano else OUTPUTS[2:]

    class Exported(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = simplify(network).cpu()

        def forward(self, image: Tensor) -> tuple[Tensor, ...]:
            out = self.network(image)
            return tuple(out[name] for name in outputs)

    size = network.image_size
    batch = torch.export.Dim("batch", min=2)  # an example of one would be taken for a constant; the file takes one too
    with torch.no_grad():
        graph = torch.export.export(
            Exported().eval(), (torch.rand(2, 3, size, size),), dynamic_shapes={"image": {0: batch}}, strict=True
        )
        program = torch.onnx.export(
            graph, input_names=["image"], output_names=list(outputs), opset_version=OPSET, dynamo=True, verbose=False
        )
    assert program is not None
    with atomic_path(Path(path)) as temporary:
        program.save(str(temporary))
    return outputs


def check_onnx(network: HandOccNet, path: str | Path, *, batches: Sequence[int] = (1, 3)) -> dict[str, float]:
    """Runs an exported file with onnxruntime on random crops beside torch; the largest difference of each output.

    Raises:
        DataError: onnxruntime is not installed; a difference above :data:`TOLERANCES`.
    """
    import numpy as np
    import torch

    session = need("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    differences = dict.fromkeys(names, 0.0)
    generator = torch.Generator().manual_seed(0)
    for batch in batches:
        image = torch.rand(batch, 3, network.image_size, network.image_size, generator=generator)
        with torch.inference_mode():
            expected = network.cpu().eval()(image)
        for name, found in zip(names, session.run(names, {"image": image.numpy()}), strict=True):
            difference = float(np.abs(found - expected[name].numpy()).max())
            differences[name] = max(differences[name], difference)
    wrong = {name: value for name, value in differences.items() if not value <= TOLERANCES[name]}
    if wrong:
        listed = ", ".join(f"{name} by {value:.3g} (allowed {TOLERANCES[name]:g})" for name, value in wrong.items())
        raise DataError(
            f"onnxruntime differs from torch in {listed}",
            path=path,
            remedy="do not use this file; try other versions of torch, onnxscript and onnxruntime",
        )
    return differences


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m handoccnet.export",
        description="Writes a trained HandOccNet as ONNX and checks the file with onnxruntime against torch.",
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint of a run, or made by convert")
    parser.add_argument(
        "--mano", default="", help='your MANO_RIGHT.pkl (or its .npz), or "standin"; its arrays enter the file'
    )
    parser.add_argument("--onnx", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--no-mano", action="store_true", help="end at pose and shape: no joints and vertices, nothing licensed inside"
    )
    args = parser.parse_args(argv)
    if not args.mano and not args.no_mano:
        parser.error("the following arguments are required: --mano (or --no-mano)")

    from handoccnet.convert import load_checkpoint

    need("onnxruntime")
    with warnings.catch_warnings():
        if args.no_mano:  # the network needs some hand to be built; none of it enters the file
            warnings.simplefilter("ignore")
        network = load_checkpoint(args.checkpoint).build("standin" if args.no_mano else args.mano)
    outputs = export_onnx(network, args.onnx, with_mano=not args.no_mano)
    differences = check_onnx(network, args.onnx)
    size = network.image_size
    print(f"{args.onnx}: image (batch, 3, {size}, {size}) in 0..1 -> {', '.join(outputs)}, opset {OPSET}")
    print("largest difference to torch: " + ", ".join(f"{name} {value:.2g}" for name, value in differences.items()))
    if not args.no_mano:
        print(f"the MANO arrays of {args.mano} are inside; the file is under their licence")
    return 0


if __name__ == "__main__":
    exit_on_error(main)
