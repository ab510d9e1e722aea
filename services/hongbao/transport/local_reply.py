"""Owns the one JSON error shape for what Envoy itself rejects.

The shape is google.rpc.Status: {"code", "message", "details"}. What the handlers reject gets it
from the transcoder; what Envoy rejects (unknown route, malformed JSON, 429, 503) gets it here.
gRPC callers get the same code and message in headers: no body format may touch their replies.
"""

from typing import Any, Final

from google.rpc import code_pb2

Json = dict[str, Any]

# HTTP status → google.rpc.Code; as google.rpc.Code's comments map them, read backwards.
CODE_OF_STATUS: Final = {
    400: code_pb2.INVALID_ARGUMENT,
    401: code_pb2.UNAUTHENTICATED,
    403: code_pb2.PERMISSION_DENIED,
    404: code_pb2.NOT_FOUND,
    405: code_pb2.UNIMPLEMENTED,
    408: code_pb2.DEADLINE_EXCEEDED,
    411: code_pb2.INVALID_ARGUMENT,
    413: code_pb2.RESOURCE_EXHAUSTED,
    415: code_pb2.INVALID_ARGUMENT,
    426: code_pb2.UNIMPLEMENTED,
    429: code_pb2.RESOURCE_EXHAUSTED,
    431: code_pb2.RESOURCE_EXHAUSTED,
    500: code_pb2.INTERNAL,
    501: code_pb2.UNIMPLEMENTED,
    502: code_pb2.UNAVAILABLE,
    503: code_pb2.UNAVAILABLE,
    504: code_pb2.DEADLINE_EXCEEDED,
}

# For gRPC callers Envoy's own choice is UNKNOWN for the odd ones and UNAVAILABLE, which callers
# retry, for 429; only "no such method" has to stay what gRPC calls it.
CODE_FOR_GRPC: Final = {**CODE_OF_STATUS, 404: code_pb2.UNIMPLEMENTED}

# The transcoder has made JSON requests look like gRPC by then, but it says where they went.
TRANSCODED: Final = {
    "header_filter": {"header": {"name": "x-envoy-original-path", "present_match": True}}
}
PLAIN: Final = {
    "header_filter": {
        "header": {
            "name": "content-type",
            "string_match": {"prefix": "application/grpc"},
            "invert_match": True,
            "treat_missing_header_as_empty": True,
        }
    }
}
# Paths and headers that the HTTP codec refuses come without a text.
NO_QUERY: Final = {
    "header_filter": {
        "header": {
            "name": ":path",
            "string_match": {"contains": "?"},
            "invert_match": True,
            "treat_missing_header_as_empty": True,
        }
    }
}
UNPARSED: Final = {"and_filter": {"filters": [PLAIN, NO_QUERY]}}
NOT_GRPC: Final = {"or_filter": {"filters": [TRANSCODED, PLAIN]}}


def build_local_reply() -> Json:
    """Build local_reply_config: one mapper for each status that Envoy can answer with."""
    early = build_mapper(400, code_pb2.INVALID_ARGUMENT, UNPARSED, "malformed request")
    plain = [build_mapper(status, code, NOT_GRPC) for status, code in CODE_OF_STATUS.items()]
    grpc = [build_grpc_mapper(status, code) for status, code in CODE_FOR_GRPC.items()]
    return {"mappers": [early, *plain, *grpc]}


def build_grpc_mapper(status: int, code: int) -> Json:
    """Build the mapper that gives a gRPC caller the code of one status."""
    header = {"key": "grpc-status", "value": str(code)}
    return {
        "filter": has_status(status),
        "headers_to_add": [{"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
    }


def has_status(status: int) -> Json:
    """Build the filter for one status."""
    value = {"default_value": status, "runtime_key": "hongbao.unset"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def build_mapper(status: int, code: int, which: Json, message: str = "%LOCAL_REPLY_BODY%") -> Json:
    """Build the mapper of one status; it leaves gRPC and gRPC-Web replies alone."""
    shape = {"code": code, "message": message, "details": []}
    return {
        "filter": {"and_filter": {"filters": [has_status(status), which]}},
        "body_format_override": {"json_format": shape, "content_type": "application/json"},
    }
