"""Versions of models that never change, the names that lead to them, and where they came from.

registry   add, find, remove versions; aliases move from one to another
source download intake contents   a path, a URL or a hub repository -> files of a version
storage verify                    where they lie, and whether they are still what they were
tables rows version aliases       as rows of the database, and as values
licences                          what each asks of those who use a version
catalogue                         all model files: ours, the versions', the linked folders'
"""
