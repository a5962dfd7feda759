"""The batch lane's summariser: reads and plans as the live one does, and orders where that one would buy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

from docsum.models import Answer, BatchItem, DocumentReference, Lane
from docsum.ports import Later
from docsum.summarisers.anthropic import AnthropicSummariser, Job, Order
from docsum.summarisers.batches import BatchLane
from docsum.summarisers.prompt import Parsed


class BatchSummariser(AnthropicSummariser):
    """Implements the port `Summariser`; raises Later for every answer that is not in the ledger yet.

    For a run whose time is over it buys as the live lane does.
    """

    def __init__(self, *arguments: Any, batches: BatchLane, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._batches = batches

    async def pending(self, reference: DocumentReference, partition: int) -> Later | None:
        return await self._batches.find(partition, reference.document_id, reference.version)

    def committed(self, run_id: UUID | None) -> Decimal:
        return self._batches.committed(run_id) + super().committed(run_id)

    def _bought_for(self, job: Job, known: Sequence[Answer]) -> Iterable[Answer]:
        """A batch has brought them between two looks at the same document."""
        whose = (job.reference.document_id, job.reference.run_id, Lane.BATCH)
        return [answer for answer in known if (answer.document_id, answer.run_id, answer.lane) == whose]

    async def _buy(self, order: Order, max_tokens: int) -> tuple[Answer, Parsed | None]:
        job, request = order.job, order.request
        if await self._batches.is_late(job.reference.run_id):
            return await super()._buy(order, max_tokens)
        await job.before_paying()
        item = BatchItem(
            fingerprint=order.fingerprint,
            document_id=job.reference.document_id,
            version=job.reference.version,
            run_id=job.reference.run_id,
            chunk=order.chunk,
            model=request.model,
            input_tokens=request.input_tokens,
            output_tokens=request.expected_tokens,
        )
        raise self._batches.order(job.partition, item, request.params(max_tokens))
