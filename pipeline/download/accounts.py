"""Downloads that a server gives to its users alone: a login by form, whose cookies open the file's address.

Name and password come from the environment and go into the form's body, nowhere else: not into an address, a message or a file.
"""

import os
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookiejar import CookieJar

from pipeline.download import transfer


@dataclass(frozen=True)
class Account:
    """Where to log in, and the environment variables that hold the user's name and password."""

    login: str  # the address that takes the form
    username: str
    password: str
    form: Mapping[str, str] = field(default_factory=dict)  # the form's further fields

    @property
    def known(self) -> bool:
        """Whether the environment has both."""
        return bool(os.environ.get(self.username) and os.environ.get(self.password))

    def open(self) -> transfer.Open:
        """How to open addresses as this user, after a login. Raises transfer.RefusedError with the reason, without the secret."""
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        secret = {"username": os.environ[self.username], "password": os.environ[self.password]}
        body = urllib.parse.urlencode({**secret, **self.form}).encode()
        request = urllib.request.Request(self.login, data=body, headers={"User-Agent": transfer.AGENT})
        try:
            with transfer.connection(request, opener.open) as response:
                response.read()
        except (transfer.RefusedError, transfer.DroppedError, OSError) as error:
            raise transfer.RefusedError(
                f"the login at {self.login} failed ({error}): are {self.username} and {self.password} right?"
            ) from None
        return opener.open
