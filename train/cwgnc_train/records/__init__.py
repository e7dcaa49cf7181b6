"""Files of records: JSON lines with checksums, and the manifest of a folder."""

from cwgnc_train.records.files import checked_line as checked_line
from cwgnc_train.records.files import parse_lines as parse_lines
from cwgnc_train.records.files import plain as plain
from cwgnc_train.records.files import read_json_object as read_json_object
from cwgnc_train.records.files import verify_manifest as verify_manifest
from cwgnc_train.records.files import write_json as write_json
from cwgnc_train.records.files import write_manifest as write_manifest
from cwgnc_train.records.files import write_whole as write_whole
from cwgnc_train.records.record_file import RecordFile as RecordFile
