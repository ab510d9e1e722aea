"""Owns the way from a method's path and bytes to a typed handler and back to bytes.

Both servers (Envoy-embedded ASGI, grpcio) serve the same dispatcher; neither is known here.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, cast

from google.protobuf.message import Message

from hongbao.transport.admission import Admission
from hongbao.transport.metrics import CallMetrics, MethodCounts
from hongbao.transport.transcoded import singular_fields

type_of_handler = Callable[[Any], Any]  # message -> message, or an awaitable of one


@dataclass(frozen=True, slots=True)
class Method:
    """Is one unary method and what answers it.

    `handler` takes and returns messages; it may be a plain function (answered without a
    suspension) or a coroutine function. `priority` is its business priority: 0 is shed last.
    `user_of` gives a stable number of the caller, so that one user's calls are shed or served
    together (R25); without it a method's calls are shed alike.
    """

    path: str
    request_type: type[Message]
    reply_type: type[Message]
    handler: type_of_handler
    priority: int = 0
    user_of: Callable[[Any], int] | None = None


class Route:
    """Is a method made ready for the hot path."""

    __slots__ = (
        "counts", "handler", "is_async", "parse", "path", "priority", "singular", "user_of",
    )  # fmt: skip

    def __init__(self, method: Method, counts: MethodCounts) -> None:
        self.path: Final = method.path
        self.parse: Final = cast("Callable[[bytes], Message]", method.request_type.FromString)
        self.handler: Final = method.handler
        self.is_async: Final = inspect.iscoroutinefunction(method.handler)
        self.priority: Final = method.priority
        self.user_of: Final = method.user_of
        self.singular: Final = singular_fields(method.request_type)
        self.counts: Final = counts


class Dispatcher:
    """Maps paths to routes; methods may be added while the process starts up."""

    def __init__(
        self, methods: Iterable[Method], admission: Admission, metrics: CallMetrics
    ) -> None:
        self.admission: Final = admission
        self.metrics: Final = metrics
        metrics.watch(admission)
        self.routes: Final[dict[str, Route]] = {}
        self.add(methods)

    def add(self, methods: Iterable[Method]) -> None:
        """Serve more methods; a path can be taken only once."""
        for method in methods:
            if method.path in self.routes:
                raise ValueError(f"{method.path} is served twice")
            self.routes[method.path] = Route(method, self.metrics.method(method.path))

    def admit(self, route: Route, payload: bytes, waited_s: float, now_s: float) -> Message:
        """Parse one request for its handler, or shed it (Overloaded) before it costs anything more.

        `waited_s` is how long the call queued in this process before it came here, `now_s` the
        monotonic time.
        """
        admission = self.admission
        admission.observe(route.priority, waited_s, now_s)
        request = route.parse(payload)
        if admission.shedding:
            admission.check(route.priority, route.user_of(request) if route.user_of else None)
        return request
