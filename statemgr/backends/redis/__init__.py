"""The Redis backend: states shared by processes on many machines."""

from statemgr.backends.redis.manager import StateManagerRedis

__all__ = ["StateManagerRedis"]
