"""3D hand shape and pose from images in the wild (Boukhayma, de Bem, Torr, CVPR 2019)."""
