"""How `make test-slow` checks the shapes of arrays: by beartype, to which, as to Python, an int is a float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
