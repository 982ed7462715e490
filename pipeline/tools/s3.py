"""Objects of S3, or of a service with its API, by boto3 and the usual credentials."""

from __future__ import annotations

from functools import cache
from typing import Any

from pipeline.tools.aws import translated
from pipeline.tools.curl import CONNECT_SECONDS, SLOW_SECONDS


class S3Object:
    """An object of S3, to be read."""

    def __init__(self, bucket: str, key: str) -> None:
        self._names = {"Bucket": bucket, "Key": key}
        self._region: str | None = None
        self._client = cache(self._make_client)

    def sign(self) -> str:
        """A URL by which the object can be read for an hour. Raises NoCredentials, Cut."""
        with translated("s3:GetObject"):
            client = self._client(self._region)
            return str(client.generate_presigned_url("get_object", Params=self._names))

    def check(self) -> None:
        """Asks S3 itself for the object, which tells more than the status that a signed URL gets,
        and leads boto3 to the bucket's region. Raises Refused, NoCredentials, Cut."""
        with translated("s3:GetObject"):
            self._client(self._region).get_object(**self._names)["Body"].close()

    def _make_client(self, region: str | None) -> Any:
        import boto3
        from botocore.config import Config

        session = boto3.Session()
        config = Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=SLOW_SECONDS,
            retries={"total_max_attempts": 1},
            signature_version="s3v4",
        )
        region = region or session.region_name or "us-east-1"
        client = session.client("s3", region_name=region, config=config)
        client.meta.events.register("before-sign.s3.GetObject", self._note_region)
        return client

    def _note_region(self, request: Any, **_others: object) -> None:
        self._region = request.context.get("signing", {}).get("region") or self._region
