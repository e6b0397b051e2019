"""`python -m lorafit.doctor`: the findings on this machine in plain text, with nothing but the
standard library, for an installation whose command line does not start."""

import sys

from lorafit.doctor.finding import Verdict
from lorafit.doctor.machine import examine_machine


def main() -> int:
    """Print a line for each finding; 3 when something does not work."""
    is_well = True
    for found in examine_machine():
        print(f"{found.verdict:<8} {found.section}: {found.name}: {found.text}", flush=True)
        if found.remedy:
            print(f"{'':<8} → {found.remedy}", flush=True)
        is_well = is_well and found.verdict is not Verdict.PROBLEM
    return 0 if is_well else 3


if __name__ == "__main__":
    sys.exit(main())
