"""Scenarios, one module each; a module names its own `SCENARIO`."""
