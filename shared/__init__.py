"""What the five methods share: readers, camera maths, metrics, the MANO layer and run plumbing.

Nothing here knows which method calls it. One frame is used throughout: OpenCV axes (x right, y down, z forward),
millimetres unless a name says otherwise.
"""
