"""Double entry: which postings follow from an event. They always add up to zero.

Accounts, positive = in favour of the other side: `wallet:<account>` what a customer has left,
`revenue` what was sold, `writeoff` what was used beyond a hold, `provider:<channel>` what a
provider may ask of us, `provider_cost` and `loss` what that cost us for billed and for free
requests, `external:<movement>` the world that pays in."""

from typing import NamedTuple

from schemas.events import AnyEvent, Error, Usage, WalletMovement

REVENUE = "revenue"
WRITEOFF = "writeoff"
PROVIDER_COST = "provider_cost"
LOSS = "loss"


class Posting(NamedTuple):
    account: str
    amount_nano: int


def wallet(account_id: str) -> str:
    """The ledger account whose sum is the balance of `account_id`."""
    return f"wallet:{account_id}"


def postings_for(event: AnyEvent, *, customer_pays: bool = True) -> tuple[Posting, ...]:
    """The postings of one event, without zero amounts; empty when it moves no money.

    `customer_pays` False: the lease was given up for lost, so the charge is our loss."""
    if isinstance(event, Usage):
        payer = wallet(event.account_id) if customer_pays else LOSS
        return _nonzero(
            Posting(payer, -event.charged_nano),
            Posting(WRITEOFF, -event.written_off_nano),
            Posting(REVENUE, event.charged_nano + event.written_off_nano),
            Posting(PROVIDER_COST, -event.provider_cost_nano),
            Posting(f"provider:{event.channel}", event.provider_cost_nano),
        )
    if isinstance(event, Error):
        return _nonzero(
            Posting(LOSS, -event.provider_cost_nano),
            Posting(f"provider:{event.channel}", event.provider_cost_nano),
        )
    if isinstance(event, WalletMovement):
        return _nonzero(
            Posting(wallet(event.account_id), event.amount_nano),
            Posting(f"external:{event.movement}", -event.amount_nano),
        )
    return ()


def _nonzero(*postings: Posting) -> tuple[Posting, ...]:
    return tuple(posting for posting in postings if posting.amount_nano)
