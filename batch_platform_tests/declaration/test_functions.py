import sys
import zipfile

from batch_platform.declaration.importing import source_code


def test_the_source_code_of_a_module_is_the_same_in_the_archive_that_a_cluster_gets(tmp_path, monkeypatch):
    code = "def scored(rows):\n    return rows\n"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "of_a_cluster.py").write_text(code)
    with zipfile.ZipFile(tmp_path / "modules.zip", "w") as archive:
        archive.writestr("of_a_cluster.py", code)
    for place in ("folder", "modules.zip"):
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(tmp_path / place))
            assert source_code("of_a_cluster.scored", "model.import") == code
        del sys.modules["of_a_cluster"]
