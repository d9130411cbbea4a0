"""The settings of `mocoembed serve`."""

import ipaddress
import re
from dataclasses import dataclass

from mocoembed.checks import at_least, at_most, require
from mocoembed.config.pretrain import DEFAULT_WORKSPACE
from mocoembed.errors import UsageError

LEAST_TOKEN = 16  # characters
MAKE_TOKEN = "Make one with: openssl rand -hex 16"


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach the address."""
    address = address_of(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a number of IPv4 or IPv6 is; `None` for any other text."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class ServeConfig:
    """Everything that `mocoembed serve` needs."""

    embeddings: str | None = None
    """Embeddings file; by default, the one that the index was built from, or embeddings.h5 in the workspace."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder that holds the results of every command, where the next command finds them."""
    index: str | None = None
    """Index file; by default, the one beside the embeddings file. Without one, a small collection is compared image by
    image."""
    root: str | None = None
    """Where the collection's images are now, if they have moved."""
    port: int = 8765
    """Port to listen on; 0 for any free port."""
    host: str = "127.0.0.1"
    """Address to listen on. One that other machines reach needs a --token."""
    token: str | None = None
    """Secret of 16 characters or more that every request must carry."""
    allow_host: tuple[str, ...] = ()
    """Host name under which the page is reached, as behind a reverse proxy. May be given again."""
    map: bool = False
    """Create or update the map in the background, as `mocoembed map` does, and again when the embeddings change."""
    browser: bool = True
    """Open the page in the browser, if there is a screen."""

    def __post_init__(self):
        at_least(self, 0, "port")
        at_most(self, 65_535, "port")
        if self.token is not None and (len(self.token) < LEAST_TOKEN or not self.token.isascii()
                                       or not self.token.isprintable() or " " in self.token):
            raise UsageError(f"--token: must be {LEAST_TOKEN} or more letters and digits without spaces. "
                             f"{MAKE_TOKEN}")
        if self.token is None and not is_loopback(self.host):
            raise UsageError(f"--host {self.host}: others could reach the images, so it needs a --token. "
                             f"{MAKE_TOKEN}")
        require(self, "allow_host", all(re.fullmatch(r"[^\s/:?#@]+", name) or address_of(name)
                                        for name in self.allow_host),
                "names without http://, port and path, such as images.example.org")
