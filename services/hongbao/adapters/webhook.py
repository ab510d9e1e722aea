"""Owns paying through an HTTP webhook with idempotency keys; refuses to decide what to pay.

POST, JSON body, header `Idempotency-Key: <campaign>/<serial>`. The backend must keep the key:
    2xx                       paid now (`{"status": "exists"}` in the body: paid by an earlier call)
    409                       with the same payment: paid by an earlier call; else refused
    400, 402, 410, 422, 451   refused for good: they speak of this payment
    408, 425, 429, 5xx, no reply   unknown: asked again with the same key
    all others (401, 403, 404, 405, 407, 3xx, …)
                              the same, and an error line: they speak of credentials or of the URL,
                              and say nothing of a payment that would be good once those are right
User and transfer are decimal strings in the body, because they may pass 2^53.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import httpx
import stamina
import structlog

from hongbao.domain.errors import Rejected, Transient
from hongbao.settle.ports import SinkAnswer, SinkReply, Transfer

ATTEMPTS_MAX: Final = 4
RETRY_S: Final = 0.1
RETRY_S_MAX: Final = 2.0
CALL_S_MAX: Final = 5.0
CONNECTIONS_MAX: Final = 64
DETAIL_CHARS_MAX: Final = 500
REFUSALS: Final = frozenset({400, 402, 410, 422, 451})
ASK_AGAIN: Final = frozenset({408, 425, 429})

log = structlog.get_logger()


class WebhookSink:
    """Is a settle.ports.Sink over HTTP. Close it with `async with`."""

    def __init__(
        self,
        url: str,
        campaign: str,
        *,
        headers: Mapping[str, str] | None = None,
        call_s_max: float = CALL_S_MAX,
        retry_s: float = RETRY_S,
    ) -> None:
        """`headers` carry whatever authorisation the backend wants. Raises Rejected for no URL."""
        self._url = parse_url(url)
        self._campaign = campaign
        self._unfit_status = 0  # of the newest answer that was logged, so that it is told once
        self._retrying = stamina.AsyncRetryingCaller(
            attempts=ATTEMPTS_MAX,
            timeout=None,
            wait_initial=retry_s,
            wait_max=RETRY_S_MAX,
            wait_jitter=retry_s,
        ).on((httpx.HTTPError, Transient))
        self._client = httpx.AsyncClient(
            headers=dict(headers or {}),
            timeout=call_s_max,
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX),
            trust_env=False,
        )
        self._free = asyncio.Semaphore(CONNECTIONS_MAX)
        self._under_way: set[asyncio.Future[httpx.Response]] = set()

    async def __aenter__(self) -> "WebhookSink":
        return self

    async def __aexit__(self, *_: object) -> None:
        for call in self._under_way:
            call.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._client.aclose()

    async def pay(self, transfer: Transfer) -> SinkReply:
        """Pay one transfer; the same again pays nothing more. Raises Transient when unknown."""
        payment = {
            "campaign": self._campaign,
            "transfer": str(transfer.serial),
            "user": str(transfer.user),
            "sponsor": transfer.sponsor,
            "amount_fen": transfer.amount_fen,
        }
        key = f"{self._campaign}/{transfer.serial}"
        try:
            return await self._retrying(self._post, key, payment)
        except httpx.HTTPError as error:  # also a body that cannot be decoded: it may have paid
            raise Transient(f"webhook {key}: {error!r}") from error

    async def _post(self, key: str, payment: dict[str, Any]) -> SinkReply:
        response = await self._send(key, payment)
        status = response.status_code
        detail = f"{status} {response.text[:DETAIL_CHARS_MAX]}"
        if response.is_success or status in REFUSALS or status == httpx.codes.CONFLICT:
            self._unfit_status = 0
        if response.is_success:
            existed = _body(response).get("status") == "exists"
            return SinkReply(SinkAnswer.EXISTS if existed else SinkAnswer.PAID, detail)
        if status == httpx.codes.CONFLICT:
            same = _body(response).items() >= payment.items()
            return SinkReply(SinkAnswer.EXISTS if same else SinkAnswer.REFUSED, detail)
        if status in REFUSALS:
            return SinkReply(SinkAnswer.REFUSED, detail)
        if response.is_server_error or status in ASK_AGAIN:
            raise Transient(f"webhook {key}: {detail}")
        self._tell_unfit(status)
        raise Transient(f"webhook {key}: {status}")

    def _tell_unfit(self, status: int) -> None:
        """Say once that nobody is paid until a person acts; the body may repeat credentials."""
        if status != self._unfit_status:
            self._unfit_status = status
            log.error("webhook_setup_refused", status=status, host=self._url.host)

    async def _send(self, key: str, payment: dict[str, Any]) -> httpx.Response:
        """Post, and let the call end by itself where its caller is cut off.

        Httpcore never gets back a connection whose call is cancelled before it began, or ceases to
        wait for one (its issue 1093): no call is cancelled, and none has to wait for a connection.
        """
        await self._free.acquire()
        call = asyncio.ensure_future(
            self._client.post(self._url, json=payment, headers={"Idempotency-Key": key})
        )
        self._under_way.add(call)
        call.add_done_callback(self._ended)
        return await asyncio.shield(call)

    def _ended(self, call: "asyncio.Future[httpx.Response]") -> None:
        self._under_way.discard(call)
        self._free.release()


def parse_url(text: str) -> httpx.URL:
    """Return the address of a payment backend. Raises Rejected saying what is wrong."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise Rejected(f"{text!r} is no URL: {error}", field="webhook_url") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise Rejected(f"{text!r} is no http or https URL with a host", field="webhook_url")
    return url


def _body(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON object that came back; empty when there is none."""
    try:
        body = response.json()
    except (ValueError, RecursionError):  # the latter from thousands of brackets
        return {}
    return body if isinstance(body, dict) else {}
