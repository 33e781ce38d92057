"""Builds the image's files in a folder, without a container engine, and tries them.

    sudo python docker/check_in_chroot.py FOLDER [--build-arg NAME=VALUE]... [--bind PATH]...

Needs root and Debian's debootstrap. The base image is imitated by Debian's base system with the
Python that runs this script in /usr/local. Every instruction of the Dockerfile is then carried out,
RUN in a chroot (with the paths of --bind, and PIP_* of the environment, for a machine that reaches
packages in its own way). The result is started as the image's user, then as one without an entry
in /etc/passwd: read-only but for /tmp, without capabilities. Its health check has to succeed, a
chat has to be answered, and SIGTERM has to end it with status 0.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile import Dockerfile, Stage, expanded, read

REPOSITORY = Path(__file__).resolve().parent.parent
LIBRARIES = "ca-certificates,netbase,libssl3,libffi8,zlib1g,libbz2-1.0,liblzma5,libsqlite3-0"
START_SECONDS = 120.0
STRANGER = "54321"  # a user id that nobody knows
PORT = 8000


@dataclass
class Tree:
    """A stage's files and what its instructions set."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def inside(self, path: str) -> Path:
        return self.root / (Path(self.workdir) / path).relative_to("/")


@dataclass
class Builder:
    dockerfile: Dockerfile
    folder: Path
    arguments: dict[str, str]
    binds: Sequence[Path]
    trees: dict[str, Tree] = field(default_factory=dict)

    def build(self, stage: Stage) -> Tree:
        """A stage, after those that it needs."""
        if stage.name not in self.trees:
            print(f"== {stage.name}", flush=True)
            tree = self._start(stage)
            arguments: dict[str, str] = {}
            for one in stage.instructions:
                if one.word == "ARG":
                    name, _, value = one.rest.partition("=")
                    value = value or self.dockerfile.arguments.get(name, "")
                    arguments[name] = self.arguments.get(name, value)
                else:
                    self._carry_out(one.word, one.rest, tree, arguments)
            self.trees[stage.name] = tree
        return self.trees[stage.name]

    def _start(self, stage: Stage) -> Tree:
        root = self.folder / stage.name
        if (source := self.dockerfile.stage(stage.source)) is None:
            make_base(root)
            return Tree(root, {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin"})
        parent = self.build(source)
        run("cp", "-a", "--reflink=auto", str(parent.root), str(root))
        return Tree(root, dict(parent.env), parent.workdir, parent.user)

    def _carry_out(self, word: str, rest: str, tree: Tree, arguments: dict[str, str]) -> None:
        match word:
            case "ENV":
                for setting in shlex.split(rest):
                    name, _, value = setting.partition("=")
                    tree.env[name] = expanded(value, tree.env | arguments)
            case "RUN":
                print(f"RUN {rest}", flush=True)
                own = {k: v for k, v in os.environ.items() if k.startswith("PIP_")}
                in_chroot(tree, ["sh", "-ec", rest], own | tree.env | arguments, self.binds)
            case "WORKDIR":
                tree.workdir = rest
                tree.inside(".").mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(rest.split(), tree)
            case "USER":
                tree.user = rest
            case "ENTRYPOINT":
                tree.entrypoint = json.loads(rest)
            case "HEALTHCHECK":
                tree.health = json.loads(rest.partition("CMD ")[2])
            case "LABEL" | "EXPOSE" | "STOPSIGNAL":
                pass
            case _:
                raise SystemExit(f"{word} is more than this script knows")

    def _copy(self, words: list[str], tree: Tree) -> None:
        origin = REPOSITORY
        if words[0].startswith("--from="):
            stage = self.dockerfile.stage(words.pop(0).removeprefix("--from="))
            assert stage is not None
            origin = self.build(stage).root
        *sources, target = words
        for source in sources:
            place = tree.inside(target)
            if target.endswith("/"):
                place /= Path(source).name
            run("cp", "-aT", str(origin / source.lstrip("/")), str(place))
        run("chown", "-R", "0:0", str(tree.inside(target)))


def make_base(root: Path) -> None:
    """Debian's base system, and this Python without what was installed into it."""
    run("debootstrap", "--variant=minbase", f"--include={LIBRARIES}", "bookworm", str(root))
    prefix = Path(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    ignored = shutil.ignore_patterns("site-packages", "test", "tests", "__pycache__", "*.a")
    shutil.copytree(prefix / "lib" / version, root / "usr/local/lib" / version, ignore=ignored)
    for library in (prefix / "lib").glob("libpython3*.so*"):
        shutil.copy2(library, root / "usr/local/lib", follow_symlinks=False)
    shutil.copy2(prefix / "bin" / version, root / "usr/local/bin" / version)
    for name in ("python", "python3"):
        (root / "usr/local/bin" / name).symlink_to(version)
    (root / "usr/local/lib" / version / "site-packages").mkdir()
    base = Tree(root, {"PATH": "/usr/local/bin:/usr/bin:/usr/sbin:/bin"})
    in_chroot(base, ["ldconfig"], base.env)
    in_chroot(base, ["python", "-m", "ensurepip"], base.env)
    (root / "usr/local/bin/pip").symlink_to("pip3")


def in_chroot(
    tree: Tree, command: Sequence[str], env: dict[str, str], binds: Iterable[Path] = ()
) -> None:
    """Run a build step as root, in mounts of its own."""
    mounts = ["mount -t proc proc proc", "mount --rbind /dev dev"]
    for path in [*binds, Path("/etc/resolv.conf")]:
        inside = tree.root / path.relative_to("/")
        (inside if path.is_dir() else inside.parent).mkdir(parents=True, exist_ok=True)
        if not path.is_dir():
            inside.touch()
        mounts.append(shlex.join(["mount", "--bind", str(path), str(inside)]))
    step = f"cd {shlex.quote(tree.workdir)} && exec {shlex.join(command)}"
    script = " && ".join([*mounts, f"exec chroot . sh -c {shlex.quote(step)}"])
    run("unshare", "--mount", "sh", "-ec", script, cwd=tree.root, env=env)


def run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{shlex.join(command)[:200]} failed:\n{done.stdout[-4000:]}")


def try_out(tree: Tree, user: str) -> None:
    """Start what the image starts, as `user`, and see it serve and end."""
    uid, gid = user.split(":")
    command = [
        *["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--clear-groups"],
        *(f"--reuid={uid}", f"--regid={gid}"),
        *(*tree.entrypoint, "--allow-unauthenticated"),
    ]
    root = shlex.quote(str(tree.root))
    step = shlex.quote(f"cd {tree.workdir} && exec {shlex.join(command)}")
    script = (
        f"mount --bind {root} {root} && mount -o remount,bind,ro {root} && cd {root}"
        " && mount -t proc proc proc && mount --rbind /dev dev"
        f" && mount -t tmpfs -o size=64m,mode=1777 tmpfs tmp && exec chroot . sh -c {step}"
    )
    words = ["unshare", "--mount", "sh", "-ec", script]
    with subprocess.Popen(words, env=tree.env) as server:
        try:
            seconds = _until_healthy(tree, server)
            text = _chat()
        except BaseException:
            server.kill()
            raise
        server.send_signal(signal.SIGTERM)
        status = server.wait(30)
    if status:
        raise SystemExit(f"as {user}: ended with status {status} after SIGTERM")
    print(f"as {user}: healthy after {seconds:.1f} s, answered {text!r}, ended with 0", flush=True)


def _until_healthy(tree: Tree, server: subprocess.Popen[bytes]) -> float:
    """Seconds until the image's own health check succeeds."""
    start = time.monotonic()
    check = ["chroot", str(tree.root), *tree.health]
    while time.monotonic() - start < START_SECONDS and server.poll() is None:
        if subprocess.run(check, env=tree.env, capture_output=True, check=False).returncode == 0:
            return time.monotonic() - start
        time.sleep(0.5)
    raise SystemExit("it did not become healthy")


def _chat() -> str:
    url = f"http://127.0.0.1:{PORT}/v1/chat/completions"
    body = {
        "model": "falcon-demo",
        "max_tokens": 16,
        "temperature": 0,
        "messages": [{"role": "user", "content": "Tom has 3 boxes of 4 apples. How many apples?"}],
    }
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: str = json.load(answer)["choices"][0]["message"]["content"]
    return content


def megabytes(path: Path) -> float:
    words = ["du", "--summarize", "--block-size=1000", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0]) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--bind", action="append", default=[], type=Path, metavar="PATH")
    args = parser.parse_args()
    arguments = dict(one.split("=", 1) for one in args.build_arg)
    dockerfile = read(REPOSITORY / "Dockerfile", arguments)
    args.folder.mkdir(parents=True)
    builder = Builder(dockerfile, args.folder.resolve(), arguments, args.bind)
    tree = builder.build(dockerfile.stages[-1])
    for user in (tree.user, f"{STRANGER}:0"):
        try_out(tree, user)
    added = megabytes(tree.root / "opt/falcon") + megabytes(tree.root / "app")
    base = megabytes(tree.root) - added
    print(f"the base system has {base:.0f} MB here, Falcon adds {added:.0f} MB")


if __name__ == "__main__":
    main()
