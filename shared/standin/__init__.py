"""The licence-free stand-in hand, its renderer, and writers that lay out tiny data sets in each official format.

``build_hand`` makes the hand, ``render`` draws meshes, ``scene`` poses a hand before a camera, ``views`` and ``grasp``
do so for the keypoint and the mesh sets, ``all`` writes every set.
"""
