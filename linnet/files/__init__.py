"""Every write that must survive a crash: files, folders, manifests, the lock.

Why one place: a process can die, and a disk can be full, between any two system calls. All calls that change
the disk go through `operations`, so a test makes the k-th of them fail, for every k, and looks at what is
left. Two rules carry everything: bytes are synced before the name that makes them visible, and a name
appears or disappears by one rename.

How: `with new_folder(final) as folder:` fills a hidden folder and then gives it its name, in the place of an
older one if there is one (`temporary_folder`, `replace_folder` are its parts). `write_file` and
`write_json` replace one file whole. `Writer` and `write_safetensors` write straight to their path: use them
inside such a folder. Whoever opens a folder that is replaced calls `repair_folder` first, under the `Lock`.
What a crash leaves has a hidden name (`.name.tmp`, `.name.old`, `.name.removed`) and is cleared later.
"""

from linnet.files.folders import (
    expand_home,
    make_folder,
    new_folder,
    remove_folder,
    remove_leftovers,
    repair_folder,
    replace_folder,
    temporary_folder,
)
from linnet.files.lock import Lock
from linnet.files.manifest import FORMAT_VERSION, MANIFEST, read_manifest, verify_manifest, write_manifest
from linnet.files.operations import disk_errors
from linnet.files.single import Writer, json_bytes, sha256_file, write_file, write_json
from linnet.files.tensors import safetensors_bytes, write_safetensors

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "Lock",
    "Writer",
    "disk_errors",
    "expand_home",
    "json_bytes",
    "make_folder",
    "new_folder",
    "read_manifest",
    "remove_folder",
    "remove_leftovers",
    "repair_folder",
    "replace_folder",
    "safetensors_bytes",
    "sha256_file",
    "temporary_folder",
    "verify_manifest",
    "write_file",
    "write_json",
    "write_manifest",
    "write_safetensors",
]
