"""`python -m tests.servers`: build the store servers that tests need, or say why not."""

from tests.servers.binaries import build

if __name__ == "__main__":
    build(print)
