"""The gateway to Redis: the only place that knows key names, scripts and redis-py."""

from celery_canceltoken.store.agent_store import AgentStore
from celery_canceltoken.store.answers import (
    Claim,
    ClaimVerdict,
    Delivery,
    DeliveryVerdict,
    Ended,
    Finish,
    InboxEntry,
    Recovery,
    RequestAnswer,
    RequestOrder,
)
from celery_canceltoken.store.connect import ConnectionPlan
from celery_canceltoken.store.redis_store import RedisStore

__all__ = [
    "AgentStore",
    "Claim",
    "ClaimVerdict",
    "ConnectionPlan",
    "Delivery",
    "DeliveryVerdict",
    "Ended",
    "Finish",
    "InboxEntry",
    "Recovery",
    "RedisStore",
    "RequestAnswer",
    "RequestOrder",
]
