"""Zip archives with equal bytes for equal files."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Final

_TIME: Final = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold
_UNIX: Final = 3
_MODE: Final = 0o100644 << 16  # a plain file that everyone may read


def zip_archive(files: Mapping[str, bytes]) -> bytes:
    """The files in a zip, at its top level and in the order of the mapping.

    Nothing in it depends on the time or the machine, apart from the installed zlib, which compresses.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, date_time=_TIME)
            entry.create_system, entry.external_attr = _UNIX, _MODE
            archive.writestr(entry, data, compress_type=zipfile.ZIP_DEFLATED, compresslevel=6)
    return content.getvalue()
