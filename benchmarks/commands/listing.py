"""`list`: what there is to measure."""

from benchmarks.discovery import find_scenarios, find_subjects


def print_list() -> None:
    """Print the scenarios and the subjects, a line each."""
    print("scenarios")
    for scenario in find_scenarios().values():
        optional = "optional" if scenario.optional else ""
        print(f"  {scenario.name:<22} {optional:<15} {scenario.summary}")
    print("subjects")
    for subject in find_subjects().values():
        role = f"{subject.role}, optional" if subject.optional else subject.role
        print(f"  {subject.name:<22} {role:<15} {subject.summary}")
