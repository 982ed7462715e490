"""The part of S3 that an import needs: objects and multipart uploads in existing buckets."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import parse_qsl, unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from ec2_protocol import (
    Answer,
    Request,
    ServiceError,
    format_time,
    unchunk,
    write_s3_answer,
)
from ec2_state import Bucket, Ec2State, Object, Upload

_SMALLEST_PART = 5 << 20  # of a multipart upload; the last part may be smaller
_LARGEST_PUT = 5 << 30
_KEPT_HEADERS = ("x-amz-meta-", "x-amz-tagging", "content-type")


@dataclass(frozen=True, kw_only=True)
class _S3Call:
    state: Ec2State
    request: Request
    bucket: Bucket
    key: str
    query: Mapping[str, str]

    def find_object(self) -> Object:
        found = self.bucket.objects.get(self.key)
        if found is None:
            raise ServiceError("NoSuchKey", "The specified key does not exist.", status=404)
        return found

    def find_upload(self) -> Upload:
        found = self.bucket.uploads.get(self.query["uploadId"])
        if found is None or found.key != self.key:
            raise ServiceError("NoSuchUpload", "The upload does not exist.", status=404)
        return found

    def read_body(self) -> bytes:
        """The data, checked against the client's digests."""
        data = unchunk(self.request)
        md5 = self.request.header("Content-MD5")
        if md5 is not None and md5 != base64.b64encode(hashlib.md5(data).digest()).decode():
            raise ServiceError("BadDigest", "The Content-MD5 is not the data's.")
        sha = self.request.header("x-amz-checksum-sha256")
        if sha is not None and sha != base64.b64encode(hashlib.sha256(data).digest()).decode():
            raise ServiceError("BadDigest", "The SHA256 is not the data's.")
        if len(data) > _LARGEST_PUT:
            raise ServiceError("EntityTooLarge", "The object is too large.")
        return data

    def read_headers(self) -> dict[str, str]:
        return {
            name.lower(): value
            for name, value in self.request.headers.items()
            if name.lower().startswith(_KEPT_HEADERS)
        }


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = unquote(path).lstrip("/").partition("/")
    return bucket, key


def find_operation(request: Request) -> tuple[str, str]:
    """Finds the operation, and the right that it needs, from method, path and query."""
    query = dict(parse_qsl(request.query, keep_blank_values=True))
    _, key = _split(request.path)
    found = {
        ("PUT", True): "PutObject",
        ("GET", True): "GetObject",
        ("HEAD", True): "HeadObject",
        ("DELETE", True): "DeleteObject",
        ("HEAD", False): "HeadBucket",
    }.get((request.method, bool(key)), "")
    special = {
        ("POST", "uploads"): "CreateMultipartUpload",
        ("PUT", "uploadId"): "UploadPart",
        ("POST", "uploadId"): "CompleteMultipartUpload",
        ("DELETE", "uploadId"): "AbortMultipartUpload",
        ("GET", "uploadId"): "ListParts",
        ("GET", "uploads"): "ListMultipartUploads",
        ("GET", "location"): "GetBucketLocation",
        ("GET", "list-type"): "ListObjectsV2",
        ("GET", "tagging"): "GetObjectTagging",
    }
    for (method, name), operation in special.items():
        if method == request.method and name in query:
            found = operation
    if found not in _OPERATIONS:
        raise ServiceError("NotImplemented", "This is not served here.", status=501)
    return found, f"s3:{_OPERATIONS[found][0]}"


def perform(state: Ec2State, operation: str, account: str, region: str, request: Request) -> Answer:
    name, key = _split(request.path)
    bucket = state.buckets.get(name)
    if bucket is None:
        raise ServiceError("NoSuchBucket", "The specified bucket does not exist", status=404)
    if bucket.owner != account:
        raise ServiceError("AccessDenied", "Access Denied", status=403)
    if bucket.region != region and operation == "HeadBucket":  # a HEAD answer has no body
        return Answer(status=301, headers={"x-amz-bucket-region": bucket.region})
    if bucket.region != region:
        raise ServiceError(
            "PermanentRedirect",
            f"The bucket is in this region: {bucket.region}. Please use this region.",
            status=301,
        )
    query = dict(parse_qsl(request.query, keep_blank_values=True))
    call = _S3Call(state=state, request=request, bucket=bucket, key=key, query=query)
    return _OPERATIONS[operation][1](call)


def _put_object(call: _S3Call) -> Answer:
    data = call.read_body()
    call.bucket.objects[call.key] = Object(
        data=data, headers=call.read_headers(), stored=call.state.clock.now()
    )
    return Answer(status=200, headers={"ETag": _etag(data)})


def _get_object(call: _S3Call) -> Answer:
    found = call.find_object()
    headers = _describe_object(found)
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", call.request.header("Range") or "")
    if wanted is None:
        return Answer(status=200, body=found.data, headers=headers)
    start, end = int(wanted[1]), min(int(wanted[2] or len(found.data)) + 1, len(found.data))
    if start >= len(found.data):
        raise ServiceError("InvalidRange", "The range is not satisfiable", status=416)
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(found.data)}"
    return Answer(status=206, body=found.data[start:end], headers=headers)


def _head_object(call: _S3Call) -> Answer:
    found = call.find_object()
    headers = _describe_object(found) | {"Content-Length": str(len(found.data))}
    return Answer(status=200, headers=headers)


def _describe_object(found: Object) -> dict[str, str]:
    headers = {name: v for name, v in found.headers.items() if name != "x-amz-tagging"}
    return {
        **headers,
        "ETag": _etag(found.data),
        "Accept-Ranges": "bytes",
        "Last-Modified": formatdate(found.stored, usegmt=True),
    }


def _delete_object(call: _S3Call) -> Answer:
    call.bucket.objects.pop(call.key, None)
    return Answer(status=204)


def _get_object_tagging(call: _S3Call) -> Answer:
    tags = parse_qsl(call.find_object().headers.get("x-amz-tagging", ""))
    inside = "".join(
        f"<Tag><Key>{escape(k)}</Key><Value>{escape(v)}</Value></Tag>" for k, v in tags
    )
    return write_s3_answer("Tagging", f"<TagSet>{inside}</TagSet>")


def _head_bucket(call: _S3Call) -> Answer:
    return Answer(status=200, headers={"x-amz-bucket-region": call.bucket.region})


def _get_bucket_location(call: _S3Call) -> Answer:
    region = call.bucket.region
    return write_s3_answer("LocationConstraint", "" if region == "us-east-1" else region)


def _list_objects(call: _S3Call) -> Answer:
    prefix = call.query.get("prefix", "")
    after = call.query.get("continuation-token", call.query.get("start-after", ""))
    limits = [int(call.query.get("max-keys", "1000")), 1000, call.state.page_limit or 1000]
    keys = [k for k in sorted(call.bucket.objects) if k.startswith(prefix) and k > after]
    page = keys[: min(limits)]
    objects = call.bucket.objects
    inside = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{len(objects[key].data)}</Size>"
        f"<LastModified>{format_time(objects[key].stored)}</LastModified></Contents>"
        for key in page
    )
    more = len(page) < len(keys)
    inside += f"<KeyCount>{len(page)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>"
    if more:
        inside += f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>"
    return write_s3_answer("ListBucketResult", inside)


def _create_upload(call: _S3Call) -> Answer:
    upload = Upload(
        id=secrets.token_hex(16),
        key=call.key,
        headers=call.read_headers(),
        started=call.state.clock.now(),
    )
    call.bucket.uploads[upload.id] = upload
    return write_s3_answer(
        "InitiateMultipartUploadResult",
        f"<Bucket>{call.bucket.name}</Bucket><Key>{escape(call.key)}</Key>"
        f"<UploadId>{upload.id}</UploadId>",
    )


def _upload_part(call: _S3Call) -> Answer:
    upload, data = call.find_upload(), call.read_body()
    upload.parts[int(call.query["partNumber"])] = data
    return Answer(status=200, headers={"ETag": _etag(data)})


def _list_parts(call: _S3Call) -> Answer:
    parts = call.find_upload().parts
    inside = "".join(
        f"<Part><PartNumber>{n}</PartNumber><ETag>{escape(_etag(parts[n]))}</ETag>"
        f"<Size>{len(parts[n])}</Size></Part>"
        for n in sorted(parts)
    )
    return write_s3_answer("ListPartsResult", f"{inside}<IsTruncated>false</IsTruncated>")


def _complete_upload(call: _S3Call) -> Answer:
    upload = call.find_upload()
    listed = [
        (int(part.findtext("{*}PartNumber") or 0), (part.findtext("{*}ETag") or "").strip('"'))
        for part in ElementTree.fromstring(call.request.body).iterfind("{*}Part")
    ]
    if not listed or sorted(listed) != listed:
        raise ServiceError("InvalidPartOrder", "The parts are not in ascending order.")
    for number, etag in listed:
        if number not in upload.parts or _etag(upload.parts[number]).strip('"') != etag:
            raise ServiceError("InvalidPart", f"Part {number} was not found.")
    for number, _ in listed[:-1]:
        if len(upload.parts[number]) < _SMALLEST_PART:
            raise ServiceError("EntityTooSmall", "A part is smaller than 5 MiB.")
    data = b"".join(upload.parts[number] for number, _ in listed)
    call.bucket.objects[call.key] = Object(
        data=data, headers=upload.headers, stored=call.state.clock.now()
    )
    del call.bucket.uploads[upload.id]
    return write_s3_answer(
        "CompleteMultipartUploadResult",
        f"<Bucket>{call.bucket.name}</Bucket><Key>{escape(call.key)}</Key>"
        f"<ETag>{escape(_etag(data))}</ETag>",
    )


def _abort_upload(call: _S3Call) -> Answer:
    del call.bucket.uploads[call.find_upload().id]
    return Answer(status=204)


def _list_uploads(call: _S3Call) -> Answer:
    prefix = call.query.get("prefix", "")
    after = (call.query.get("key-marker", ""), call.query.get("upload-id-marker", ""))
    uploads = sorted(call.bucket.uploads.values(), key=lambda each: (each.key, each.id))
    found = [e for e in uploads if e.key.startswith(prefix) and (e.key, e.id) > after]
    limits = [int(call.query.get("max-uploads", "1000")), 1000, call.state.page_limit or 1000]
    page = found[: min(limits)]
    inside = "".join(
        f"<Upload><Key>{escape(each.key)}</Key><UploadId>{each.id}</UploadId>"
        f"<Initiated>{format_time(each.started)}</Initiated></Upload>"
        for each in page
    )
    more = len(page) < len(found)
    inside += f"<IsTruncated>{str(more).lower()}</IsTruncated>"
    if more:
        inside += f"<NextKeyMarker>{escape(page[-1].key)}</NextKeyMarker>"
        inside += f"<NextUploadIdMarker>{page[-1].id}</NextUploadIdMarker>"
    return write_s3_answer("ListMultipartUploadsResult", inside)


_OPERATIONS: Mapping[str, tuple[str, Callable[[_S3Call], Answer]]] = {
    "AbortMultipartUpload": ("AbortMultipartUpload", _abort_upload),
    "CompleteMultipartUpload": ("PutObject", _complete_upload),
    "CreateMultipartUpload": ("PutObject", _create_upload),
    "DeleteObject": ("DeleteObject", _delete_object),
    "GetBucketLocation": ("GetBucketLocation", _get_bucket_location),
    "GetObject": ("GetObject", _get_object),
    "GetObjectTagging": ("GetObjectTagging", _get_object_tagging),
    "HeadBucket": ("ListBucket", _head_bucket),
    "HeadObject": ("GetObject", _head_object),
    "ListMultipartUploads": ("ListBucketMultipartUploads", _list_uploads),
    "ListObjectsV2": ("ListBucket", _list_objects),
    "ListParts": ("ListMultipartUploadParts", _list_parts),
    "PutObject": ("PutObject", _put_object),
    "UploadPart": ("PutObject", _upload_part),
}
