"""The store servers that tests and the demo run against, on this machine.

usage: python -m tests.servers build                 build them, or say why not
       python -m tests.servers require               fail where one is missing
       python -m tests.servers demo [ARGUMENTS]      the demo on them; arguments of `hongbao demo`
       python -m tests.servers break WHAT FOLDER     what the demo's faults call
"""

import sys
from pathlib import Path

from tests.servers import binaries

FOLDER = Path("out/stores")
EXIT_UNAVAILABLE = 69  # sysexits.h


def main(arguments: list[str]) -> int:
    """Do what the first argument says."""
    match arguments:
        case ["build"]:
            binaries.build(print)
            return 0
        case ["require"]:
            return require()
        case ["demo", *rest]:
            return demo(rest)
        case ["break", wish, folder]:
            from tests.servers import evening

            print(evening.wish_for(wish, Path(folder)))
            return 0
    print(__doc__)
    return 2


def require() -> int:
    """Fail where servers are missing, so that nobody takes skipped tests for passed ones."""
    missing = [reason for reason in (binaries.why_not(), binaries.why_no_s3()) if reason]
    for reason in missing:
        print(reason, file=sys.stderr)
    return EXIT_UNAVAILABLE if missing else 0


def demo(arguments: list[str]) -> int:
    """Play the demo on real stores, or say what is missing."""
    from tests.servers import evening

    if reason := evening.why_not():
        print(f"not played: {reason}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    return evening.play(FOLDER.absolute(), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
