#!/usr/bin/env bash
# distributed 2026.7.1: the scheduler's own list of its pages, /sitemap.json, answers 500 where bokeh is installed.
#
# The handler looks up a word of each route's pattern; the routes of bokeh's static files have none, so it raises a KeyError.
# Seen with Python 3.11 and bokeh 3.8.0. Fails if the answer is another one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'distributed==2026.7.1' 'dask==2026.7.1' 'bokeh==3.8.0'
cat > "$folder/ask.py" <<'PYTHON'
import urllib.error
import urllib.request

from distributed import LocalCluster

if __name__ == "__main__":
    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", processes=False) as cluster:
        port = cluster.scheduler_info["services"]["dashboard"]
        try:
            print(urllib.request.urlopen(f"http://127.0.0.1:{port}/sitemap.json").status)
        except urllib.error.HTTPError as error:
            print(error.code)
PYTHON
seen=$("$folder/venv/bin/python" "$folder/ask.py" 2> "$folder/said")
echo "status $seen; $(grep -E '^KeyError' "$folder/said" | head -1)"
[ "$seen" = 500 ] && grep -q '^KeyError' "$folder/said"
