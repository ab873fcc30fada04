"""Each module is run in a process of its own, prints what it likes, and a line of JSON at the end.

They train the same net (LeNet-5, 61,706 parameters) with the recipe `tutorial-mnist` for one epoch in batches of 100.
`loop_s` starts with everything imported and a few steps taken on a throwaway net (`stopwatch`), in all of them alike.
"""
