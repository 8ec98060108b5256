"""Peers and floors, one module each; a module lists them in `SUBJECTS`."""
