"""The report stage: one page that shows why, not only how much, and the saliency behind it.

Its rooms: `gather` reads a run folder; `curves`, `mistakes`, `feature_map` and
`thumbnails` make of it what is shown; `saliency` asks the model; `charts`, `figures`,
`overlay` draw; `page` puts all into one file, `explain` into pictures.
"""
