"""Owns the descriptors that the transcoder and the OpenAPI document are made from."""

from collections.abc import Iterable
from importlib.resources import files

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor
from google.rpc import error_details_pb2, status_pb2


def committed_descriptors() -> descriptor_pb2.FileDescriptorSet:
    """Read descriptors.pb, comments included (tools/generate_protos.py writes it)."""
    data = (files("hongbao.proto.v1") / "descriptors.pb").read_bytes()
    return descriptor_pb2.FileDescriptorSet.FromString(data)


def gateway_descriptors() -> bytes:
    """Return what the transcoder needs: our files, and those of the errors' details.

    Without the latter it cannot print a google.rpc.Status that holds details.
    """
    merged = descriptor_pb2.FileDescriptorSet()
    known: set[str] = set()
    for file in committed_descriptors().file:
        known.add(file.name)
        file.ClearField("source_code_info")
        merged.file.append(file)
    for root in (status_pb2.DESCRIPTOR, error_details_pb2.DESCRIPTOR):
        for descriptor in dependencies_first(root):
            if descriptor.name not in known:
                known.add(descriptor.name)
                descriptor.CopyToProto(merged.file.add())
    return merged.SerializeToString(deterministic=True)


def dependencies_first(root: FileDescriptor) -> Iterable[FileDescriptor]:
    """Yield the files that `root` imports, and then `root`."""
    for imported in root.dependencies:
        yield from dependencies_first(imported)
    yield root


def method_names() -> dict[str, list[str]]:
    """Return the methods of each of our services by its full name."""
    return {
        f"{file.package}.{service.name}": [method.name for method in service.method]
        for file in committed_descriptors().file
        for service in file.service
    }


def annotated_services(names: Iterable[str]) -> list[str]:
    """Return those of the named services that have an HTTP mapping."""
    wanted = set(names)
    found = []
    for file in committed_descriptors().file:
        for service in file.service:
            name = f"{file.package}.{service.name}"
            mapped = any(
                method.options.HasExtension(annotations_pb2.http) for method in service.method
            )
            if name in wanted and mapped:
                found.append(name)
    return found
