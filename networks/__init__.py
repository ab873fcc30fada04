"""Networks of your own: `train.network: example:small` trains what `small` in `networks/example.py` returns.

A function takes the images' channels, the number of classes and the images' size in pixels (height and width), and
returns a module: normalized images `(N, channels, size, size)` float32 -> logits `(N, classes)`.
"""
