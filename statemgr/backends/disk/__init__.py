"""The disk backend: one directory, its files, and who may write them."""

from statemgr.backends.disk.manager import StateManagerDisk

__all__ = ["StateManagerDisk"]
