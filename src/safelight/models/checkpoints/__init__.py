"""The model files that exist, and descriptions read from their configurations; no network is built here.

catalogue      a name -> the file or folder of a model, for every kind of model
control_folder part_folder linked   names of ControlNets and adapters, of components, and folders of other programs
hub hub_file   repositories of the Hugging Face hub, pinned to a commit
family         the families of Stable Diffusion, as a table
families       a checkpoint's description, from its configuration
defaults       default sampler, steps, guidance and size of a checkpoint
sizes          the image sizes a model draws well, and highres settings for larger ones
digest         a checkpoint's sha256
"""
