"""Archives with equal bytes for equal files."""

from __future__ import annotations

import io
import zipfile

from harness.store.archive import zip_archive


def test_an_archive_has_the_files_at_its_top_level_in_order_and_equal_bytes_each_time() -> None:
    files = {"toys.json": "红色的球\n".encode() * 100, "a.py": b"print()\n"}
    archive = zip_archive(files)
    assert zip_archive(dict(files)) == archive
    with zipfile.ZipFile(io.BytesIO(archive)) as read:
        assert read.testzip() is None
        assert read.namelist() == ["toys.json", "a.py"]
        assert {name: read.read(name) for name in files} == files
        for info in read.infolist():
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.external_attr >> 16 == 0o100644
    assert len(archive) < len(files["toys.json"])
