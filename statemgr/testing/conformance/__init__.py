"""The contract of `StateManager` as pytest classes, one module for each part of it."""

from statemgr.testing.conformance.atomicity import AtomicityContract
from statemgr.testing.conformance.calls import CallsContract
from statemgr.testing.conformance.cancellation import CancellationContract
from statemgr.testing.conformance.capabilities import CapabilitiesContract
from statemgr.testing.conformance.decoding import DecodingContract
from statemgr.testing.conformance.exclusion import ExclusionContract
from statemgr.testing.conformance.expiring import ExpiringContract
from statemgr.testing.conformance.idents import IdentsContract
from statemgr.testing.conformance.life import LifeContract
from statemgr.testing.conformance.locked_expiring import LockedExpiringContract
from statemgr.testing.conformance.places import PlacesContract
from statemgr.testing.conformance.reading import ReadingContract
from statemgr.testing.conformance.refusals import RefusalsContract
from statemgr.testing.conformance.secrets import SecretsContract
from statemgr.testing.conformance.sharing import SharingContract
from statemgr.testing.conformance.statistics import StatisticsContract
from statemgr.testing.conformance.values import ValuesContract
from statemgr.testing.conformance.waiting import WaitingContract


class Conformance(
    AtomicityContract,
    CallsContract,
    CancellationContract,
    CapabilitiesContract,
    DecodingContract,
    ExclusionContract,
    ExpiringContract,
    IdentsContract,
    LifeContract,
    LockedExpiringContract,
    PlacesContract,
    ReadingContract,
    RefusalsContract,
    SecretsContract,
    SharingContract,
    StatisticsContract,
    ValuesContract,
    WaitingContract,
):
    """Run the whole contract on a backend: subclass it as `Test...`, and set `harness_type`."""


__all__ = ["Conformance"]
