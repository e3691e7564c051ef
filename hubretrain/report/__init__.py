"""The report stage: one page that shows why, not only how much, and the saliency behind it.

Its rooms: ``gather`` reads a run folder, ``judge`` turns predictions into what is drawn,
``mistakes`` seeks errors and doubtful labels, ``feature_map`` lays bottlenecks out in a plane,
``thumbnails`` makes pictures small, ``figures`` and ``matplotlib_door`` draw, ``page`` puts all
into one file.
"""
