"""identity: whose sensor this is. Changes the user of this process, and nothing else."""

from __future__ import annotations

import os
import pwd

from acoupi_runtime.errors import ConfigurationError
from acoupi_runtime.home import Home


def become_owner(home: Home) -> None:
    """Go on as the user whose sensor this is, where root asks.

    `~` in its configuration is that user's home, and what root left in its store the workers could not write.

    Raises:
        ConfigurationError: If there is no such user any more.
    """
    if os.geteuid() != 0:
        return
    try:
        owner = home.log_dir.stat().st_uid
    except OSError:
        return  # there is no sensor; whoever reads its configuration says so
    if owner == 0:
        return
    try:
        user = pwd.getpwuid(owner)
    except KeyError:
        raise ConfigurationError(f"{home.log_dir}: its owner, {owner}, is no user of this system; chown it") from None
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.environ.update(HOME=user.pw_dir, USER=user.pw_name, LOGNAME=user.pw_name)
