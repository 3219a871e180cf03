"""The engine: batches different requests in each network call.

job.py        a spec inside the engine: latents, history, position in its schedule
prepare.py    spec -> job: seeds, start latents, masks
rehearse.py   raises the errors that drawing would, before a spec is accepted
scheduler.py  chooses the jobs of the next call
rows.py       which predictions a call makes for each job, and the conditions of each
runner.py     one call: gather rows, denoise, guide, advance
decoder.py    finished latents -> pictures, in a thread of its own
engine.py     add, step, retire, cancel
loader.py     loads the files that a spec needs into memory
backend.py    the interface callers see; local.py implements it with one engine in one thread
upscale_backend.py   enlarges pictures, without an engine
"""
