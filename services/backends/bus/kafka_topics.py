"""What is asked of a Kafka cluster about its topics, and what all its clients here share."""

import socket
from collections.abc import Sequence
from typing import Any, Final

from kafka import errors
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

CALL_MS: Final = 5_000
_CONNECT_S: Final = 2.0
_PORT: Final = 9092
FETCH_MAX_BYTES: Final = 16 * 1024 * 1024
_NOT_FOR_ADMIN: Final = ("allow_auto_create_topics", "metrics_enabled")


def require_broker(brokers: Sequence[str]) -> None:
    """Raises `KafkaError` when none of them takes a connection: a client made then would wait
    without an end, or leave its thread behind."""
    for broker in brokers:
        host, _, port = broker.rpartition(":")
        where = (host, int(port)) if port.isdecimal() else (broker, _PORT)
        try:
            socket.create_connection((where[0].strip("[]"), where[1]), _CONNECT_S).close()
        except OSError:
            continue
        return
    raise errors.KafkaConnectionError(f"none of {', '.join(brokers)} can be reached")


def admin_client(settings: dict[str, Any]) -> Any:
    """To be closed by the caller. Raises `KafkaError`."""
    known = {name: value for name, value in settings.items() if name not in _NOT_FOR_ADMIN}
    return KafkaAdminClient(**{**known, "request_timeout_ms": CALL_MS})


def describe(settings: dict[str, Any], topic: str, names: list[str]) -> dict[str, str]:
    """The topic's settings of these names. Raises `KafkaError`."""
    admin = admin_client(settings)
    try:
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, dict.fromkeys(names))
        answer = admin.describe_configs([resource], config_filter="all")
    finally:
        admin.close()
    described = answer["topic"].get(topic) or {}
    if not described.keys() >= set(names):
        raise errors.UnknownTopicOrPartitionError(topic)
    return {name: str(described[name]["value"]) for name in names}
