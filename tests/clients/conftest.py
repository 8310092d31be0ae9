from tests.parts.clients import claude_code, codex
from tests.parts.stack import stack

__all__ = ["claude_code", "codex", "stack"]
