"""V2V-PoseNet (CVPR 2018): voxels in, one 3D heat map per joint out."""
