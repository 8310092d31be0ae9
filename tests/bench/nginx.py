"""nginx as the canned upstream and as the reverse proxies every gateway is held against.

`PLAIN` is what one `proxy_pass` line makes: a connection to the upstream for every request.
`KEEPALIVE` keeps them, which is five more lines and two to three times the speed. For all three:
requests per connection are not limited, bodies up to 1 MB stay in memory, access logs are off. One
worker each.
"""

import getpass
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

from tests.bench.answers import ANSWERS, DIALECT_PATHS, answer
from tests.bench.process import free_port, wait_for_port

_COMMON = """
daemon off;
user {user};
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 600;
  tcp_nodelay on;
  client_max_body_size 64m;
  client_body_buffer_size 1m;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
"""

_UPSTREAM = """
  open_file_cache max=100;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    root {folder}/answers;
    error_page 405 =200 $uri;
    default_type application/json;
    location ~ sse {{ default_type text/event-stream; }}
  }}
}}
"""

PLAIN: Final = """
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://127.0.0.1:{upstream_port}; }}
  }}
}}
"""

KEEPALIVE: Final = """
  upstream canned {{
    server 127.0.0.1:{upstream_port};
    keepalive 512;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://canned;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }}
  }}
}}
"""


class Nginx:
    """The canned upstream, or a `proxy` in front of `upstream_port`."""

    def __init__(self, folder: Path, proxy: str = "", upstream_port: int = 0) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.port = free_port()
        text = _COMMON + (proxy or _UPSTREAM)
        config = folder / "nginx.conf"
        names = {"user": getpass.getuser(), "folder": folder}
        config.write_text(text.format(**names, port=self.port, upstream_port=upstream_port))
        if not proxy:
            self._write_answers()
        self.process = subprocess.Popen(
            ["nginx", "-e", str(folder / "error.log"), "-c", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_port(self.port, self.process)

    def _write_answers(self) -> None:
        for dialect, path in DIALECT_PATHS.items():
            for kind in ANSWERS:
                file = self.folder / "answers" / f"{dialect}-{kind}" / path[1:]
                file.parent.mkdir(parents=True)
                file.write_bytes(answer(dialect, kind))

    @staticmethod
    def version() -> str:
        if shutil.which("nginx") is None:
            raise FileNotFoundError("nginx is not installed")
        told = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True)
        return told.stderr.strip().rpartition("/")[2]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        time.sleep(0.05)
