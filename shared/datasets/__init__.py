"""One reader a data set: ``shared.datasets.<name>.open(root, split, ...)`` gives a lazy, picklable sequence of Frames.

What readers share: ``base`` (the record), ``images`` (pictures), ``labels`` (small label files, options), ``rows``
(long text files), ``matlab``, ``side_files`` (values and JSON of the mesh sets), ``centers`` (V2V-PoseNet's files),
``fingertips`` (the two Dexter sets), ``mirror`` (left hands as right ones).
"""
