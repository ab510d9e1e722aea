"""Owns reading a YAML file of settings as plain values; refuses to judge them: models do.

With the loader of campaign files: no anchors, no tags, little depth, and each key once.
"""

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from hongbao.domain.errors import Rejected
from hongbao.domain.problem import Problems
from hongbao.domain.yaml_file import FILE_BYTES_MAX, read_tree


def read_yaml(path: Path, *, field: str) -> Any:
    """Return a file's document. Raises Rejected for `field` with every problem, one a line."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)  # one more, so that too much is seen
    except OSError as error:
        raise Rejected(f"{path}: cannot be read: {error.strerror}", field=field) from error
    problems = Problems()
    node = read_tree(str(path), data, problems)
    document = None if node is None else _value(str(path), node, "", problems)
    if problems.count:
        raise Rejected("\n".join(str(problem) for problem in problems.told()), field=field)
    return document


def _value(file: str, node: yaml.Node, place: str, problems: Problems) -> Any:
    """Return what a node says, after telling what it cannot say; `place` is its dotted key."""
    if isinstance(node, yaml.SequenceNode):
        return [
            _value(file, item, f"{place}.{index}".lstrip("."), problems)
            for index, item in enumerate(node.value)
        ]
    if isinstance(node, yaml.MappingNode):
        return _mapping(file, node, place, problems)
    row = node.start_mark.line + 1
    if "\0" in node.value:
        problems.add(file, row, place, "a NUL byte cannot be in it")
    try:
        return SafeConstructor().construct_document(node)
    except (ValueError, yaml.YAMLError):  # such as a 13th month, or more digits than int takes
        problems.add(file, row, place, "no value that can be read")
        return None


def _mapping(file: str, node: yaml.MappingNode, place: str, problems: Problems) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in node.value:
        row = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            problems.add(file, row, place, "a key must be a single value")
            continue
        name = f"{place}.{key.value}".lstrip(".")
        if key.value in values:
            problems.add(file, row, name, "the key is there twice")
        values[key.value] = _value(file, value, name, problems)
    return values
