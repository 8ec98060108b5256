"""Show what statemgr promises when things go wrong: `python -m chaos`."""
