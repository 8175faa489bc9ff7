"""Readers of crafted files: a ValueError that names the file, no code run, no more memory than the file has."""

import io
import json
import pickle
import resource
import struct
import time
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save
from torch import nn

from mora.system.files import LARGEST_HEADER, parse_json, read_json, read_pickled, read_tensors, why_not_plain
from mora.system.messages import shown


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": [-Infinity]}', '{"a": 1e999}', '{"a": -1e999}'])
def test_numbers_of_a_configuration_are_finite(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: got the number .*expected finite"):
        read_json(path)
    assert "a" in parse_json(text, "row 3")  # a row of data may say NaN for nothing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested 100,000 deep"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested 100,000 deep"),
        ("[" * 100_000, "nested 100,000 deep"),
        ('{"a": ' + "9" * 5000 + "}", "too many digits"),
        ('{"a": "\\ud800', "not JSON"),
        ("", "not JSON"),
        ("[1, 2]", "got a JSON list, expected an object"),
    ],
    ids=lambda text: text[:12],
)
def test_json_that_is_deep_long_or_no_object(text, message, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
        read_json(path)


def test_brackets_in_strings_are_not_depth():
    assert parse_json(json.dumps({"a": "[" * 1000, 'b"[\\': 1}), "x") == {"a": "[" * 1000, 'b"[\\': 1}


GOOD = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(4)})


def crafted(header, body=bytes(40)):
    """A safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def row(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "data",
    [
        crafted({"a": row(), "b": row("F32", (4,), (0, 16))}),  # overlapping
        crafted({"a": row(), "b": row("F32", (4,), (28, 44))}, bytes(44)),  # with a hole
        crafted({"a": row()}, bytes(100)),  # more than it names
        crafted({"a": row("F128")}, bytes(24)),
        crafted({"a": row(shape=(2**40, 2**40))}, bytes(24)),
        crafted({"a": row(shape=(2**62, 4), offsets=(0, 0))}, b""),  # whose product is 0 in 64 bits
        crafted({"a": row(shape=(-1, -6))}, bytes(24)),
        crafted({"a": row(offsets=(24, 0))}, bytes(24)),
        crafted({"a": row(offsets=(0, 2**63))}, bytes(24)),
        crafted({"a": 3}),
        crafted([1]),
        crafted(b"[" * 100_000),
        crafted({"__metadata__": {"a": 3}, "a": row()}, bytes(24)),
        struct.pack("<Q", 2**63) + GOOD[8:],
        GOOD[:-1],
        GOOD[:20],
        GOOD[:4],
        b"",
    ],
    ids=range(18),
)
def test_safetensors_that_do_not_hold_together(data, tmp_path):
    path = tmp_path / "crafted.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"crafted\.safetensors: got a damaged safetensors file"):
        read_tensors(path)


def test_a_huge_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "crafted.safetensors"
    path.write_bytes(crafted(b"{" + b" " * LARGEST_HEADER + b"}"))
    with pytest.raises(ValueError, match=r"crafted\.safetensors: got a header of 16,777,218 bytes"):
        read_tensors(path)
    with pytest.raises(ValueError, match=r"crafted\.safetensors of .* bytes, expected at most 1,000"):
        read_tensors(path, 1000)


def archive(change=lambda name, data: data, compression=zipfile.ZIP_STORED):
    """A file of torch.save, its entries changed."""
    plain, result = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.arange(8.0)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(result, "w", compression) as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return result.getvalue()


class Code:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


def pickled_code():
    buffer = io.BytesIO()
    torch.save({"a": Code()}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (archive()[:-30], "refuses"),
        (archive()[:200], "refuses"),
        (archive(lambda name, data: b"" if name.endswith("data.pkl") else data), "refuses"),
        (archive(lambda name, data: data.replace(b"K\x08", b"J\xff\xff\xff\x7f")), "refuses"),  # a storage of 2^31
        (archive(lambda name, data: b"\x80\x02" + b"(" * 100_000 if name.endswith("data.pkl") else data), "refuses"),
        (pickled_code(), "it holds what is no plain tensor; files that can run code are not read"),
        (pickle.dumps(Code()), "refuses"),
        (pickle.dumps([1]) + b"garbage", "refuses"),
        (b"\x80", "refuses"),
        (b"", "refuses"),
        (b"PK\x03\x04", "refuses"),
        (b"no archive", "refuses"),
    ],
    ids=range(12),
)
def test_pickles_that_are_damaged_or_run_code(data, message, tmp_path):
    path = tmp_path / "crafted.pt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"crafted\.pt: got a file .*{message}") as caught:
        read_pickled(path)
    assert "\n" not in str(caught.value) and "to `False`" not in str(caught.value)


def test_a_zip_bomb_takes_no_memory(tmp_path):
    """256 MB of zeros in 260 kB: torch.load unpacks it before it looks at the size."""
    path = tmp_path / "bomb.pt"
    path.write_bytes(
        archive(lambda name, data: bytes(1 << 28) if name.endswith("data/0") else data, zipfile.ZIP_DEFLATED)
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"bomb\.pt.*a compressed archive .*unpack to 268,"):
        read_pickled(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def tangled(levels, width=2):
    """A pickle of {key: 1} whose key is a tuple of `width` times one tuple of ...: width^levels steps to hash."""
    level = b"h\x00" * width
    return b"\x80\x02}K\x01q\x00" + b"".join(b"(" + level + b"tq\x00" for _ in range(levels)) + b"K\x01s."


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("levels", "width"), [(40, 2), (100_000, 1), (8, 1000)])
def test_a_key_that_takes_for_ever_to_hash_is_refused(tmp_path, zipped, levels, width):
    path = tmp_path / "crafted.pt"
    pickled = tangled(levels, width)
    if zipped:
        path.write_bytes(archive(lambda name, data: pickled if name.endswith("data.pkl") else data))
    else:
        whole = io.BytesIO()
        torch.save(1, whole, _use_new_zipfile_serialization=False)
        path.write_bytes(whole.getvalue().replace(b"\x80\x02K\x01.", pickled, 1))
    before = time.process_time()
    with pytest.raises(ValueError, match=r"crafted\.pt: .*(nested more than 8 deep|more than 1,048,576 values)"):
        read_pickled(path)
    assert time.process_time() - before < 10


def test_both_formats_of_torch_save_are_read(tmp_path):
    for new in (True, False):
        content = {"a": torch.arange(3), "b": "text", "c": OrderedDict(d=nn.Parameter(torch.eye(2))), "e": {(1, (2,))}}
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
        content = read_pickled(tmp_path / "a.pt")
        assert content["b"] == "text" and content["a"].tolist() == [0, 1, 2] and content["e"] == {(1, (2,))}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("text", "is a str"),
        (None, "is a NoneType"),
        ([1.0], "is a list"),
        (torch.zeros(1).expand(2**40), r"has shape \(1099511627776,\) over 4 bytes"),
        (torch.eye(3).to_sparse(), "is sparse_coo"),
        (torch.eye(3).to_sparse_csr(), "is sparse_csr"),
        (torch.zeros(2, device="meta"), "is on the meta device"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "is quantised"),
        (torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "nested"),
        (torch.ones(2).as_subclass(type("Own", (torch.Tensor,), {})), "is a Own, expected a plain tensor"),
    ],
    ids=str,
)
def test_why_a_value_is_no_plain_tensor(value, why):
    import re

    assert re.search(why, why_not_plain(value))
    assert all(
        why_not_plain(plain) == "" for plain in (torch.ones(2), torch.nn.Parameter(torch.ones(0, 3)), torch.eye(4).T)
    )


def test_a_list_that_names_another_twice_is_shown_in_no_time():
    value, ordered = ["a"], OrderedDict(b=1, a=(2,))
    for _ in range(60):
        value = [value, value]
    assert shown(value) == "[[[[...], [...]], [[...], [...]]], [[[...], [...]], [[...], [...]]]]"
    deep = OrderedDict(a=1)
    for _ in range(60):
        deep = OrderedDict(a=deep, b=deep)
    assert len(shown(deep)) <= 103 and shown(ordered) == "{'b': 1, 'a': (2,)}"
    for plain in ({"b": [1, 2.5], "a": {"c": None}}, "x'y", [[["a"]]], (1,), (), {}, set(), {3, 1}, True, b"ab", -1e30):
        assert shown(plain) == repr(plain)
    assert (
        shown(list(range(1000))) == repr(list(range(1000)))[:100] + "..." and shown("x" * 999) == "'" + "x" * 99 + "..."
    )
