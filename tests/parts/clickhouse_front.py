"""ClickHouse's HTTP interface over chDB, in a process of its own.

Speaks what a client library needs: statements and parameters in the URL, the body or a form,
settings in the URL, chunked and lz4 bodies, Native data, exception codes, summaries. Every request
runs on a fresh engine handle, as a server without sessions does. `POST /front/faults` arms faults,
`GET /front/inserts` tells the token and the fate of every insert.

    python -m tests.parts.clickhouse_front FOLDER PORT
"""

import email.parser
import email.policy
import json
import re
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import chdb
import lz4.frame

NO_SETTING = {
    "query", "database", "user", "password", "session_id", "session_timeout", "query_id",
    "client_protocol_version", "enable_http_compression", "compress", "decompress",
    "wait_end_of_query", "send_progress_in_http_headers", "http_headers_progress_interval_ms",
    "quota_key", "role", "default_format", "buffer_size",
}  # fmt: skip
INSERT = re.compile(rb"\s*INSERT\s+INTO\s.*?\sFORMAT\s+(\w+)[ \t]*\n", re.IGNORECASE | re.DOTALL)
CODE = re.compile(r"Code: (\d+)")


class Faults:
    """Counts down: each fault happens so many times and then no more."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.left = {"drop_insert_reply": 0, "refuse_insert": 0, "stall_insert_s": 0}

    def take(self, name: str) -> int:
        with self.lock:
            value = self.left[name]
            if value and name != "stall_insert_s":
                self.left[name] -= 1
            elif value:
                self.left[name] = 0
            return value


FAULTS = Faults()
INSERTS: list[dict] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    engine_path = ""

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/ping":
            self.reply(200, b"Ok.\n")
        elif self.path == "/front/inserts":
            self.reply(200, json.dumps(INSERTS).encode())
        else:
            self.do_POST()

    def do_POST(self) -> None:
        body = self.body()
        if self.path == "/front/faults":
            with FAULTS.lock:
                FAULTS.left.update(json.loads(body))
            return self.reply(200, b"")
        params = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        if self.headers.get("content-type", "").startswith("multipart/form-data"):
            params.update(form(self.headers["content-type"], body))
            body = b""
        statement = params.get("query", "").encode()
        statement = statement + b"\n" + body if statement else body
        insert = INSERT.match(statement)
        try:
            if insert:
                return self.insert(statement[: insert.end()], statement[insert.end() :], params)
            result = self.run(statement.decode(), params)
        except RuntimeError as ex:
            return self.refuse(str(ex))
        return self.reply(200, result.bytes() or b"", self.summary(result))

    def insert(self, statement: bytes, data: bytes, params: dict) -> None:
        seen = {"token": params.get("insert_deduplication_token"), "fate": "stored"}
        INSERTS.append(seen)
        if FAULTS.take("refuse_insert"):
            seen["fate"] = "refused"
            return self.refuse("Code: 252. DB::Exception: Too many parts (TOO_MANY_PARTS)")
        if stall_s := FAULTS.take("stall_insert_s"):
            seen["fate"] = "stalled"
            time.sleep(stall_s)
        into, _, form = statement.decode().strip().rpartition(" FORMAT ")
        with tempfile.NamedTemporaryFile(suffix=".native") as spool:
            spool.write(data)
            spool.flush()
            result = self.run(f"{into} FROM INFILE '{spool.name}' FORMAT {form}", params)
        if FAULTS.take("drop_insert_reply"):
            seen["fate"] = "stored, reply dropped"
            self.close_connection = True
            self.connection.close()
            return None
        written = {"written_rows": str(result.rows_read())}
        return self.reply(200, b"", {"X-ClickHouse-Summary": json.dumps(written)})

    def run(self, statement: str, params: dict):
        """On a fresh handle; `readonly` last, for nothing can be set after it."""
        handle = chdb.connect(self.engine_path)
        try:
            if params.get("database"):
                handle.query(f"USE `{params['database']}`")
            settings = {
                name: value
                for name, value in params.items()
                if name not in NO_SETTING and not name.startswith("param_")
            }
            for name in sorted(settings, key=lambda name: name == "readonly"):
                handle.query(f"SET {name} = '{settings[name]}'")
            bound = {
                name.removeprefix("param_"): value
                for name, value in params.items()
                if name.startswith("param_")
            }
            return handle.query(statement, "TabSeparated", params=bound)
        finally:
            handle.close()

    def body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        else:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
        coding = self.headers.get("content-encoding", "")
        if coding == "lz4":
            return lz4.frame.decompress(body)
        assert not coding, f"content-encoding {coding}"
        return body

    def summary(self, result) -> dict:
        read = {"read_rows": str(result.rows_read()), "read_bytes": str(result.bytes_read())}
        return {"X-ClickHouse-Summary": json.dumps(read), "X-ClickHouse-Timezone": "UTC"}

    def refuse(self, message: str) -> None:
        message = message[max(0, message.find("Code: ")) :]
        code = CODE.search(message)
        self.reply(
            500, message.encode(), {"X-ClickHouse-Exception-Code": code[1] if code else "1002"}
        )

    def reply(self, status: int, body: bytes, headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def form(content_type: str, body: bytes) -> dict[str, str]:
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    parsed = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    return {
        part.get_param("name", header="content-disposition"): part.get_payload(decode=True).decode()
        for part in parsed.iter_parts()
    }


def main() -> None:
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    Handler.engine_path = str(folder.resolve())
    keep = chdb.connect(Handler.engine_path)  # the engine lives as long as one handle is open
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    version = keep.query("SELECT version()", "TabSeparated").bytes().decode().strip()
    print(json.dumps({"port": server.server_address[1], "version": version}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
