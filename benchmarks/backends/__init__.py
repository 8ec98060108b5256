"""Our backends, one module each; a module lists its variants in `SUBJECTS`."""
