"""The page on remote storage is run as it is read, against the stand-ins for S3 and a web server."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import boto3
from remote_servers import object_store

ROOT = Path(__file__).parents[2]


def _pages():
    spec = importlib.util.spec_from_file_location("remote_page_blocks", ROOT / "tests/docs/pages.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Bucket(dict):
    """The objects of a bucket, as the files of a web server."""

    def __init__(self, client, bucket):
        super().__init__()
        self._client, self._bucket = client, bucket

    def get(self, path, default=None):
        try:
            return self._client.get_object(Bucket=self._bucket, Key=path.lstrip("/"))["Body"].read()
        except self._client.exceptions.NoSuchKey:
            return default


def test_the_page_runs(web, tmp_path):
    script = _pages().script(ROOT / "docs/how-to/remote.md", ("pip install ",))
    credentials = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "sesame"}
    environment = {name: value for name, value in os.environ.items() if "STRONGROOM" not in name}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with object_store() as store:
        client = boto3.client(
            "s3",
            endpoint_url=store.url,
            region_name="us-east-1",
            aws_access_key_id="AKIAEXAMPLE",
            aws_secret_access_key="sesame",
        )
        client.create_bucket(Bucket="models")
        web.files = Bucket(client, "models")
        environment |= credentials | {
            "AWS_DEFAULT_REGION": "us-east-1",
            "FSSPEC_S3": json.dumps({"endpoint_url": store.url}),
        }
        done = subprocess.run(
            ["bash", "-c", script.replace("https://models.example.org", web.url)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        client.close()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("authentic and complete") == 2
    assert "sesame" not in done.stdout + done.stderr
    assert (tmp_path / "copy/weights.bin").read_bytes() == (tmp_path / "model/weights.bin").read_bytes()
    assert {request.method for request in web.requests} == {"GET"}
