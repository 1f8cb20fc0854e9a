#!/usr/bin/env bash
# zarr 3.4.2: a WrapperStore whose `get` refuses what is missing is passed by when part of a shard is read: if the file goes
# away between its index and its chunks, the read returns the fill value. zarr 3.2.1 asks `get` for each chunk, and raises.
#
# The sharding codec reads chunks with `Store.get_ranges`, which WrapperStore forwards to the wrapped store, and takes the
# FileNotFoundError in the group of errors that comes back for a shard that was never written. Seen with Python 3.13; needs
# Python 3.12 or newer, as PYTHON.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
cat > "$folder/read.py" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import zarr
from zarr.storage import LocalStore, WrapperStore


class Asked(WrapperStore):
    """Refuses what is missing; counts the parts of a shard, and may remove its file after the first one: the index."""

    def __init__(self, store, remove=None):
        super().__init__(store)
        self.remove, self.parts = remove, 0

    async def get(self, key, prototype, byte_range=None):
        found = await super().get(key, prototype, byte_range)
        if key.startswith("c/"):
            if found is None:
                raise OSError("it is missing")
            self.parts += 1
            if self.remove is not None and self.parts == 1:
                self.remove.unlink()
        return found


def read(place, **options):
    zarr.create_array(place, shape=(16,), shards=(16,), chunks=(4,), dtype="u1", fill_value=255)[:] = 1
    store = Asked(LocalStore(place), **options)
    return zarr.open_array(store)[0:8], store.parts


where = Path(sys.argv[1])
values, parts = read(where / "there")
print("there", np.unique(values).tolist(), "parts", parts)
try:
    values, _ = read(where / "gone", remove=where / "gone" / "c" / "0")
    print("gone", np.unique(values).tolist())
except OSError as error:
    print("gone:", error)
PYTHON
"$folder/venv/bin/pip" install --quiet 'zarr==3.4.2'
seen=$("$folder/venv/bin/python" "$folder/read.py" "$folder")
echo "$seen"
[ "$seen" = $'there [1] parts 1\ngone [255]' ]
"$folder/venv/bin/pip" install --quiet 'zarr==3.2.1'
rm -rf "$folder/there" "$folder/gone"
before=$("$folder/venv/bin/python" "$folder/read.py" "$folder")
echo "zarr 3.2.1: $before"
[ "$before" = $'there [1] parts 3\ngone: it is missing' ]
