"""Missing tables: files that fit no other data, the published files, natural absence, never both missing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

pytest.importorskip("PIL")
pytest.importorskip("pyarrow")

from mora.data import (
    Dataset,
    Missing,
    combine_missing,
    draw_table,
    find_table,
    load_table,
    missing_table,
    open_dataset,
    parse_missing,
    per_sample,
    save_table,
    table_seed,
)
from mora.data.table_files import read_table
from mora.data.tables import TABLE_SEEDS
from mora.system.files import pack_tensors
from tests.data import synthetic


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic.arrow(tmp_path_factory.mktemp("tables"), "mmimdb")


@pytest.fixture(scope="module")
def train(root: Path) -> Dataset:
    return open_dataset(root, "train")


BOTH = Missing("both", 0.7)
shares = st.floats(0, 1)
values = st.integers(0, 2)


@given(st.integers(0, 300), shares, st.sampled_from(["text", "image", "both"]), st.integers(0, 2**40), shares)
@settings(max_examples=60, deadline=None)
def test_a_rate_counts_what_is_missing(n: int, rate: float, kind: str, seed: int, share: float) -> None:
    table = missing_table(n, rate, kind, seed, share)
    assert set(table.tolist()) <= {0.0, 1.0, 2.0}
    assert int((table != 0).sum()) == int(n * rate)
    images = {"text": 0, "image": int(n * rate), "both": int(int(n * rate) * share)}[kind]
    assert int((table == 2).sum()) == images
    assert torch.equal(table, missing_table(n, rate, kind, seed, share))


@given(st.lists(st.tuples(values, values), max_size=50))
def test_combining_never_takes_both_and_never_gives_back(pairs: list[tuple[int, int]]) -> None:
    available = torch.tensor([pair[0] for pair in pairs], dtype=torch.int8)
    table = torch.tensor([pair[1] for pair in pairs], dtype=torch.float32)
    combined = combine_missing(available, table)
    assert combined.dtype == torch.int8
    for natural, simulated, result in zip(available.tolist(), table.tolist(), combined.tolist(), strict=True):
        assert result == (natural or simulated)  # one value is one modality: never both


def test_combining_names_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"table: got shape \[2\], expected \[3\] as available has"):
        combine_missing(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"table: got 3.0 in row 2, expected 0 \(complete\), 1 \(text missing\) or 2"):
        combine_missing(torch.zeros(2), torch.tensor([0.0, 3.0]))
    with pytest.raises(ValueError, match="available: got nan in row 1"):
        combine_missing(torch.tensor([float("nan")]), torch.zeros(1))


def test_tables_meet_natural_absence(tmp_path: Path) -> None:
    data = open_dataset(synthetic.manifest(tmp_path), "all")
    natural, table = data.available(), draw_table(data, Missing("image", 0.5), seed=0)
    combined = per_sample(table, data)
    assert torch.equal(combined[natural != 0], natural[natural != 0])
    assert torch.equal(combined[natural == 0], table.values[natural == 0].to(torch.int8))


def test_plots_of_a_movie_share_its_row(train: Dataset) -> None:
    table = draw_table(train, BOTH, seed=42)
    assert len(table) == train.rows == 24 and len(train) == 48
    assert torch.equal(table.values, missing_table(24, 0.7, "both", 42))
    combined = per_sample(table, train)
    assert combined.tolist() == [int(table.values[row]) for row in train.groups()]


@pytest.mark.parametrize("text", ["both:0.7", "text:0.5", "image:0.9", "both:0.7:0.25", "none"])
def test_conditions_are_read_as_they_are_written(text: str) -> None:
    assert str(Missing.parse(text)) == text


def test_conditions_by_split() -> None:
    assert parse_missing("both:0.7") == dict.fromkeys(("train", "validation", "test"), BOTH)
    assert parse_missing("train=both:0.7, test=image:0.9") == {
        "train": BOTH, "validation": Missing(), "test": Missing("image", 0.9),
    }  # fmt: skip
    for text, message in (
        ("both", "missing: got 'both', expected KIND:RATE or KIND:RATE:SHARE, such as both:0.7"),
        ("both:much", "missing: got 'both:much'"),
        ("both:0.7:0.5:1", "missing: got"),
        ("sound:0.7", "kind: got 'sound', expected one of 'text', 'image', 'both'"),
        ("both:70", "rate: got 70.0, expected a share between 0 and 1"),
        ("eval=both:0.7", "missing: got 'eval', expected each of 'train', 'validation', 'test' at most once"),
        ("train=both:0.7,train=text:0.1", "missing: got .*expected each split once"),
        ("dev=both:0.7,val=text:0.1", "missing: got 'val', expected each of"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_missing(text)


@pytest.mark.parametrize("missing", [BOTH, Missing("text", 0.5), Missing("both", 0.7, 0.25), Missing()])
def test_files_tell_everything(tmp_path: Path, train: Dataset, missing: Missing) -> None:
    table = draw_table(train, missing, seed=7)
    path = save_table(table, str(tmp_path / "tables"))
    again = load_table(path, train)
    assert torch.equal(again.values, table.values) and again.values.dtype == torch.float32
    assert (again.missing, again.seed, again.split, again.fingerprint) == (missing, 7, "train", train.fingerprint)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["rows"] == "24" and metadata["seed"] == "7" and metadata["kind"] == missing.kind
    assert torch.equal(find_table(tmp_path / "tables", train, missing, 7).values, table.values)


def test_names_differ_by_everything_that_matters(train: Dataset) -> None:
    tables = [draw_table(train, m, s) for m in (BOTH, Missing("both", 0.7, 0.2), Missing("text", 0.7)) for s in (0, 1)]
    assert len({table.file_name for table in tables}) == 6
    assert tables[0].file_name == "mmimdb_train_missing_both_0.7_seed0.safetensors"


def test_a_stale_table_is_impossible(tmp_path: Path, root: Path, train: Dataset) -> None:
    path = save_table(draw_table(train, BOTH, 42), tmp_path)
    with pytest.raises(ValueError, match=r"got a missing table of mmimdb, train, expected one of mmimdb, test"):
        load_table(path, open_dataset(root, "test"))
    smaller = open_dataset(synthetic.arrow(tmp_path / "a", "mmimdb", (23, 8, 8)), "train")
    with pytest.raises(ValueError, match=r"got a missing table of 24 rows \(mmimdb, train\), expected the 23 rows of"):
        load_table(path, smaller)
    other = open_dataset(synthetic.arrow(tmp_path / "b", "food101"), "train")
    with pytest.raises(ValueError, match="got a missing table of mmimdb, expected one of food101"):
        load_table(path, other)
    renamed = open_dataset(synthetic.arrow(tmp_path / "b", "hateful_memes"), "train", name="mine")
    first, second = train.fingerprint[:12], renamed.fingerprint[:12]
    with pytest.raises(ValueError, match=f"data with fingerprint {first} .*expected {second} .*the data has changed"):
        load_table(path, renamed)
    with pytest.raises(ValueError, match="table: got a missing table made for data with fingerprint"):
        per_sample(draw_table(train, BOTH, 42), renamed)


def test_an_edited_or_damaged_file_is_named(tmp_path: Path, train: Dataset) -> None:
    path = save_table(draw_table(train, BOTH, 42), tmp_path)
    with safe_open(path, framework="pt") as file:
        metadata, found = file.metadata(), file.get_tensor("missing")
    for tensors, words, message in (
        ({"missing": found.flip(0)}, metadata, "was changed after it was drawn"),
        ({"missing": found}, {**metadata, "rate": "0.5"}, "was changed after it was drawn"),
        ({"missing": found}, {**metadata, "format": "2"}, "got format '2', expected 'mora missing table 1'"),
        ({"missing": found}, {"format": metadata["format"]}, "got metadata without data, fingerprint, split"),
        ({"other": found}, metadata, "got a file that is no missing table"),
    ):
        path.write_bytes(pack_tensors(tensors, words))
        with pytest.raises(ValueError, match=f"{path.name}: .*{message}"):
            read_table(path)
    path.write_bytes(b"half")
    with pytest.raises(ValueError, match="got a file that is no missing table"):
        read_table(path)
    with pytest.raises(FileNotFoundError, match=r"gone.pt: got no such file, expected a missing table"):
        load_table(tmp_path / "gone.pt", train)


@pytest.mark.parametrize("name", ["mmimdb_splittrain_missing_both_0.7.pt", "mmimdb_train_missing_both_07.pt"])
def test_published_files_are_read_by_either_name(tmp_path: Path, train: Dataset, name: str) -> None:
    table = missing_table(24, 0.7, "both", 3)
    torch.save(table, tmp_path / name)
    found = load_table(tmp_path / name, train)
    assert torch.equal(found.values, table)
    assert (found.missing, found.split, found.data, found.seed) == (BOTH, "train", "mmimdb", None)
    assert torch.equal(find_table(tmp_path, train, BOTH, seed=42).values, table)
    assert torch.equal(per_sample(found, train), per_sample(found, train))


def test_the_peers_names_for_data_and_splits(tmp_path: Path) -> None:
    data = open_dataset(synthetic.arrow(tmp_path, "hateful_memes"), "validation")
    for name, rate in (("hatememes_dev_missing_text_05.pt", 0.5), ("hatememes_dev_missing_text_1.pt", 1.0)):
        torch.save(missing_table(8, rate, "text", 0), tmp_path / name)
        assert load_table(tmp_path / name, data).missing == Missing("text", rate)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine.pt", torch.zeros(24), "got a missing table of this name, expected {data}_split{split}_missing"),
        ("mmimdb_train_missing_audio_07.pt", torch.zeros(24), "of this name"),
        ("mmimdb_train_missing_both_07.pt", torch.zeros(24), "got 0 of 24 rows that lack something, expected 16 that"),
        ("mmimdb_train_missing_text_05.pt", missing_table(24, 0.5, "image", 0), "12 of them the other modality"),
        ("mmimdb_train_missing_both_07.pt", missing_table(23, 0.7, "both", 0), "got a missing table of 23 rows"),
        ("mmimdb_dev_missing_both_07.pt", missing_table(24, 0.7, "both", 0), "got a missing table of mmimdb, valid"),
        ("food101_train_missing_both_07.pt", missing_table(24, 0.7, "both", 0), "of food101, expected one of mmimdb"),
        ("mmimdb_train_missing_both_07.pt", torch.full((24,), 3.0), "got 3.0 in row 1, expected 0"),
        ("mmimdb_train_missing_both_07.pt", {"a": 1}, "got dict, expected a tensor"),
        ("mmimdb_train_missing_both_07.pt", torch.zeros(24, 2), r"got a tensor of shape \[24, 2\]"),
        ("mmimdb_train_missing_both_07.pt", Path("runs/code"), "refuses .it holds what is no plain tensor; files that"),
    ],
)
def test_wrong_published_files_are_named(
    tmp_path: Path, train: Dataset, name: str, content: object, message: str
) -> None:
    torch.save(content, tmp_path / name)
    with pytest.raises(ValueError, match=message):
        load_table(tmp_path / name, train)


def test_a_folder_without_the_table_says_what_it_has(tmp_path: Path, train: Dataset) -> None:
    with pytest.raises(
        ValueError, match="got no missing tables, expected one table of mmimdb, train, both:0.7: mmimdb"
    ):
        find_table(tmp_path, train, BOTH, 42)
    save_table(draw_table(train, BOTH, 1), tmp_path)
    with pytest.raises(ValueError, match=r"got mmimdb_train_missing_both_0.7_seed1.safetensors, expected one table of"):
        find_table(tmp_path, train, BOTH, 42)
    for name in ("mmimdb_splittrain_missing_both_0.7.pt", "mmimdb_train_missing_both_07.pt"):
        torch.save(missing_table(24, 0.7, "both", 3), tmp_path / name)
    with pytest.raises(
        ValueError, match=r"got both mmimdb_splittrain_missing_both_0.7.pt, mmimdb_train_missing_both_07"
    ):
        find_table(tmp_path, train, BOTH, 42)


def test_only_drawn_tables_are_saved(tmp_path: Path, train: Dataset) -> None:
    torch.save(missing_table(24, 0.7, "both", 3), tmp_path / "mmimdb_train_missing_both_07.pt")
    with pytest.raises(ValueError, match="table: got one that was read from a published file"):
        save_table(load_table(tmp_path / "mmimdb_train_missing_both_07.pt", train), tmp_path)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_nothing_and_everything_are_rates_too(train: Dataset, rate: float) -> None:
    for kind in ("text", "image", "both"):
        lacks = per_sample(draw_table(train, Missing(kind, rate), seed=0), train)
        assert int((lacks != 0).sum()) == int(len(train) * rate)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, "1", None, 10**5000], ids=lambda seed: str(type(seed)))
def test_a_seed_out_of_range_is_named(train: Dataset, seed: object) -> None:
    """Python's generator takes -1 for 1, and a text for a number of its own."""
    with pytest.raises(ValueError, match=r"seed: got .*expected a whole number from 0 to 2\*\*63 - 1"):
        draw_table(train, BOTH, seed)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"seed \(--split-seed\): got .*expected a whole number"):
        open_dataset("nowhere", "train", seed=seed)  # type: ignore[arg-type]


def test_splits_do_not_draw_alike(root: Path) -> None:
    tables = [
        draw_table(open_dataset(root, split), BOTH, table_seed(42, split)) for split in TABLE_SEEDS if split != "all"
    ]
    assert len({table.seed for table in tables}) == 3
    assert not torch.equal(tables[1].values, tables[2].values)  # both have eight rows


RACE = """
import sys
from pathlib import Path
from mora.data import Missing, draw_table, load_table, open_dataset, save_table
data = open_dataset(sys.argv[1], "train")
table = draw_table(data, Missing("both", 0.7), 42)
for _ in range(40):
    path = save_table(table, Path(sys.argv[2]))
    assert load_table(path, data).values.equal(table.values)
"""


def test_processes_that_write_one_table_at_once_leave_it_whole(tmp_path: Path, root: Path, train: Dataset) -> None:
    """As several ranks do that share a folder: a file appears whole, by rename, whoever was first."""
    command = [sys.executable, "-c", RACE, str(root), str(tmp_path)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        assert process.communicate()[1] == "" and process.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == [draw_table(train, BOTH, 42).file_name]
