"""The answer to a prompt: a function of the request body and the seed, nothing else.

Directives in the last user message steer it:
`sim:tool NAME {json}` calls a tool that the request offers (several make parallel calls),
`sim:shell COMMAND` calls whichever shell tool the request offers, `sim:words N` answers N words,
`sim:search N` reports N web searches, `sim:tier NAME` the service tier NAME.
"""

import hashlib
import json
import re
from base64 import b64encode
from typing import Any, Final

from services.sim.prompt import Answer, Prompt, Tool, ToolCall, tokens

_DIRECTIVE: Final = re.compile(r"sim:(tool|shell|words|search)\s+")
_QUOTED_MAX: Final = 120
_RESULT_MAX: Final = 200
_WORDS: Final = (
    "a",
    "toll",
    "is",
    "paid",
    "once",
    "for",
    "each",
    "passage",
    "and",
    "never",
    "twice",
)
# How each known shell tool of a client wants its command.
_SHELLS: Final[dict[str, Any]] = {
    "Bash": lambda command: {"command": command, "description": "Run a command"},
    "exec_command": lambda command: {"cmd": command},
    "shell_command": lambda command: {"command": command},
    "shell": lambda command: {"command": ["bash", "-lc", command]},
    "local_shell": lambda command: {"command": ["bash", "-lc", command]},
    "exec": lambda command: {
        "input": f"text(await tools.exec_command({json.dumps({'cmd': command})}))"
    },
}


def seal(thinking: str) -> str:
    """The signature of a thinking text; a client must bring it back unchanged."""
    return "sim-" + b64encode(hashlib.sha256(thinking.encode()).digest()).decode()


def is_forged(thinking: str, brought_back: str) -> bool:
    return bool(thinking) and brought_back.startswith("sim-") and brought_back != seal(thinking)


def compose(prompt: Prompt, body: bytes, seed: int) -> Answer:
    """The answer to `prompt`, cut to the request's own output limit."""
    identity = hashlib.sha256(b"%d:" % seed + body).hexdigest()
    thinking = f"The user asks: {prompt.text[:_QUOTED_MAX]}" if prompt.thinks else ""
    text, calls, searches = _content(prompt, identity)
    limit = prompt.max_output if prompt.max_output is not None else 1 << 40
    thinking, spent, cut = _fit(thinking, limit)
    reasoning = spent
    text, used, cut_text = _fit(text, limit - spent)
    spent += used
    kept = []
    for call in calls:
        size = tokens(len(call.arguments.encode()) + len(call.tool.name))
        if cut or cut_text or spent + size > limit:
            cut = True
            break
        spent += size
        kept.append(call)
    finish = "length" if cut or cut_text else "tool" if kept else "stop"
    return Answer(
        id=identity[:24],
        text=text,
        thinking=thinking,
        seal=seal(thinking) if thinking else "",
        calls=tuple(kept),
        finish=finish,
        output=spent * prompt.choices,
        reasoning=reasoning * prompt.choices,
        searches=searches,
    )


def pieces(text: str, size: int = 16) -> list[str]:
    """A text in the portions in which a stream sends it: about four tokens each."""
    return [text[i : i + size] for i in range(0, len(text), size)]


def _fit(text: str, limit: int) -> tuple[str, int, bool]:
    """(text cut to `limit` tokens, its tokens, whether it was cut)"""
    raw = text.encode()
    if tokens(len(raw)) <= limit:
        return text, tokens(len(raw)), False
    kept = raw[: max(limit, 0) * 4].decode(errors="ignore")
    return kept, max(limit, 0), True


def _content(prompt: Prompt, identity: str) -> tuple[str, list[ToolCall], int]:
    if prompt.tool_results:
        quoted = " | ".join(result.strip()[:_RESULT_MAX] for result in prompt.tool_results)
        return f"The tool answered: {quoted}", [], 0
    calls: list[ToolCall] = []
    searches = 0
    text = ""
    for match in _DIRECTIVE.finditer(prompt.text):
        kind, rest = match.group(1), prompt.text[match.end() :]
        if kind == "words":
            text = _sentence(_number(rest))
        elif kind == "search":
            searches = _number(rest)
        else:
            call = (_tool if kind == "tool" else _shell)(
                prompt, rest, f"{identity[:16]}{len(calls)}"
            )
            if call is None:
                text = "The request offers no such tool."
            else:
                calls.append(call)
    if text or calls:
        return text, calls, searches
    if prompt.schema is not None:
        return json.dumps(_instance(prompt.schema)), [], searches
    said = " ".join(prompt.text.split())[:_QUOTED_MAX]
    return f'Hello! The simulated provider heard: "{said}".', [], searches


def _number(rest: str) -> int:
    digits = re.match(r"\d{1,6}", rest)
    return int(digits.group()) if digits else 1


def _sentence(words: int) -> str:
    return " ".join(_WORDS[i % len(_WORDS)] for i in range(words))


def _tool(prompt: Prompt, rest: str, call_id: str) -> ToolCall | None:
    name, _, after = rest.partition(" ")
    tool = prompt.tools.get(name.strip())
    if tool is None:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(after.lstrip())
    except ValueError:
        value = {}
    return _call(tool, value, call_id)


def _shell(prompt: Prompt, rest: str, call_id: str) -> ToolCall | None:
    command = rest.splitlines()[0].strip() if rest else ""
    for name, arguments in _SHELLS.items():
        if name in prompt.tools:
            return _call(prompt.tools[name], arguments(command), call_id)
    return None


def _call(tool: Tool, value: Any, call_id: str) -> ToolCall:
    if tool.kind == "custom" and isinstance(value, dict):
        return ToolCall(call_id, tool, str(value.get("input", "")))
    return ToolCall(call_id, tool, json.dumps(value, ensure_ascii=False))


def _instance(schema: Any) -> Any:
    """A small value that fits a JSON schema."""
    if not isinstance(schema, dict):
        return None
    if schema.get("enum"):
        return schema["enum"][0]
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object" or "properties" in schema:
        return {name: _instance(part) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return []
    plain: dict[str, Any] = {"string": "simulated", "integer": 1, "number": 1.0, "boolean": True}
    return plain.get(str(kind))
