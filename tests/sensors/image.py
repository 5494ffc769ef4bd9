"""The sensors' image: Debian 12, built once by mmdebstrap from this machine's own package sources.

It is kept under a hash of its recipe. Two layers, both read-only once built. `base` is the bare image: it boots, has
sshd, sudo, Python and a microphone, and a local package repository (file:/srv/debian) with what a fleet may want to
install; there is no other way to packages. `full` is what apt put on top of it: redis-server (running, as Debian starts
it), PortAudio and python3-venv.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path

from tests.sensors.machine import DISK_WANTED, STATE, lock, locked, run, scratch, write

HERE = Path(__file__).parent
BASE_PACKAGES = (
    *("systemd", "systemd-sysv", "libpam-systemd", "dbus", "dbus-user-session", "polkitd"),
    *("openssh-server", "openssh-sftp-server", "sudo", "python3", "iproute2", "procps", "rsync", "logrotate"),
    *("ca-certificates", "tzdata", "alsa-utils", "libasound2-plugins", "pulseaudio", "pulseaudio-utils", "strace"),
)
FULL_PACKAGES = ("redis-server", "libportaudio2", "python3-venv")
MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"),
    *("e2scrub_reap.service", "systemd-pstore.service"),
)


def sources() -> str | None:
    """Return this machine's own Debian sources, for the sensors' release; None if it has none."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    if release.get("ID", "").strip('"') != "debian":
        return None
    apt = Path("/etc/apt")
    others = sorted(apt.glob("sources.list.d/*.sources"))  # whoever installed this machine chose the name
    for path in (apt / "sources.list.d/debian.sources", apt / "sources.list", *others):
        text = path.read_text().strip() if path.exists() else ""
        if re.search(r"^(deb |URIs:)", text, re.MULTILINE) and release["VERSION_CODENAME"] in text:
            return re.sub(rf"\b{release['VERSION_CODENAME']}\b", "bookworm", text) + "\n"
    return None


def recipe() -> str:
    """Return the hash of everything that decides what is in the image."""
    digest = hashlib.sha256()
    for path in (HERE / "image.py", *_tree()):
        digest.update(f"{path.relative_to(HERE)}\0{path.stat().st_mode & 0o100}\0".encode() + path.read_bytes())
    digest.update((sources() or "").encode())
    return digest.hexdigest()[:16]


def _tree() -> list[Path]:
    return sorted(path for path in (HERE / "rootfs").rglob("*") if path.is_file())


def open_image() -> tuple[Path, int]:
    """Return the image's folder, built if it is not there, and a lock to hold until a sensor is made of it."""
    images = STATE / "images"
    folder = images / recipe()
    with locked(STATE / "images.lock"):  # one builds, the others wait for it
        held = lock(images / f"{folder.name}.lock", shared=True)
        assert held is not None
        if not folder.exists():
            _remove_unused(images, folder.name)
            free = shutil.disk_usage(STATE).free
            if free < DISK_WANTED:
                raise RuntimeError(
                    f"{STATE} has {free:,} bytes free and the sensors' image wants {DISK_WANTED:,}; free some"
                )
            with scratch("build") as build:
                _build(build)
                run(
                    ["sync", "-f", build], timeout=600
                )  # a folder with its final name is complete, also after a power cut
                (build / "image").rename(folder)
    return folder, held


def _remove_unused(images: Path, keep: str) -> None:
    """Remove the images of older recipes that no sensor runs on and nobody is about to make a sensor of."""
    made = [path.read_text() for path in STATE.glob("rigs/*/*/made.json")]
    used = {Path(json.loads(text)["image"]).name for text in made if text}
    for other in images.glob("*.lock"):
        if other.stem not in used | {keep} and (held := lock(other, wait=False)) is not None:
            shutil.rmtree(images / other.stem, ignore_errors=True)
            other.unlink()
            os.close(held)


def _build(build: Path) -> None:
    image = build / "image"
    base = image / "base"
    image.mkdir()
    own_sources = (
        build / "debian.sources" if (text := sources() or "").lstrip().startswith("Types:") else build / "debian.list"
    )
    own_sources.write_text(text)
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale", "info")]
    forget = 'rm -f "$1"/var/cache/apt/archives/*.deb'
    download = f"APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get install --yes --download-only {' '.join(FULL_PACKAGES)}"
    command = [
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}"),
        *('--aptopt=Acquire::Retries "5"', "--dpkgopt=force-unsafe-io", *excluded),
        *(f"--customize-hook={forget}", f"--customize-hook={download}"),
        '--customize-hook=mkdir -p "$1/srv/debian"',
        '--customize-hook=mv "$1"/var/cache/apt/archives/*.deb "$1/srv/debian/"',
        *("bookworm", str(base), str(own_sources)),
    ]

    for patience in (5, 30, None):  # a mirror may be busy for a minute
        try:
            run(command, timeout=900)
            break
        except RuntimeError:
            if patience is None:
                raise
            shutil.rmtree(base, ignore_errors=True)
            time.sleep(patience)
    _furnish(base)
    _install_full(image)


def _furnish(base: Path) -> None:
    """Make a sensor of a Debian: the user of a Raspberry Pi, our files, the package repository; no identity yet."""
    for file in _tree():
        mode = "755" if file.stat().st_mode & 0o100 else "644"  # a checkout's modes are the umask's business
        place = base / file.relative_to(HERE / "rootfs")
        run(["install", "-d", "-m755", place.parent])
        run(["install", f"-m{mode}", file, place])
    (base / "etc/sudoers.d/010_pi-nopasswd").chmod(0o440)
    run(["install", "-d", "-m755", base / "var/lib/sensor"])
    _write_package_index(base / "srv/debian")
    for old in (base / "etc/apt/sources.list.d").iterdir():
        old.unlink()
    write(base / "etc/apt/sources.list", "deb [trusted=yes] file:/srv/debian ./\n")
    for made_by_each_sensor in [*(base / "etc/ssh").glob("ssh_host_*"), base / "etc/resolv.conf"]:
        made_by_each_sensor.unlink(missing_ok=True)
    (base / "var/lib/dbus/machine-id").unlink(missing_ok=True)
    write(base / "etc/machine-id", "")
    write(base / "etc/default/locale", "")
    for words in (
        ["useradd", "--create-home", "--uid=1000", "--shell=/bin/bash", "--groups=audio,sudo,systemd-journal", "pi"],
        ["install", "-d", "-m700", "-o", "pi", "-g", "pi", "/home/pi/.ssh"],
        ["systemctl", "--quiet", "mask", *MASKED],
        ["systemctl", "--quiet", "--global", "mask", "pulseaudio.service", "pulseaudio.socket"],
        ["systemctl", "--quiet", "enable", "microphone.service", "sound.service", "ssh.service"],
    ):
        run(["chroot", base, *words])


def _write_package_index(repository: Path) -> None:
    repository.chmod(0o755)
    entries = []
    for package in sorted(repository.glob("*.deb")):
        package.chmod(0o644)
        content = package.read_bytes()
        control = run(["dpkg-deb", "--field", package]).strip()
        digest = hashlib.sha256(content).hexdigest()
        entries.append(f"{control}\nFilename: ./{package.name}\nSize: {len(content)}\nSHA256: {digest}\n")
    write(repository / "Packages", "\n".join(entries))


def _install_full(image: Path) -> None:
    """Let apt install the full image's packages into a layer of their own; mounts end with the namespace."""
    for name in ("full", "work", "root"):
        (image / name).mkdir()
    (image / "full").chmod(0o755)
    script = f"""
        cd {image}
        mount -t overlay image -o lowerdir=base,upperdir=full,workdir=work root
        mount -t proc proc root/proc
        mount --rbind /dev root/dev
        mount -t tmpfs tmpfs root/run
        printf '#!/bin/sh\\nexit 101\\n' > root/usr/sbin/policy-rc.d
        chmod 755 root/usr/sbin/policy-rc.d
        export DEBIAN_FRONTEND=noninteractive
        chroot root apt-get update --quiet
        chroot root apt-get install --yes --no-install-recommends {" ".join(FULL_PACKAGES)}
        rm -rf root/usr/sbin/policy-rc.d root/var/lib/apt/lists/* root/var/cache/apt/*
        """
    run(["unshare", "--mount", "sh", "-ec", script], timeout=600)
    shutil.rmtree(image / "work")
    (image / "root").rmdir()
