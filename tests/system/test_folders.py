"""Folders that appear as a whole, files that appear together, and what a kill leaves of them."""

import os
import resource

import pytest

from mora.system import folders
from mora.system.folders import remove_leftovers, whole_folder, write_together

OLD, NEW = ({name: f"{age} {name}".encode() for name in ("a", "b", "last")} for age in ("old", "new"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_that_fails_leaves_all_as_they_were(tmp_path):
    write_together(tmp_path, OLD)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match=r"/b'"):
            write_together(tmp_path, {**NEW, "b": b"x" * 1000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert contents(tmp_path) == OLD
    write_together(tmp_path, NEW)
    assert contents(tmp_path) == NEW


@pytest.mark.parametrize("renames", range(3))
def test_killed_between_two_renames_the_last_file_is_not_there(tmp_path, monkeypatch, renames):
    """Where the last file is, all are of one call."""
    write_together(tmp_path, OLD)
    replace, done = os.replace, []

    def dying(source, target):
        if len(done) == renames:
            os._exit(9)
        done.append(replace(source, target))

    if (child := os.fork()) == 0:
        folders.appearing.__globals__["os"].replace = dying
        write_together(tmp_path, NEW)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not (tmp_path / "last").exists()
    remove_leftovers(tmp_path)
    assert set(contents(tmp_path)) == {"a", "b"}


def test_leftovers_of_one_name(tmp_path):
    for name in (".out.0123456789abcdef", ".out.0123456789abcde0.old", ".other.0123456789abcdef", ".out.mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / ".out.0123456789abcde1").symlink_to(tmp_path / ".other.0123456789abcdef")
    remove_leftovers(tmp_path, "out")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"out", ".other.0123456789abcdef", ".out.mine"}  # killed between two renames, the old one is back
    assert list((tmp_path / ".other.0123456789abcdef").iterdir())  # a link's target is not touched


def test_a_link_in_the_place_of_a_whole_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").touch()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    with whole_folder(tmp_path / "out") as work:
        (work / "new").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "real"] and (tmp_path / "real" / "file").exists()
