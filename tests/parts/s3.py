"""A bucket: moto's server, which speaks S3, in a process of its own."""

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import boto3

BUCKET = "artifacts"
KEYS = {"AWS_ACCESS_KEY_ID": "an-id", "AWS_SECRET_ACCESS_KEY": "a-secret"}
_SERVE = """
import sys
from werkzeug.serving import make_server
from moto.server import DomainDispatcherApplication, create_backend_app
server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""


class S3:
    """`url` is its address; `client` a plain client of the bucket."""

    def __init__(self, log: Path) -> None:
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _SERVE], stdout=subprocess.PIPE, stderr=out, env=environ()
            )
        line = self.process.stdout.readline()
        assert line, log.read_text()[-2000:]
        self.url = f"http://127.0.0.1:{int(line)}"
        self._until_it_answers()
        self.client = boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        self.client.create_bucket(Bucket=BUCKET)

    def names(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=BUCKET)
        return [each["Key"] for each in found.get("Contents", [])]

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def _until_it_answers(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(self.url + "/moto-api/", timeout=5):
                    return
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)


def environ() -> dict[str, str]:
    return {**os.environ, **KEYS, "AWS_EC2_METADATA_DISABLED": "true"}
