"""Which model files there are, and what they say of themselves; no network is built here.

catalogue      a name -> the file or folder of a model, of every kind
control_folder part_folder linked   names of adapters, of parts, and the folders of other programs
hub hub_file   repositories of the Hugging Face hub, pinned to a commit
family         the kinds of Stable Diffusion, as a table
families       a checkpoint's description, from its configuration
defaults       what it draws best with
sizes          which sizes it draws well, and what becomes of larger ones
digest         what names it for good
"""
