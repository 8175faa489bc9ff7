"""`python -m mora.census`: which models of open_clip and transformers are adapted, a row each."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path

from mora.census.check import Row, looked_at
from mora.census.classes import CLASSES
from mora.census.table import markdown, text, versions, written
from mora.system.files import read_text, write_bytes


def main(arguments: list[str] | None = None) -> int:
    """Look at every model that was not looked at yet, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m mora.census", description=__doc__)
    parser.add_argument("--only", default="*", metavar="PATTERN", help='names to look at, such as "*SigLIP*"')
    parser.add_argument("--rows", type=Path, metavar="FILE", help="JSON lines: rows found before are not found again")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a Markdown file to put the table into")
    options = parser.parse_args(arguments)
    import open_clip

    known = stored(options.rows)
    names = [name for name in [*open_clip.list_models(), *CLASSES] if fnmatchcase(name, options.only)]
    began, rows = time.perf_counter(), []
    for name in names:
        row = known.get(name)
        if row is None:
            row = looked_at(name)
            print(f"{row.seconds:6.1f} s  {name}: {row.failed or 'adapted'}", file=sys.stderr)
            if options.rows is not None:
                with options.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**asdict(row), "versions": versions()}) + "\n")
        rows.append(row)
    print(text(rows))
    print(
        f"{time.perf_counter() - began:.0f} s for what was not known, {sum(row.seconds for row in rows):.0f} s in all"
    )
    if options.write is not None:
        page = read_text(options.write) if options.write.exists() else ""
        write_bytes(options.write, written(page, markdown(rows)).encode())
    return 0


def stored(path: Path | None) -> dict[str, Row]:
    """The rows of a file that were found with the versions that are installed."""
    if path is None or not path.exists():
        return {}
    found = [json.loads(line) for line in read_text(path).splitlines()]
    return {row["name"]: Row(**row) for row in found if row.pop("versions") == versions()}


if __name__ == "__main__":
    sys.exit(main())
