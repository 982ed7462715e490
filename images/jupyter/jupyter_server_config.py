"""The notebook server: the whole network may ask it once there is a password, else this machine."""

from pathlib import Path

c = get_config()  # noqa: F821  (Jupyter's own)

password = Path("/etc/jupyter/password")  # set-jupyter-password writes it
hashed = password.read_text().strip() if password.exists() else ""
if hashed:
    c.PasswordIdentityProvider.hashed_password = hashed
    c.PasswordIdentityProvider.allow_password_change = False
    c.ServerApp.ip = "0.0.0.0"  # noqa: S104
    c.ServerApp.allow_remote_access = True
else:
    c.ServerApp.ip = "127.0.0.1"  # and a token that nobody knows

c.ServerApp.port = 8888
c.ServerApp.port_retries = 0
c.ServerApp.open_browser = False
c.ServerApp.root_dir = "/srv/jupyter"
