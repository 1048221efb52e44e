"""manifest.json, the last file of a folder: the size and the sha256 of each file, and what the caller adds.

Why: safetensors loads a flipped bit without a word. A folder with a manifest that agrees is whole and is
what was written. The manifest carries its own sha256, so that a flipped bit in it is seen as well.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linnet.errors import FormatVersionError, LinnetError
from linnet.files.single import json_bytes, sha256_file, write_json

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


def write_manifest(folder: Path, *, extra: Mapping[str, Any], hashes: Mapping[str, str] = {}) -> None:
    """Write the manifest of all files under `folder`; `extra` gives further keys.

    `hashes` (name relative to the folder -> sha256) saves reading again what was hashed while it was written.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    names = [path.relative_to(folder).as_posix() for path in paths]
    files = {
        name: {"bytes": path.stat().st_size, "sha256": hashes.get(name) or sha256_file(path)}
        for name, path in zip(names, paths, strict=True)
    }
    body = {**extra, "format_version": FORMAT_VERSION, "files": files}
    write_json(folder / MANIFEST, _signed(body))


def _signed(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "sha256": hashlib.sha256(json_bytes(body)).hexdigest()}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, or a LinnetError if it is missing or changed. Reads no other file."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
        manifest = json.loads(data)
        del manifest["sha256"]
        intact = data == json_bytes(_signed(manifest))
        version = manifest["format_version"]
    except FileNotFoundError:
        raise LinnetError(f"{path} is missing: the folder is not complete.") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise LinnetError(f"{path} is damaged and cannot be read ({error}).") from None
    if not intact:
        raise LinnetError(f"{path} is damaged: it is not what was written (sha256).")
    if version != FORMAT_VERSION:
        raise FormatVersionError(
            f"{path} has the format version {version}; this Linnet reads {FORMAT_VERSION}: update it."
        )
    return dict(manifest)


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Read each file that the manifest lists and compare it; returns the manifest.

    Raises a LinnetError that names the first file which is missing, has another size, or other bytes.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != entry["bytes"]:
                raise LinnetError(f"{path} is damaged: {size:,} bytes, {entry['bytes']:,} were written.")
            if sha256_file(path) != entry["sha256"]:
                raise LinnetError(f"{path} is damaged: it is not what was written (sha256).")
        except FileNotFoundError:
            raise LinnetError(f"{path} is missing: the folder is not complete.") from None
        except OSError as error:
            raise LinnetError(f"{path} cannot be read: {error.strerror}.") from error
    return manifest
