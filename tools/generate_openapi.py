"""Regenerates docs/openapi.json from the committed descriptors.

usage: python tools/generate_openapi.py [--check]      (--check: fail when it would change)
"""

import json
import sys
from pathlib import Path

from hongbao.transport import descriptors, openapi

TARGET = Path(__file__).resolve().parent.parent / "docs" / "openapi.json"


def main() -> None:
    document = openapi.build_openapi(descriptors.committed_descriptors())
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    stale = not TARGET.exists() or TARGET.read_text() != text
    if stale and "--check" in sys.argv[1:]:
        raise SystemExit("docs/openapi.json is stale, run `make protos`")
    if stale:
        TARGET.write_text(text)
        print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
