"""linnet.files: crashes after every operation, full disks, manifests, locks, the safetensors bytes."""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from linnet import files
from linnet.errors import DiskError, LinnetError, RunLockedError
from tests import faults

Tree = dict[str, bytes]


def tree(folder: Path) -> Tree:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fill(folder: Path, content: Tree) -> None:
    for name, data in content.items():
        files.make_folder((folder / name).parent)
        files.write_file(folder / name, [data])


OLD: Tree = {"a.txt": b"old a", "deep/b.txt": b"old b"}
NEW: Tree = {"a.txt": b"new a", "deep/c.txt": b"new c", "d.txt": b"new d"}


# --- one file ---


@given(pieces=st.lists(st.binary(max_size=200)), seed=st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_writer_writes_what_it_was_given(tmp_path_factory: Any, pieces: list[bytes], seed: int) -> None:
    path = tmp_path_factory.mktemp("writer") / "file"
    size = random.Random(seed).randint
    with faults.short_writes(lambda length: size(1, length)), files.Writer(path) as out:
        for piece in pieces:
            out.write(piece)
    data = b"".join(pieces)
    assert path.read_bytes() == data
    assert (out.bytes, out.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_writer_takes_large_and_multidimensional_buffers(tmp_path: Path) -> None:
    small, large = torch.arange(12).reshape(3, 4), torch.arange(3 << 20)  # The second is 24 MB: three chunks.
    with files.Writer(tmp_path / "file") as out:
        for tensor in (small, large, small, torch.zeros(0)):
            out.write(tensor.numpy().data)
    expected = b"".join(tensor.numpy().tobytes() for tensor in (small, large, small))
    assert (tmp_path / "file").read_bytes() == expected
    assert out.sha256 == files.sha256_file(tmp_path / "file")


def test_write_file_is_whole_after_every_crash(tmp_path: Path) -> None:
    path = tmp_path / "file"
    new = [b"new " * 100, b"bytes"]
    total = faults.count(lambda: files.write_file(path, new))
    for k in range(1, total + 2):
        path.write_bytes(b"old")
        with faults.crash_at(k):
            files.write_file(path, new)
        assert path.read_bytes() in (b"old", b"".join(new)), k
    assert path.read_bytes() == b"".join(new)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS])
def test_write_file_on_a_failing_disk_says_where_and_how_much(tmp_path: Path, number: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    for k in range(1, faults.count(lambda: files.write_file(tmp_path / "other", [b"x" * 1000])) + 1):
        with faults.error_at(k, number), pytest.raises(DiskError, match=str(path.name)) as caught:
            files.write_file(path, [b"x" * 1000])
        assert caught.value.exit_code == 4
        assert "1,000 bytes" in str(caught.value) or k == 1  # A file that cannot be created has no size yet.
        assert path.read_bytes() in (b"old", b"x" * 1000)
        assert {entry.name for entry in tmp_path.iterdir()} == {"file", "other"}


def test_json_is_canonical(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"b": 1, "a": ["é", None]})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "a": [\n    "é",\n    null\n  ],\n  "b": 1\n}\n'
    half = {"path": os.fsdecode(b"caf\xe9")}  # A file's name that is not UTF-8.
    files.write_json(tmp_path / "c.json", half)
    assert json.loads((tmp_path / "c.json").read_text("utf-8")) == half
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "b.json", {"loss": float("nan")})
    assert not (tmp_path / "b.json").exists()


# --- folders ---


def replace(final: Path) -> None:
    with files.new_folder(final) as new:
        fill(new, NEW)


@pytest.mark.parametrize("start", [{}, OLD])
@pytest.mark.parametrize("really", [False, True])
def test_replacing_a_folder_is_whole_after_every_crash(tmp_path: Path, start: Tree, really: bool) -> None:
    """After repair there is the old folder or the new one; from the first rename on it is the new one."""
    final = tmp_path / "model"
    total = faults.count(lambda: replace(tmp_path / "counted")) + (8 if start else 0)
    seen = []
    for k in range(1, total + 2):
        shutil.rmtree(final, ignore_errors=True)
        fill(final, start)
        if really:
            faults.exit_at(k, lambda: replace(final))
        else:
            with faults.crash_at(k):
                replace(final)
        between = not final.exists() and bool(start)  # After the first rename, before the second.
        files.repair_folder(final)
        assert tree(final) in ([NEW] if between else [start, NEW]), k
        assert sorted(path.name for path in tmp_path.glob(".*")) == []
        seen.append(tree(final) == NEW)
    assert seen == sorted(seen), "once new, it stays new for every later crash"
    assert seen[0] is False
    assert seen[-1] is True


def test_a_crash_in_the_repair_itself_loses_nothing(tmp_path: Path) -> None:
    final = tmp_path / "model"
    fill(tmp_path / "counted", OLD)
    total = faults.count(lambda: replace(tmp_path / "counted"))
    for k in range(1, total + 1):
        for again in range(1, 12):
            shutil.rmtree(final, ignore_errors=True)
            fill(final, OLD)
            with faults.crash_at(k):
                replace(final)
            with faults.crash_at(again):
                files.repair_folder(final)
            with faults.crash_at(5):  # A save that starts without a repair of its own, and dies early.
                replace(final)
            files.repair_folder(final)
            assert tree(final) in (OLD, NEW), (k, again)


def test_removing_a_folder_is_never_half_visible(tmp_path: Path) -> None:
    final = tmp_path / "step"
    fill(final, OLD)
    total = faults.count(lambda: files.remove_folder(final))
    for k in range(1, total + 2):
        fill(final, OLD)
        with faults.crash_at(k):
            files.remove_folder(final)
        assert not final.exists() or tree(final) == OLD, k
        files.remove_leftovers(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} <= {"step"}


def test_an_exception_leaves_the_old_folder_and_no_leftovers(tmp_path: Path) -> None:
    fill(tmp_path / "model", OLD)
    with pytest.raises(TypeError), files.new_folder(tmp_path / "model") as new:
        fill(new, {"whole.txt": b"whole", "bad.txt": 1})  # type: ignore[dict-item]
    assert tree(tmp_path) == {f"model/{name}": data for name, data in OLD.items()}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to name a descriptor")
def test_all_bytes_are_synced_before_their_name_appears(tmp_path: Path) -> None:
    """A crash of the machine, not only of the process: whatever a visible name shows must have been synced."""
    unsynced: set[Path] = set()
    visible: list[Path] = []

    def around(_number: int, name: str, operation: faults.Operation, arguments: tuple[Any, ...]) -> Any:
        if name == "rename" and not arguments[1].name.startswith("."):
            assert not [path for path in unsynced if path.is_relative_to(arguments[0])], arguments
            visible.append(arguments[1])
        if name in ("write", "fsync"):
            path = Path(f"/proc/self/fd/{arguments[0]}").readlink()
            unsynced.add(path) if name == "write" else unsynced.discard(path)
        if name in ("mkdir", "create"):
            unsynced.add(arguments[0].parent)  # The entry in the folder above.
        if name == "rename":
            unsynced.add(arguments[1].parent)
        if name in ("unlink", "rmdir"):  # What is removed was replaced: the replacement must be safe by now.
            assert not visible or visible[-1].parent not in unsynced
        return operation(*arguments)

    fill(tmp_path / "model", OLD)
    with faults.wrapped(around) as names, files.new_folder(tmp_path / "model") as new:
        fill(new, NEW)
        (new / "plain").write_bytes(b"by another library")
        unsynced.update({new, new / "plain"})
    assert visible[-1] == tmp_path / "model"
    assert names.count("rmdir") == 2


# --- manifests ---


def manifested(folder: Path) -> Path:
    fill(folder, NEW)
    files.write_manifest(folder, extra={"step": 7})
    return folder


def test_a_manifest_names_every_file(tmp_path: Path) -> None:
    manifest = files.verify_manifest(manifested(tmp_path / "x"))
    assert manifest["format_version"] == 1
    assert manifest["step"] == 7
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {
        name: len(data) for name, data in NEW.items()
    }


def test_hashes_that_are_known_are_not_computed_again(tmp_path: Path) -> None:
    fill(tmp_path, NEW)
    files.write_manifest(tmp_path, extra={}, hashes={"a.txt": "0" * 64})
    with pytest.raises(LinnetError, match=r"a\.txt is damaged"):
        files.verify_manifest(tmp_path)


def edit_version(folder: Path) -> None:
    body = json.loads((folder / "manifest.json").read_bytes())
    del body["sha256"]
    body["format_version"] = 2
    files.write_json(
        folder / "manifest.json", {**body, "sha256": hashlib.sha256(files.json_bytes(body)).hexdigest()}
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "a.txt").unlink(), r"a\.txt is missing"),
        (lambda f: (f / "a.txt").write_bytes(b"new b"), r"a\.txt is damaged: it is not what was written"),
        (lambda f: (f / "d.txt").write_bytes(b"new"), r"d\.txt is damaged: 3 bytes, 5 were written"),
        (lambda f: (f / "manifest.json").unlink(), r"manifest\.json is missing"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), r"manifest\.json is damaged"),
        (lambda f: (f / "manifest.json").write_bytes(b"[1]"), r"manifest\.json is damaged"),
        (lambda f: (f / "manifest.json").write_bytes(b"[" * 100_000), r"manifest\.json is damaged"),
        (lambda f: (f / "manifest.json").write_bytes(b"{}"), r"manifest\.json is damaged"),
        (edit_version, "format version 2; this Linnet reads 1"),
    ],
)
def test_damage_is_refused_by_name(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(manifested(tmp_path / "x"))
    with pytest.raises(LinnetError, match=message):
        files.verify_manifest(tmp_path / "x")


def test_every_single_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    path = manifested(tmp_path / "x") / "manifest.json"
    data = path.read_bytes()
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(LinnetError, match=r"manifest\.json"):
            files.read_manifest(tmp_path / "x")


# --- safetensors ---


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "h.0.weight": torch.randn(7, 5, generator=generator),
        "wte.weight": torch.randn(11, 3, generator=generator).t(),  # Not contiguous.
        "step": torch.tensor(3.5),
        "nothing": torch.zeros(0, 4),
        "h.10.bias": torch.nn.Parameter(torch.randn(9, generator=generator)),
        "größe": torch.randn(2, generator=generator),
    }


def test_the_bytes_are_upstreams(tmp_path: Path) -> None:
    sha256 = files.write_safetensors(tmp_path / "ours", tensors(), metadata={"format": "pt"})
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors().items()}
    save_file(plain, tmp_path / "upstream", metadata={"format": "pt"})
    ours = (tmp_path / "ours").read_bytes()
    assert ours == (tmp_path / "upstream").read_bytes()
    assert sha256 == hashlib.sha256(ours).hexdigest()
    assert files.safetensors_bytes(tensors(), metadata={"format": "pt"}) == len(ours)


@pytest.mark.parametrize("metadata", [{}, {"format": "pt", "a": "ü"}])
def test_upstream_reads_every_type(tmp_path: Path, metadata: dict[str, str]) -> None:
    mixed = tensors() | {
        str(dtype): torch.arange(1, 6).to(dtype)
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
    }
    mixed |= {"u8": torch.arange(5, dtype=torch.uint8), "i8": torch.arange(3).to(torch.int8)}
    mixed |= {"bool": torch.tensor([True, False])}
    files.write_safetensors(tmp_path / "x", mixed, metadata=metadata)
    loaded = load_file(tmp_path / "x")
    assert loaded.keys() == mixed.keys()
    for name, tensor in mixed.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name


def test_a_tied_weight_is_written_once(tmp_path: Path) -> None:
    weight = torch.randn(3, 3)
    with pytest.raises(ValueError, match="lm_head and wte are one tensor"):
        files.write_safetensors(tmp_path / "x", {"wte": weight, "lm_head": weight}, metadata={})
    assert not (tmp_path / "x").exists()


def test_transformers_reads_what_we_write(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=31, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    config.save_pretrained(tmp_path)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    files.write_safetensors(tmp_path / "model.safetensors", state, metadata={"format": "pt"})
    again = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    ids = torch.arange(12)[None]
    assert torch.equal(again(ids).logits, model(ids).logits)


# --- the lock ---


def held(path: Path) -> tuple[int, int]:
    """A child that holds the lock; returns its pid once it does, and a pipe that never ends."""
    ready, tell = os.pipe()

    def hold() -> None:
        with files.Lock(path):
            os.write(tell, b"1")
            signal.pause()

    pid = faults.fork(hold)
    assert os.read(ready, 1) == b"1"
    os.close(tell)
    return pid, ready


def test_the_second_process_is_told_who_has_the_lock_and_kill_9_frees_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "lock"
    pid, ready = held(path)
    try:
        with pytest.raises(RunLockedError, match=rf"pid {pid} on host {os.uname().nodename}\b") as caught:
            files.Lock(path).__enter__()
        assert caught.value.exit_code == 6
        assert str(path.parent) in str(caught.value)
    finally:
        os.kill(pid, signal.SIGKILL)
        faults.wait(pid)
        os.close(ready)
    assert json.loads(path.read_bytes())["pid"] == pid, "the stale lock file is still there"
    with files.Lock(path):
        assert json.loads(path.read_bytes())["pid"] == os.getpid()


def test_of_many_processes_one_gets_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    start, go = os.pipe()
    finish, done = os.pipe()

    def contend() -> None:
        os.close(go)
        os.close(done)
        os.read(start, 1)  # Ends for all at once, when the parent closes its side.
        try:
            with files.Lock(path):
                os.read(finish, 1)
        except RunLockedError as error:
            raise SystemExit(error.exit_code) from error

    for _ in range(8):
        faults.fork(contend)
    os.close(go)
    codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(7)]  # The winner waits for the losers.
    os.close(done)
    assert codes == [6] * 7
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
    os.close(start)
    os.close(finish)


def test_a_lock_ends_with_its_block_and_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.Lock(tmp_path / "lock"):
        raise ZeroDivisionError
    with files.Lock(tmp_path / "lock"), pytest.raises(RunLockedError, match=f"pid {os.getpid()} "):
        files.Lock(tmp_path / "lock").__enter__()


def test_a_holder_that_has_not_written_its_name_yet(tmp_path: Path) -> None:
    with files.Lock(tmp_path / "lock"):
        os.truncate(tmp_path / "lock", 0)
        with pytest.raises(RunLockedError, match="just started"):
            files.Lock(tmp_path / "lock").__enter__()
