"""nginx before several edges, set up as docs/operate.md says."""

import getpass
import shutil
import subprocess
from pathlib import Path

from tests.bench.process import wait_for_port
from tests.parts.ports import free_port

LEFT_OUT_S = 1  # `fail_timeout`

_CONFIG = """
daemon off;
user {user};
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{ worker_connections 4096; }}
http {{
  access_log {folder}/access.log;
  client_max_body_size 64m;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream edges {{
    {servers}
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://edges;
      proxy_http_version 1.1;
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""


class Balancer:
    """Edges take turns; one that does not listen is left out for `LEFT_OUT_S`."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.folder = folder
        folder.mkdir()
        self.port = free_port()
        servers = "\n    ".join(
            f"server 127.0.0.1:{port} max_fails=1 fail_timeout={LEFT_OUT_S}s;" for port in ports
        )
        names = {"user": getpass.getuser(), "folder": folder, "port": self.port}
        config = folder / "nginx.conf"
        config.write_text(_CONFIG.format(servers=servers, **names))
        self._process = subprocess.Popen(
            ["nginx", "-e", str(folder / "error.log"), "-c", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_port(self.port, self._process)

    @staticmethod
    def installed() -> bool:
        return shutil.which("nginx") is not None

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)
