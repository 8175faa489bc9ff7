"""`mora data build stamps`: a row for every recording, a stamp in one part, and what shares its bytes with it."""

import csv
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest

pytest.importorskip("PIL")
pytest.importorskip("soundfile")
pytest.importorskip("resvg_py")

from mora.cli import main
from mora.data.builders import build_stamps
from mora.data.builders.stamps import SIDE, languages_of, stamps_folder
from mora.data.images import decode
from tests.data import stamps


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    return stamps.package(tmp_path_factory.mktemp("package"))


@pytest.fixture
def changed(package: Path, tmp_path: Path) -> Path:
    """A copy of the package that a test may change."""
    return Path(shutil.copytree(package, tmp_path / "copy"))


def built(package: Path, out: Path, **options: object) -> tuple[list[dict[str, str]], list[str]]:
    lines: list[str] = []
    path = build_stamps(package, out, report=lines.append, **options)
    with path.open(newline="") as file:
        return list(csv.DictReader(file)), lines


def test_every_recording_is_a_row_and_every_stamp_in_one_part(package: Path, tmp_path: Path) -> None:
    rows, lines = built(package, tmp_path / "out")
    assert Counter(row["label"] for row in rows) == {"animals/birds": 15, "food/fruit": 15, "town/houses": 15}
    assert {row["text"] for row in rows} == {f"A thing {kind} {n}." for kind in range(3) for n in (0, 1, 2, 3, 5)}
    told = list(languages_of(tmp_path / "out" / "stamps.csv"))
    assert Counter(language for _, language in told) == {"en": 15, "fr": 15, "pt_BR": 15}
    parts = defaultdict(set)
    for (stamp, language), row in zip(told, rows, strict=True):
        parts[stamp].add(row["split"])
        assert f"{stamp}_desc{'' if language == 'en' else f'_{language}'}" in row["audio"]
        assert Path(row["audio"]).is_file()
    assert all(len(of) == 1 for of in parts.values())
    per_part = Counter(part for (part,) in parts.values())
    assert per_part == {"train": 9, "validation": 3, "test": 3}
    assert lines[:2] == [
        "27 pictures with a text, 13 of them SVG alone; 23 with a spoken description, in 5 folders",
        "69 recordings: en 23, fr 23, pt_BR 23",
    ]
    assert lines[2] == "train: 9 stamps, 27 recordings"


def test_svgs_are_drawn_and_pngs_stay_where_they_are(package: Path, tmp_path: Path) -> None:
    rows, _ = built(package, tmp_path / "out")
    for row in rows:
        drawn = int(row["text"][-2]) % 2
        assert Path(row["image"]).is_absolute() != drawn
        image = decode((tmp_path / "out" / row["image"]).read_bytes(), "it")
        assert not drawn or (image.size == (SIDE, SIDE) and image.getextrema()[0] == (0, 255))


def test_another_seed_divides_otherwise_and_the_same_one_alike(package: Path, tmp_path: Path) -> None:
    first, again, other = (built(package, tmp_path / str(n), seed=seed)[0] for n, seed in enumerate((0, 0, 1)))
    assert [row["split"] for row in first] == [row["split"] for row in again]
    assert [row["split"] for row in first] != [row["split"] for row in other]


def test_what_shares_a_text_or_a_recording_stays_together(changed: Path, tmp_path: Path) -> None:
    root = stamps_folder(changed)
    birds, fruit = root / "animals/birds", root / "food/fruit"
    for number in (1, 2):  # one recording, one text, and a chain over both
        shutil.copy(birds / "thing_0_desc_fr.ogg", birds / f"thing_{number}_desc_fr.ogg")
    (birds / "thing_3.txt").write_text("a THING 0 2.\n")
    shutil.copy(birds / "thing_2.png", fruit / "thing_0.png")
    rows, _ = built(changed, tmp_path / "out", seed=3)
    together = {"A thing 0 0.", "A thing 0 1.", "A thing 0 2.", "a THING 0 2.", "A thing 1 0."}
    assert len({row["split"] for row in rows if row["text"] in together}) == 1


def test_languages_are_chosen_and_an_unknown_one_is_refused(package: Path, tmp_path: Path) -> None:
    rows, _ = built(package, tmp_path / "out", languages=["fr"])
    assert len(rows) == 15 and all(row["audio"].endswith("_desc_fr.ogg") for row in rows)
    with pytest.raises(ValueError, match=r"languages: got 'xx', expected some of en, fr, pt_BR"):
        build_stamps(package, tmp_path / "other", languages=["fr", "xx"])


def test_broken_files_are_named_and_left_out_when_asked(changed: Path, tmp_path: Path) -> None:
    root, out = stamps_folder(changed), tmp_path / "out"
    (root / "food/fruit/thing_0_desc_fr.ogg").write_bytes(b"OggS broken")
    (root / "animals/birds/thing_1.svg").write_text("<svg")
    with pytest.raises(
        ValueError, match=r"2 files cannot be read: .*thing_1\.svg: it is no SVG .*thing_0_desc_fr\.ogg"
    ):
        build_stamps(changed, out)
    assert not out.exists()
    (root / "animals/birds/thing_4_desc_fr.ogg").write_bytes(stamps.encoded(stamps.tone(900)))
    rows, lines = built(changed, out, skip_broken=True)
    assert len(rows) == 15 - 3 + 1 + 14 + 15
    assert lines[-1].startswith("3 classes, 2 files left out")
    assert len((out / "broken.txt").read_text().splitlines()) == 2


def test_what_is_no_package_and_what_would_be_overwritten_is_refused(package: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected the unpacked package tuxpaint-stamps-default"):
        build_stamps(tmp_path, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="which holds something else"):
        build_stamps(package, tmp_path / "mine")
    built(package, tmp_path / "again")
    built(package, tmp_path / "again")


def test_the_command(package: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["data", "build", "stamps", "--from", str(package), "--out", str(out), "--languages", "fr"]) == 0
    assert f"{out / 'stamps.csv'}" in capsys.readouterr().out
    assert main(["data", "build", "stamps", "--from", str(package), "--out", str(out), "--accept-counts"]) == 2
    assert "--accept-counts: got it with stamps" in capsys.readouterr().err
