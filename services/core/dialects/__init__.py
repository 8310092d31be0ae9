"""The wire protocols: one entry makes a dialect known."""

from typing import Final

from services.core.dialects.anthropic import Anthropic
from services.core.dialects.base import Dialect
from services.core.dialects.chat import Chat
from services.core.dialects.responses import Responses

DIALECTS: Final[dict[str, Dialect]] = {
    dialect.name: dialect for dialect in (Anthropic(), Chat(), Responses())
}
