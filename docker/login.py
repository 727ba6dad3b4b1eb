#!/usr/bin/env python3
"""Log Docker in to a private registry, before its images are pulled or pushed.

    docker/login.py 123456789012.dkr.ecr.eu-west-1.amazonaws.com   Amazon ECR: a token of 12 hours, by boto3
    docker/login.py registry.example.com                           any other: 'docker login' asks
    docker/login.py registry.example.com -u robot < password.txt   or takes the password from stdin

The password reaches the engine over its stdin (``--password-stdin``): it stands in no command line,
environment or output. AWS credentials are found as boto3 finds them (``--profile``, SSO, environment …).
Only an ECR registry needs boto3. Exit codes: the engine's; 4 for what a user can mend, in one line.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

EXIT_USAGE = 4
PRIVATE = re.compile(
    r"(?P<account>\d{12})\.dkr[.-]ecr(?:-fips)?\.(?P<region>[a-z0-9-]+)\.(?:amazonaws\.com(?:\.cn)?|on\.aws)"
)
PUBLIC = "public.ecr.aws"  # one for the world, served from one region
PUBLIC_REGION = "us-east-1"


class LoginError(Exception):
    """What a user can mend: one line, exit code 4."""


class Login(NamedTuple):
    user: str
    password: str

    def __repr__(self) -> str:
        return f"Login({self.user!r}, …)"  # a traceback or a log must not show the password


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("docker/login.py", allow_abbrev=False)
    made.description = (
        "Log in to a private registry; Amazon ECR through boto3, others as 'docker login' does."
    )
    made.add_argument(
        "registry", help="its host, as in the names of its images; a path after it is left away"
    )
    made.add_argument("-u", "--username", help="not for ECR, whose user is always AWS")
    made.add_argument("--profile", help="of the AWS configuration [$AWS_PROFILE]")
    engine = os.environ.get("ENGINE") or "docker"
    made.add_argument(
        "--engine", default=engine, help="a command that takes docker's arguments [$ENGINE, docker]"
    )
    return made


def host(registry: str) -> str:
    """``registry`` without scheme and path. Raises LoginError where a password stands in it."""
    bare = registry.partition("://")[2] or registry
    bare = bare.partition("/")[0]
    if "@" in bare:
        raise LoginError("registry: has a user or password in it; write the host alone, and --username USER")
    if not re.fullmatch(r"[\w.-]+(:\d+)?", bare):
        raise LoginError(f"registry: '{registry}' is no host; write one as in 'registry.example.com:5000'")
    return bare


def is_ecr(registry: str) -> bool:
    return registry == PUBLIC or PRIVATE.fullmatch(registry) is not None


def ecr_login(registry: str, profile: str | None) -> Login:
    """User and password for an ECR registry, valid for 12 hours.

    Source: the ``GetAuthorizationToken`` actions of the ECR and ECR Public APIs; the token is the base64 of
    ``user:password``. Raises LoginError when boto3 or credentials are missing, or AWS refuses.
    """
    try:
        import boto3
        from botocore import exceptions
    except ImportError:
        command = f"python3 local.py --engine venv python docker/login.py {registry}"
        raise LoginError(f"{registry}: needs boto3; run it as '{command}'") from None
    again = f"aws sso login{f' --profile {profile}' if profile else ''}"
    try:
        session = boto3.session.Session(profile_name=profile)
        private = PRIVATE.fullmatch(registry)
        if private:
            client = session.client("ecr", region_name=private["region"])
            answer = client.get_authorization_token(registryIds=[private["account"]])["authorizationData"][0]
        else:
            client = session.client("ecr-public", region_name=PUBLIC_REGION)
            answer = client.get_authorization_token()["authorizationData"]
    except (exceptions.SSOError, exceptions.TokenRetrievalError) as error:
        raise LoginError(f"{registry}: {one_line(error)}; sign in with '{again}'") from None
    except exceptions.NoCredentialsError:
        raise LoginError(
            f"{registry}: no AWS credentials; '{again}', or set AWS_ACCESS_KEY_ID and the key"
        ) from None
    except (exceptions.BotoCoreError, exceptions.ClientError) as error:
        raise LoginError(f"{registry}: {one_line(error)}; look at 'aws sts get-caller-identity'") from None
    user, _, password = base64.b64decode(answer["authorizationToken"]).decode().partition(":")
    return Login(user, password)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def hand_over(engine: str, registry: str, login: Login) -> int:
    """``docker login`` with the password on its stdin; its exit code. Its output is ours."""
    command = [engine, "login", "--username", login.user, "--password-stdin", registry]
    try:
        return subprocess.run(command, input=login.password.encode(), check=False).returncode
    except OSError as error:
        raise LoginError(f"{engine}: {error.strerror}; install it, or name another with --engine") from None


def become(engine: str, registry: str, username: str | None) -> NoReturn:
    """``docker login`` as it is: it asks on a terminal, else the password comes from stdin."""
    command = [engine, "login", *(["--username", username] if username else [])]
    if not sys.stdin.isatty():
        if not username:
            raise LoginError(f"{registry}: a password on stdin needs a user; add '--username USER'")
        command.append("--password-stdin")
    try:
        os.execvp(engine, [*command, registry])
    except OSError as error:
        raise LoginError(f"{engine}: {error.strerror}; install it, or name another with --engine") from None


def run(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    registry = host(options.registry)
    if not is_ecr(registry):
        become(options.engine, registry, options.username)
    if options.username:
        raise LoginError(f"{registry}: the user of ECR is always AWS; leave --username out")
    return hand_over(options.engine, registry, ecr_login(registry, options.profile))


def main() -> NoReturn:
    try:
        sys.exit(run(sys.argv[1:]))
    except LoginError as error:
        print(f"login.py: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)


if __name__ == "__main__":
    main()
