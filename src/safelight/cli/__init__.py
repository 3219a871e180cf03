"""The command line: one file per command, and what commands share.

    main.py       the program: its commands, `--version`
    errors.py     what went wrong, as a line for people or JSON for programs, and the exit code
    options.py    options that several commands take
    from_fields.py draft_flags.py  flags made from the fields of a model; those of `Draft`, for `generate`
    generate.py replay.py upscale.py info.py samplers.py models.py doctor.py bench.py
    once.py       one draft or spec, from the first event to the stored file
    out.py        where finished pictures are put
    screen.py     what a terminal shows while a picture is drawn
    hints.py      what to try next
    sizes.py      how many bytes, as people read it

A module here imports nothing heavy at its top: torch and Pillow come inside the command that needs them, after its
arguments were found to make sense, so that `--help` and mistakes answer at once.
"""
