"""Speed and memory of the layers and of the pipeline, each beside what it competes with, on the machine at hand.

A number is the ratio of medians that were measured in turn in one process, with fixed threads and after a warm-up.
What takes minutes is measured once or a few times, and its table says so.
"""
