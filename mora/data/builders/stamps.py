"""Tux Paint's stamps: pictures with an English text and spoken descriptions in many languages, as a manifest."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mora.data.audio import BrokenAudioError
from mora.data.audio import decode as decode_audio
from mora.data.builders.raw import is_text
from mora.data.images import LARGEST_IMAGE, BrokenImageError, decode, progress
from mora.data.sources.division import divide
from mora.data.sources.drawings import square
from mora.system.files import read_bytes, write_bytes
from mora.system.folders import whole_folder
from mora.system.machine import cores, need
from mora.system.messages import listed, printable

NAME = "stamps"
MANIFEST, ACCOUNT, BROKEN = "stamps.csv", "recordings.csv", "broken.txt"
PICTURES = (".png", ".svg")  # the first that is there
SOUNDS = (".ogg", ".wav")
SPOKEN = re.compile(r"(?P<stamp>.+)_desc(?:_(?P<language>[A-Za-z]{2,3}(?:_[A-Za-z]+)?))?")
ENGLISH = "en"  # of a description without a language in its name
# Of Tux Paint's folders a class is what the first two say; letters and numbers are left out.
LEVELS = 2
LEFT_OUT = ("symbols/alphabets", "symbols/math")
SMALLEST = 5  # stamps of a class
SIDE = 256  # pixels of a drawing that comes as SVG


@dataclass(frozen=True)
class Stamp:
    """A picture, its English text, and (language, file) of every recording in which it is described."""

    name: str
    picture: Path
    text: str
    spoken: tuple[tuple[str, Path], ...]

    @property
    def label(self) -> str:
        """The first folders of its place."""
        return "/".join(self.name.split("/")[:-1][:LEVELS])


def build_stamps(
    source: str | Path,
    out: str | Path,
    *,
    languages: Sequence[str] | None = None,
    seed: int = 0,
    skip_broken: bool = False,
    report: Callable[[str], None] = print,
) -> Path:
    """Write `stamps.csv`, a manifest with a row for every recording, and return its path.

    Pictures and recordings stay where they are, and the manifest names them by absolute paths; drawings that come as
    SVG alone are drawn into `images/`. `recordings.csv` says which stamp and language each row is of. All of a
    stamp, and stamps that share a text, a picture's or a recording's bytes, are in one part: 80, 10 and 10 % of
    every class.

    Args:
        source: Debian's `tuxpaint-stamps-default` as `dpkg -x` unpacks it, or the folder `stamps` in it.
        out: the folder to write; it appears as a whole, in the place of one that was built before.
        languages: which recordings, such as ("fr", "es"); all by default.
        seed: of the division into parts.
        skip_broken: leave out pictures and recordings that cannot be read, instead of refusing all.
        report: called with every line of what was found.

    Raises:
        ValueError: no stamps there, an unknown language, `out` holds something else, or files that cannot be read.
        OSError: a folder is missing, or writing failed.
    """
    need("soundfile", "reading recordings")
    root, out = stamps_folder(Path(source)), Path(out)
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"out: got {out}, which holds something else, expected a new folder")
    stamps = read_stamps(root)
    account(stamps, report)
    chosen = chosen_stamps(stamps, languages)
    digests, broken = survey(chosen)
    if broken and not skip_broken:
        raise ValueError(
            f"{len(broken):,} files cannot be read: {listed(broken.values())}; "
            "skip_broken=True (--skip-broken) leaves them out"
        )
    chosen = classed(without(chosen, set(broken)))
    if not chosen:
        raise ValueError(f"{root}: got no class of {SMALLEST} stamps with recordings, expected one at least")
    labels = [(stamp.label,) for stamp in chosen]
    parts = divide(groups(chosen, digests), labels, seed)
    with whole_folder(out) as work:
        write(work, out, chosen, parts)
        if broken:
            write_bytes(work / BROKEN, "".join(f"{line}\n" for line in broken.values()).encode())
    for part in ("train", "validation", "test"):
        mine = [stamp for stamp, where in zip(chosen, parts, strict=True) if where == part]
        report(f"{part}: {len(mine):,} stamps, {sum(len(stamp.spoken) for stamp in mine):,} recordings")
    report(f"{len({stamp.label for stamp in chosen})} classes, {len(broken):,} files left out; {out / MANIFEST}")
    return out / MANIFEST


def stamps_folder(source: Path) -> Path:
    """The folder of stamps in an unpacked package, or itself; FileNotFoundError where there is none."""
    for folder in (source / "usr/share/tuxpaint/stamps", source / "stamps", source):
        if folder.is_dir() and any(True for _ in folder.glob("*/**/*_desc*")):
            return folder.resolve()
    raise FileNotFoundError(
        f"from: got {source}, expected the unpacked package tuxpaint-stamps-default or its folder stamps, with "
        "descriptions such as animals/birds/crow_desc_fr.ogg"
    )


def read_stamps(root: Path) -> list[Stamp]:
    """Every picture with a text, in the order of names; mirrored pictures belong to their stamp and have no text."""
    spoken: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for path in sorted(root.rglob("*_desc*")):
        found = SPOKEN.fullmatch(path.stem)
        if found and path.suffix in SOUNDS and path.is_file():
            name = path.relative_to(root).with_name(found["stamp"]).as_posix()
            spoken[name].append((found["language"] or ENGLISH, path))
    stamps = []
    for path in sorted(root.rglob("*.txt")):
        pictures = [picture for ending in PICTURES if (picture := path.with_suffix(ending)).is_file()]
        name = path.relative_to(root).with_suffix("").as_posix()
        if pictures and "/" in name and (text := first_line(path)):
            stamps.append(Stamp(name, pictures[0], text, tuple(spoken.get(name, ()))))
    return stamps


def first_line(path: Path) -> str:
    """The English text: the first line; translations follow, each after its language and `.utf8=`."""
    line = read_bytes(path, 1 << 20).split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    return line if is_text(line) and ".utf8=" not in line else ""


def account(stamps: Sequence[Stamp], report: Callable[[str], None]) -> None:
    """Say what there is, before anything is chosen."""
    spoken = [stamp for stamp in stamps if stamp.spoken]
    vectors = sum(stamp.picture.suffix == ".svg" for stamp in stamps)
    counts = Counter(language for stamp in stamps for language, _ in stamp.spoken)
    report(
        f"{len(stamps):,} pictures with a text, {vectors:,} of them SVG alone; {len(spoken):,} with a spoken "
        f"description, in {len({stamp.label for stamp in spoken})} folders"
    )
    languages = ", ".join(f"{language} {number:,}" for language, number in counts.most_common())
    report(f"{sum(counts.values()):,} recordings: {languages}")


def chosen_stamps(stamps: Sequence[Stamp], languages: Sequence[str] | None) -> list[Stamp]:
    """Those of a class that counts, with the recordings of some languages; ValueError for one that none is in."""
    known = {language for stamp in stamps for language, _ in stamp.spoken}
    if unknown := [language for language in languages or () if language not in known]:
        raise ValueError(f"languages: got {', '.join(map(repr, unknown))}, expected some of {', '.join(sorted(known))}")
    kept = [
        Stamp(stamp.name, stamp.picture, stamp.text, spoken)
        for stamp in stamps
        if stamp.label not in LEFT_OUT
        and (spoken := tuple(one for one in stamp.spoken if not languages or one[0] in languages))
    ]
    return classed(kept)


def classed(stamps: Sequence[Stamp]) -> list[Stamp]:
    """Those whose class has enough of them."""
    counts = Counter(stamp.label for stamp in stamps)
    return [stamp for stamp in stamps if counts[stamp.label] >= SMALLEST]


def without(stamps: Sequence[Stamp], broken: set[Path]) -> list[Stamp]:
    """The stamps, less the files that cannot be read, and less those of which nothing is left."""
    return [
        Stamp(stamp.name, stamp.picture, stamp.text, spoken)
        for stamp in stamps
        if stamp.picture not in broken and (spoken := tuple(one for one in stamp.spoken if one[1] not in broken))
    ]


def survey(stamps: Sequence[Stamp]) -> tuple[dict[Path, str], dict[Path, str]]:
    """(the digest of every file that can be read, what is wrong with every other)."""

    def look(path: Path) -> tuple[str, str]:
        name = printable(str(path))
        try:
            data = read_bytes(path, LARGEST_IMAGE)
            if path.suffix in SOUNDS:
                decode_audio(data, name)
            elif path.suffix == ".svg":
                square(data.decode(), 8)
            else:
                decode(data, name)
        except (BrokenAudioError, BrokenImageError) as error:
            return "", str(error)
        except (OSError, ValueError) as error:
            return "", f"{name}: {printable(str(error))}"
        return hashlib.sha256(data).hexdigest(), ""

    paths = [path for stamp in stamps for path in files(stamp)]
    with ThreadPoolExecutor(cores()) as pool:
        found = dict(zip(paths, progress(pool.map(look, paths), len(paths), NAME), strict=True))
    return {path: digest for path, (digest, _) in found.items()}, {p: why for p, (_, why) in found.items() if why}


def files(stamp: Stamp) -> list[Path]:
    """Its picture and its recordings."""
    return [stamp.picture, *(path for _, path in stamp.spoken)]


def groups(stamps: Sequence[Stamp], digests: dict[Path, str]) -> list[str]:
    """For each stamp the name of the first one with which it shares, by others perhaps, a text or a file's bytes."""
    head = {stamp.name: stamp.name for stamp in stamps}

    def top(name: str) -> str:
        while head[name] != name:
            name = head[name]
        return name

    holder: dict[str, str] = {}
    for stamp in stamps:
        for key in [f"text {stamp.text.casefold()}", *(digests[path] for path in files(stamp))]:
            first, second = sorted((top(holder.setdefault(key, stamp.name)), top(stamp.name)))
            head[second] = first
    return [top(stamp.name) for stamp in stamps]


def write(work: Path, out: Path, stamps: Sequence[Stamp], parts: Sequence[str]) -> None:
    """The manifest, the account and the drawings; what is read from `out` is written into `work`."""
    rows, told = [["image", "text", "audio", "label", "split"]], [["row", "stamp", "language", "split"]]
    for stamp, part in zip(stamps, parts, strict=True):
        picture = str(stamp.picture)
        if stamp.picture.suffix == ".svg":
            picture = f"images/{stamp.name}.png"
            (work / picture).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(work / picture, drawn(stamp.picture))
        for language, path in stamp.spoken:
            rows.append([picture, stamp.text, str(path), stamp.label, part])
            told.append([str(len(told)), stamp.name, language, part])
    for name, table in ((ACCOUNT, told), (MANIFEST, rows)):
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(table)
        write_bytes(work / name, text.getvalue().encode())


def drawn(path: Path) -> bytes:
    """An SVG as the bytes of a PNG on white."""
    Image = need("PIL.Image", "drawing SVGs")  # noqa: N806
    data = io.BytesIO()
    Image.fromarray(square(read_bytes(path).decode(), SIDE).permute(1, 2, 0).numpy()).save(data, "PNG")
    return data.getvalue()


def languages_of(manifest: Path) -> Iterator[tuple[str, str]]:
    """(stamp, language) of every row of a manifest that `build_stamps` wrote, from the account beside it."""
    lines: Iterable[list[str]] = csv.reader(io.StringIO(read_bytes(manifest.parent / ACCOUNT).decode()))
    yield from ((line[1], line[2]) for line in list(lines)[1:])
