"""Regenerates the committed protobuf stubs and the descriptor set that Envoy transcodes with.

usage: python tools/generate_protos.py [--check]      (--check: fail when anything would change)
"""

import filecmp
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import google.api
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
OURS = Path("hongbao/proto/v1")
ETCD = Path("hongbao/proto/etcd")
"""etcd's own messages, which Envoy has no use for."""


def generate(out: Path) -> None:
    """Write stubs, type stubs and descriptors.pb under `out`."""
    for package in (OURS, ETCD):
        (out / package).mkdir(parents=True)
        (out / package / "__init__.py").touch()
    compile_package(out, ETCD)
    described = f"--descriptor_set_out={out / OURS / 'descriptors.pb'}"
    compile_package(out, OURS, described, "--include_imports", "--include_source_info")


def compile_package(out: Path, package: Path, *options: str) -> None:
    """Write the stubs of one package's protos."""
    includes = [
        ROOT / "protos",
        files("grpc_tools") / "_proto",
        Path(next(iter(google.api.__path__))).parent.parent,
    ]
    arguments = [
        "protoc",
        f"--plugin=protoc-gen-mypy={Path(sys.executable).parent / 'protoc-gen-mypy'}",
        *(f"-I{path}" for path in includes),
        f"--python_out={out}",
        f"--mypy_out=quiet:{out}",
        *options,
        *map(str, sorted((ROOT / "protos" / package).rglob("*.proto"))),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed")


def main() -> None:
    check = "--check" in sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        names = sorted(path.relative_to(fresh) for path in fresh.rglob("*") if path.is_file())
        stale = [
            name
            for name in names
            if not (ROOT / "services" / name).exists()
            or not filecmp.cmp(fresh / name, ROOT / "services" / name, shallow=False)
        ]
        if check and stale:
            raise SystemExit(
                f"stale generated files, run `make protos`: {', '.join(map(str, stale))}"
            )
        for name in stale:
            shutil.copyfile(fresh / name, ROOT / "services" / name)
            print(f"wrote services/{name}")


if __name__ == "__main__":
    main()
