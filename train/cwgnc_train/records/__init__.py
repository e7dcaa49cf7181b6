"""Files of records: JSON lines with checksums, and the manifest of a folder."""

from cwgnc_train.records.files import read_json_object, sync, write_json, write_whole
from cwgnc_train.records.lines import checked_line, parse_lines, plain
from cwgnc_train.records.manifest import verify_manifest, write_manifest
from cwgnc_train.records.record_file import RecordFile

__all__ = (
    "RecordFile",
    "checked_line",
    "parse_lines",
    "plain",
    "read_json_object",
    "sync",
    "verify_manifest",
    "write_json",
    "write_manifest",
    "write_whole",
)
