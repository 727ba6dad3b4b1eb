"""The byte ledger: every byte counted once, in the right place; refused files; duplicates."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors_files import BITS, CLAIMED_BITS, LINEARS, WIDTH, packed, plain, save

from scorecard.checkpoint import read_checkpoint
from scorecard.errors import ArtifactError
from scorecard.ledger import CATEGORIES, category, pieces, weigh
from scorecard.safetensors_header import read_header

NAMES = st.sampled_from(
    [
        "a.py",
        "config.json",
        "tokenizer.json",
        "merges.txt",
        "README.md",
        "model.bin",
        "blob",
        "x.rans",
        "é.dat",
    ]
)
TREES = st.dictionaries(
    st.tuples(st.sampled_from(["", "sub", "sub/deeper"]), NAMES),
    st.binary(max_size=400),
    min_size=1,
    max_size=8,
)
TENSORS = st.dictionaries(
    st.sampled_from(
        [
            "lm_head.qweight",
            "lm_head.scales",
            "model.embed_tokens.weight",
            "model.layers.0.a.weight",
            "model.layers.0.a.weight.absmax",
            "model.layers.0.a.qzeros",
            "model.layers.1.a.bias",
            "odd",
        ]
    ),
    st.tuples(st.sampled_from(sorted(BITS)), st.lists(st.integers(0, 5), max_size=3).map(tuple)),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_every_byte_of_a_tree_is_counted_once(tree: dict[tuple[str, str], bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for (folder, file), content in tree.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / file).write_bytes(content)
        ledger = weigh(root)
    contents = {str(Path(folder) / file): content for (folder, file), content in tree.items()}
    assert {f["path"]: f["size_bytes"] for f in ledger["files"]} == {p: len(c) for p, c in contents.items()}
    assert {f["path"]: f["sha256"] for f in ledger["files"]} == {
        p: hashlib.sha256(c).hexdigest() for p, c in contents.items()
    }
    assert ledger["size_bytes"] == sum(map(len, contents.values())) == sum(ledger["by_category"].values())
    assert tuple(ledger["by_category"]) == CATEGORIES
    assert ledger["parameters"] is ledger["bits_per_weight"] is ledger["bits_per_weight_body"] is None


@settings(max_examples=80, deadline=None)
@given(TENSORS)
def test_a_safetensors_file_is_split_exactly(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.safetensors"
        save(path, tensors)
        size = path.stat().st_size
        parts = pieces(path, size)
        ledger = weigh(Path(name))
        data = sum(tensor.size_bytes for tensor in read_header(path).tensors)
    assert sum(part.size_bytes for part in parts) == size == sum(ledger["by_category"].values())
    assert ledger["by_category"]["config"] == size - data
    expected = {"lm_head": "embeddings", "model.embed_tokens": "embeddings", "odd": "weights"}
    for part in parts[1:]:
        side = (part.tensor or "").endswith(("absmax", "qzeros"))
        assert part.category == expected.get(
            (part.tensor or "").rpartition(".")[0] or "odd", "scales" if side else "weights"
        )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_safetensors_file_is_refused_or_whole(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.safetensors"
        save(path, {"a.weight": ("F32", (3, 2)), "b.scales": ("F16", (5,))})
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans(), label="cut"):
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        else:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            ledger = weigh(Path(name))
        except ArtifactError as error:
            assert "model.safetensors: not a valid safetensors file" in str(error)  # noqa: PT017
        else:
            assert sum(ledger["by_category"].values()) == len(content)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tokenizer.json", "tokenizer"),
        ("tokenizer_config.json", "tokenizer"),
        ("vocab.json", "tokenizer"),
        ("chat_template.jinja", "tokenizer"),
        ("qwen.tiktoken", "tokenizer"),
        ("config.json", "config"),
        ("model.safetensors.index.json", "config"),
        ("modeling.py", "code"),
        ("kernel.so", "code"),
        ("README.md", "other"),
        ("LICENSE", "other"),
        ("model.gguf", "weights"),
        ("pytorch_model.bin", "weights"),
        ("weights.xyz", "weights"),
        ("data", "weights"),
    ],
)
def test_category_of_a_file(name: str, expected: str) -> None:
    assert category(Path(name)) == expected


def _symlink(root: Path) -> None:
    (root / "link").symlink_to(root / "kept.bin")


def _outside(root: Path) -> None:
    (root / "folder").symlink_to("/")


def _hard_link(root: Path) -> None:
    os.link(root / "kept.bin", root / "again.bin")


def _sparse(root: Path) -> None:
    with (root / "holes.bin").open("wb") as file:
        file.truncate(2**20)


def _sparse_middle(root: Path) -> None:
    with (root / "holes.bin").open("wb") as file:
        file.write(b"x" * 4096)
        file.seek(2**20)
        file.write(b"x" * 4096)


def _pipe(root: Path) -> None:
    os.mkfifo(root / "pipe")


def _socket(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(root / "s"))


def _attribute(root: Path) -> None:
    try:
        os.setxattr(root / "kept.bin", "user.weights", b"hidden bytes")
    except OSError:
        pytest.skip("this file system has no user attributes")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_symlink, "link: is a symbolic link"),
        (_outside, "folder: is a symbolic link"),
        (_hard_link, "is a hard link"),
        (_sparse, "holes.bin: is a sparse file"),
        (_sparse_middle, "holes.bin: is a sparse file"),
        (_pipe, "pipe: is not a regular file"),
        (_socket, "s: is not a regular file"),
        (_attribute, "has the extended attribute 'user.weights'"),
    ],
)
def test_refused_files(make: Callable[[Path], None], words: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's tmp_path is too long for a socket
        root = Path(name)
        (root / "kept.bin").write_bytes(b"x" * 5000)
        weigh(root)
        make(root)
        with pytest.raises(ArtifactError, match=words) as caught:
            weigh(root)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)


def test_an_empty_artifact_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match="holds no file"):
        weigh(tmp_path)


def test_an_unfinished_write_is_not_sparse(tmp_path: Path) -> None:
    """Blocks that are not on the disk yet, and bytes that are zero, make no hole."""
    with (tmp_path / "zeros.bin").open("wb") as file:
        file.write(bytes(3 * 2**20))
        file.flush()
        assert weigh(tmp_path)["size_bytes"] == 3 * 2**20


@pytest.mark.parametrize("scheme", sorted(CLAIMED_BITS))
def test_bits_per_weight_counts_the_originals_weights(tmp_path: Path, scheme: str) -> None:
    save(tmp_path / "original/model.safetensors", plain())
    save(tmp_path / "artifact/model.safetensors", packed(scheme))
    ledger = weigh(tmp_path / "artifact", tmp_path / "original")
    count = 6 * WIDTH**2 + 2 * 100 * WIDTH + 3 * WIDTH
    assert ledger["parameters"] == count
    assert ledger["bits_per_weight"] == 8 * ledger["size_bytes"] / count
    side, codes = ledger["by_category"]["scales"], ledger["by_category"]["weights"] - 3 * WIDTH * 2
    assert codes == len(LINEARS) * WIDTH**2 * CLAIMED_BITS[scheme] // 8
    assert ledger["bits_per_weight_body"] == 8 * (codes + side) / (6 * WIDTH**2)
    assert ledger["by_category"]["embeddings"] == 2 * 100 * WIDTH * 2


def test_a_tied_head_is_counted_once_and_reported(tmp_path: Path) -> None:
    tensors = plain()
    tensors["lm_head.weight"] = ("BF16", (100, WIDTH), b"\x01" * 200 * WIDTH)
    tensors["model.embed_tokens.weight"] = tensors["lm_head.weight"]
    save(tmp_path / "model.safetensors", tensors)
    ledger = weigh(tmp_path, tmp_path)
    assert ledger["parameters"] == 6 * WIDTH**2 + 100 * WIDTH + 3 * WIDTH
    (found,) = [d for d in ledger["duplicates"] if d["what"] == "tied embeddings stored twice"]
    assert found["size_bytes"] == 200 * WIDTH
    assert sorted(found["paths"]) == [
        "model.safetensors:lm_head.weight",
        "model.safetensors:model.embed_tokens.weight",
    ]


def test_duplicates_of_files_and_formats(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", plain())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle" * 100)
    (tmp_path / "a.dat").write_bytes(b"same" * 100)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.dat").write_bytes(b"same" * 100)
    found = {d["what"]: d for d in weigh(tmp_path)["duplicates"]}
    assert found["identical files"]["paths"] == ["a.dat", "sub/b.dat"]
    assert found["identical files"]["size_bytes"] == 400
    assert found[".bin beside .safetensors"]["size_bytes"] == 600


def test_body_bits_are_unknown_where_the_artifact_hides_a_layer(tmp_path: Path) -> None:
    save(tmp_path / "original/model.safetensors", plain())
    tensors = packed("rtn")
    hidden = [name for name in tensors if name.startswith(LINEARS[0])]
    save(tmp_path / "artifact/model.safetensors", {n: t for n, t in tensors.items() if n not in hidden})
    ledger = weigh(tmp_path / "artifact", tmp_path / "original")
    assert ledger["bits_per_weight_body"] is None
    assert ledger["bits_per_weight"] > 0


def test_could_shrink_is_what_zstd_saves_on_weight_files(tmp_path: Path) -> None:
    content = b"0123456789abcdef" * 100_000
    (tmp_path / "weights.dat").write_bytes(content)
    (tmp_path / "config.json").write_bytes(b" " * 50_000)
    first, again = weigh(tmp_path), weigh(tmp_path)
    assert first == again
    reference = len(zstandard.ZstdCompressor(level=3, threads=1).compress(content))
    assert abs(first["zstd_bytes"] - reference) < 64
    assert first["could_shrink_by_bytes"] == len(content) - first["zstd_bytes"]


def test_only_indexed_files_are_the_model(tmp_path: Path) -> None:
    save(tmp_path / "model-1.safetensors", plain())
    save(tmp_path / "consolidated.safetensors", {"tok_embeddings.weight": ("BF16", (100, WIDTH))})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"lm_head.weight": "model-1.safetensors"}}')
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint is not None
    assert set(checkpoint.tensors) == set(plain())
    for text in (
        '{"weight_map": {"x": "../model-1.safetensors"}}',
        '{"weight_map": {"x": "gone"}}',
        "[]",
        "{",
    ):
        index.write_text(text)
        with pytest.raises(ArtifactError, match=r"model\.safetensors\.index\.json: "):
            read_checkpoint(tmp_path)


def test_packed_originals_have_no_known_number_of_weights(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", packed("gptq"))
    assert weigh(tmp_path, tmp_path)["parameters"] is None
