"""The half of the port that a provider without tasks has nothing to say to."""

from services.batch.providers.port import (
    CancelAnswer,
    FindAnswer,
    Gone,
    Http,
    Order,
    PollAnswer,
    Task,
    Unsupported,
)
from services.core.catalog import Channel


class AtOnce:
    """The result is in the answer to the create; an answer that was lost stays lost."""

    def poll(self, http: Http, channel: Channel, task: Task) -> PollAnswer:
        return Gone()

    def cancel(self, http: Http, channel: Channel, task: Task) -> CancelAnswer:
        return Unsupported()

    def find(self, http: Http, channel: Channel, order: Order) -> FindAnswer:
        return Unsupported()
