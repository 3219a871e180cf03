"""Immutable versions of models, the aliases that point to them, and their provenance.

registry   add, find, remove versions; aliases move from one to another
source download describe_files intake   a path, a URL or a hub repository -> files of a version
storage verify                    where the files are stored, and whether they are unchanged
tables rows version aliases       rows of the database, and the values made from them
licences                          known licences and their restrictions
registered_models                 the catalogue of all model files: local, registered and linked
"""
