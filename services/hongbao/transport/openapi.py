"""Owns the OpenAPI document: what the JSON side of the gateway takes and gives.

Made from the descriptors alone (google.api.http annotations, comments), so it cannot say
anything that the transcoder does not do.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

Json = dict[str, Any]
Field = descriptor_pb2.FieldDescriptorProto

SCALARS: Final[dict[int, Json]] = {
    Field.TYPE_STRING: {"type": "string"},
    Field.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    Field.TYPE_BOOL: {"type": "boolean"},
    Field.TYPE_DOUBLE: {"type": "number", "format": "double"},
    Field.TYPE_INT32: {"type": "integer", "format": "int32"},
    Field.TYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
    # 64-bit integers are strings in protobuf's JSON: a double would lose digits.
    Field.TYPE_INT64: {"type": "string", "format": "int64"},
    Field.TYPE_UINT64: {"type": "string", "format": "uint64"},
}
API_VERSION: Final = "1"  # of hongbao.v1, not of the package
ERROR: Final[Json] = {
    "type": "object",
    "description": "Every error has this shape, whoever refuses: google.rpc.Status.",
    "required": ["code", "message", "details"],
    "properties": {
        "code": {"type": "integer", "description": "google.rpc.Code"},
        "message": {"type": "string"},
        "details": {
            "type": "array",
            "description": "ErrorInfo, BadRequest (the field) and RetryInfo (when to repeat).",
            "items": {"type": "object", "properties": {"@type": {"type": "string"}}},
        },
    },
}
REFUSALS: Final = {
    "400": "The request is wrong; a repeat is pointless.",
    "401": "The session or token is not good.",
    "404": "No such resource, method or campaign.",
    "413": "The body is too large.",
    "429": "A limit was passed or the process is behind: repeat after retryDelay.",
    "503": "Not now: repeat after retryDelay.",
    "504": "The deadline passed.",
}
NOTES: Final = (
    "JSON as protobuf maps it: bytes are base64, 64-bit integers are strings, enums are names. "
    "Unknown fields in a body are ignored. A field given twice, a query parameter, and a path "
    "field that contradicts the body are refused."
)


class Comments:
    """Finds the comments of a file's declarations by their path in the descriptor."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self._texts = {
            tuple(location.path): (location.leading_comments, location.trailing_comments)
            for location in file.source_code_info.location
        }

    def of(self, *path: int) -> str:
        """Return the comment above or behind a declaration as one line."""
        return " ".join(" ".join(self._texts.get(path, ())).split())


def build_openapi(descriptors: descriptor_pb2.FileDescriptorSet) -> Json:
    """Build the document over every method with an HTTP mapping."""
    schemas = {
        name: schema
        for file in descriptors.file
        if file.package.startswith("hongbao.")
        for name, schema in file_schemas(file)
    }
    paths: Json = {}
    for file in descriptors.file:
        for path, operation in file_operations(file, schemas):
            paths.setdefault(path, {})["post"] = operation
    used = reachable(paths, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "hongbao", "version": API_VERSION, "description": NOTES},
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {"Error": ERROR} | {name: schemas[name] for name in sorted(used)},
            "responses": {
                status: {
                    "description": text,
                    "content": {"application/json": {"schema": reference("Error")}},
                }
                for status, text in REFUSALS.items()
            },
        },
    }


def file_schemas(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, Json]]:
    """Yield name and schema of the messages and enums of a file."""
    comments = Comments(file)
    for index, enum in enumerate(file.enum_type):
        values = [
            f"{value.name}: {text}"
            for place, value in enumerate(enum.value)
            if (text := comments.of(5, index, 2, place))
        ]
        schema: Json = {"type": "string", "enum": [value.name for value in enum.value]}
        yield enum.name, described(schema, "; ".join(values))
    for index, message in enumerate(file.message_type):
        properties = {
            field.json_name: described(field_schema(field), comments.of(4, index, 2, place))
            for place, field in enumerate(message.field)
        }
        schema = {"type": "object", "properties": properties}
        yield message.name, described(schema, comments.of(4, index))


def field_schema(field: Field) -> Json:
    """Return the schema of one field's JSON value."""
    if field.type in (Field.TYPE_MESSAGE, Field.TYPE_ENUM):
        schema = reference(field.type_name.rpartition(".")[2])
    else:
        schema = dict(SCALARS[field.type])
    if field.label == Field.LABEL_REPEATED:
        return {"type": "array", "items": schema}
    return schema


def file_operations(
    file: descriptor_pb2.FileDescriptorProto, schemas: Json
) -> Iterator[tuple[str, Json]]:
    """Yield path and operation of every mapped method; only `post` with body "*" is known."""
    comments = Comments(file)
    for index, service in enumerate(file.service):
        for place, method in enumerate(service.method):
            rule = method.options.Extensions[annotations_pb2.http]
            if not method.options.HasExtension(annotations_pb2.http):
                continue
            if not rule.post or rule.body != "*":
                raise ValueError(f"{service.name}.{method.name}: only post with body * is known")
            summary = comments.of(6, index, 2, place)
            yield rule.post, build_operation(service.name, method, rule.post, summary, schemas)


def build_operation(
    service: str,
    method: descriptor_pb2.MethodDescriptorProto,
    path: str,
    summary: str,
    schemas: Json,
) -> Json:
    """Build one operation; fields of the path leave the body."""
    in_path = re.findall(r"\{(\w+)\}", path)
    request = schemas[method.input_type.rpartition(".")[2]]
    body = {name: schema for name, schema in request["properties"].items() if name not in in_path}
    return {
        "operationId": f"{service}_{method.name}",
        "tags": [service],
        "summary": summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": request["properties"][name]}
            for name in in_path
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object", "properties": body}}},
        },
        "responses": {
            "200": {
                "description": "The answer.",
                "content": {
                    "application/json": {"schema": reference(method.output_type.rpartition(".")[2])}
                },
            },
            **{status: {"$ref": f"#/components/responses/{status}"} for status in REFUSALS},
        },
    }


def reachable(paths: Json, schemas: Json) -> set[str]:
    """Return the schemas that the paths name, directly or through others."""
    found: set[str] = set()
    waiting = [paths]
    while waiting:
        names = re.findall(r"'#/components/schemas/(\w+)'", repr(waiting.pop()))
        fresh = {name for name in names if name in schemas} - found
        found |= fresh
        waiting += [schemas[name] for name in fresh]
    return found


def described(schema: Json, text: str) -> Json:
    """Add a description where there is one (3.1 allows it beside $ref)."""
    return {**schema, "description": text} if text else schema


def reference(name: str) -> Json:
    """Refer to a schema of this document."""
    return {"$ref": f"#/components/schemas/{name}"}
