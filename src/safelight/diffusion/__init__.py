"""The maths of sampling on tensors, independent of jobs, devices and queues.

    shapes.py     names for tensor shapes, used across the package
    samplers.py   the samplers by their community names, and their diffusers schedulers
    schedule.py   a sampler at a step count, as a table with one row per network call
    schedules.py  the table for a checkpoint: from memory, from disk, or compiled
    compile.py    makes that table by stepping the real diffusers scheduler; the only module here that imports diffusers
    advance.py    applies one row of a table to every picture of a batch, each at its own place in its own table
    guidance.py   classifier-free guidance, with a scale per picture
    noise.py      one seeded generator per picture
    plot.py       a schedule as an image

Why schedules are tables: docs/decisions/0002-schedules-are-tables.md.
"""
