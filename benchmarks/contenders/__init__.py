"""Contenders: each module runs in its own process and prints a line of JSON at the end.

All train the same network (LeNet-5, 61,706 parameters) with the recipe `tutorial-mnist` for one epoch in batches of
100. `loop_s` excludes imports and a few warm-up steps on a throwaway network (`stopwatch`).
"""
