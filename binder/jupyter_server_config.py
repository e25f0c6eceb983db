"""The dashboards behind Jupyter: `…/workbench/` starts the hub and shows it; JupyterLab's launcher has a tile for it.

`binder/postBuild` copies this to where Jupyter looks. Elsewhere, with the extra `binder`:
`jupyter lab --config binder/jupyter_server_config.py`. Websockets from any host are let in, as Jupyter has asked for
its token before.
"""

import sys

c = get_config()  # noqa: F821

c.ServerProxy.servers = {"workbench": {
    "command": [sys.executable, "-m", "workbench", "serve", "--port", "{port}", "--prefix", "{base_url}workbench",
                "--origin", "*"],
    "absolute_url": True,
    "timeout": 120,
    "launcher_entry": {"title": "Dashboards", "path_info": "workbench/"},
}}
