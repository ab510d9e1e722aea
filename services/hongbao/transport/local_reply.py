"""Owns the one JSON error shape for what Envoy itself rejects.

The shape is google.rpc.Status: {"code", "message", "details"}. What the handlers reject gets it
from the transcoder; what Envoy rejects (unknown route, malformed JSON, 429, 503) gets it here.
gRPC callers get the same code and message as trailers, so no mapper may touch their replies.
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

# The transcoder has made JSON requests look like gRPC by then, but it says where they went.
TRANSCODED: Final = {"header": {"name": "x-envoy-original-path", "present_match": True}}
PLAIN: Final = {
    "header": {
        "name": "content-type",
        "string_match": {"prefix": "application/grpc"},
        "invert_match": True,
        "treat_missing_header_as_empty": True,
    }
}
NOT_GRPC: Final = {
    "or_filter": {"filters": [{"header_filter": TRANSCODED}, {"header_filter": PLAIN}]}
}


def build_local_reply() -> Json:
    """Build local_reply_config: one mapper for each status that Envoy can answer with."""
    return {"mappers": [build_mapper(status, code) for status, code in CODE_OF_STATUS.items()]}


def build_mapper(status: int, code: int) -> Json:
    """Build the mapper of one status; it leaves gRPC and gRPC-Web replies alone."""
    is_status = {
        "status_code_filter": {
            "comparison": {
                "op": "EQ",
                "value": {"default_value": status, "runtime_key": "hongbao.unset"},
            }
        }
    }
    shape = {"code": code, "message": "%LOCAL_REPLY_BODY%", "details": []}
    return {
        "filter": {"and_filter": {"filters": [is_status, NOT_GRPC]}},
        "body_format_override": {"json_format": shape, "content_type": "application/json"},
    }
