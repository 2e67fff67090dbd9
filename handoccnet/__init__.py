"""HandOccNet (CVPR 2022): an occlusion-robust hand mesh from one RGB picture."""
