"""The client's page, with a script that finds the data wherever the page is shown.

The client needs absolute addresses of its data, and the server knows only its own. A tunnel may start at another port, and a
proxy has another host and adds a prefix to each path: only the page knows them.
"""

from __future__ import annotations

SCRIPT_NAME = "addresses.js"
SCRIPT = """\
"use strict";

// the folder of the token: "../../", as this page is at TOKEN/v/NAME/
const here = new URL("../../", location.href).href;
const token = new URL(here).pathname.split("/").at(-2);
const anywhere = new RegExp(`https?://[^"'|]*?/${token}/`, "g");

/** Let the state in the address find this server where this page has found it. */
function followPage() {
  const state = decodeURIComponent(location.hash);
  const moved = state.replace(anywhere, () => here);
  if (moved !== state) history.replaceState(null, "", encodeURI(moved));
}

followPage();
addEventListener("hashchange", followPage);
"""
"""Runs before the client's scripts, also when another address is pasted into the open page."""


def with_script(index: str) -> str:
    """Put the script before those of the client.

    Parameters
    ----------
    index
        The client's page.

    Returns
    -------
    str
        The page, as it is if it has no script.
    """
    return index.replace("<script", f'<script src="{SCRIPT_NAME}"></script><script', 1)
