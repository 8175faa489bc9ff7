"""The page about pairs runs as it stands, on a small manifest without labels."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "retrieval.md").read_text(encoding="utf-8")


def test_the_page_runs(monkeypatch, tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    lines = ["image,text,split"]
    for number in range(24):
        image.new("RGB", (8, 8), (10 * number, 255 - 10 * number, 0)).save(f"{number // 2}.png")  # two captions each
        picture, text = (f"{number // 2}.png" if number != 5 else ""), (f"caption {number}" if number != 20 else "")
        lines.append(f"{picture},{text},{('train', 'validation', 'test')[number // 8]}")
    Path("pairs.csv").write_text("\n".join(lines) + "\n")
    names = {}
    code = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(code) == 4
    for block in code:
        exec(block, names)
    assert names["after"].pairs == 7 and names["after"].directions[0].queries == 4
    assert float(names["loss"].detach()) > 0 and all(
        p.grad is not None for p in names["clip"].parameters() if p.requires_grad
    )
    assert capsys.readouterr().out.splitlines()[-1] == "24 22 128"
    data = names["open_rows"](names["Source"]("pairs.csv", "train"), names["run"])
    assert data.classes == ("unlabelled",) and data.pictures().tolist() == [0, 0, 1, 1, 2, 3, 4, 4]
