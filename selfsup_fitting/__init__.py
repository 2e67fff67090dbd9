"""Self-supervised 3D hand pose by training by fitting (CVPR 2019): a sphere hand fitted to depth views."""
