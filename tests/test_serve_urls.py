"""Pictures from addresses: off by default; if on, https to public addresses, no redirects, capped."""

from __future__ import annotations

import http.client
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniresxx.serve.refused import Refused
from uniresxx.serve.settings import ServeSettings
from uniresxx.serve.urls import fetched, public_address

ON = ServeSettings(image_urls=True, max_photo_bytes=1000)
PUBLIC = "93.184.216.34"


class Reply(io.BytesIO):
    status = 200


class Site:
    """Answers every request alike; notes where connections go."""

    def __init__(self, status=200, body=b"picture"):
        self.status, self.body, self.seen, self.closed = status, body, [], 0

    def connect(self, host, address, timeout):
        self.seen.append((host, address))
        return self

    def request(self, method, target, headers):
        self.seen.append(target)

    def getresponse(self):
        reply = Reply(self.body)
        reply.status = self.status
        return reply

    def close(self):
        self.closed += 1


def get(url, site=None, addresses=(PUBLIC,), settings=ON):
    site = site or Site()
    return fetched(url, settings, lambda host: list(addresses), site.connect)


def test_off_by_default():
    with pytest.raises(Refused, match="off in this server"):
        get("https://example.org/a.png", settings=ServeSettings())


def test_an_address_is_fetched_from_the_address_that_was_checked():
    site = Site()
    assert get("https://example.org/a%20b.png?x=1", site) == b"picture"
    assert site.seen == [("example.org", PUBLIC), "/a%20b.png?x=1"] and site.closed == 1


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.1", "172.16.5.5", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
     "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
     "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1"],
)  # fmt: skip
def test_private_addresses_are_refused_even_beside_a_public_one(address):
    for addresses in ([address], [PUBLIC, address]):
        site = Site()
        with pytest.raises(Refused, match="not a public address"):
            get("https://example.org/", site, addresses)
        assert site.seen == []


@pytest.mark.parametrize(
    "url",
    ["http://example.org/", "https://user@example.org/", "https://example.org:8443/", "https://", "https:///a",
     "https://[::1", "https://example.org/a b", "https://example.org/\r\nHost: x", "https://ex\u00e4mple.org/",
     "https://example.org\\@x/", "https://example.org/" + "a" * 2000, "https://example.org:x/"],
)  # fmt: skip
def test_other_addresses_are_refused(url):
    site = Site()
    with pytest.raises(Refused) as error:
        get(url, site)
    assert error.value.status_code == 400 and site.seen == []


@pytest.mark.parametrize("status", [301, 302, 307, 404, 500])
def test_redirects_and_errors_are_not_followed(status):
    site = Site(status)
    with pytest.raises(Refused, match=f"answered {status}"):
        get("https://example.org/", site)
    assert len(site.seen) == 2 and site.closed == 1


def test_caps_on_bytes_and_seconds():
    with pytest.raises(Refused, match="over the cap") as error:
        get("https://example.org/", Site(body=b"x" * 1001))
    assert error.value.status_code == 413
    with pytest.raises(Refused, match="longer than 0 s"):
        get("https://example.org/", settings=ServeSettings(image_urls=True, url_seconds=0))


@pytest.mark.parametrize("error", [OSError("no route"), http.client.BadStatusLine("x"), TimeoutError()])
def test_what_the_network_says_is_a_refusal(error):
    class Broken(Site):
        def request(self, method, target, headers):
            raise error

    with pytest.raises(Refused, match="cannot be read"):
        get("https://example.org/", Broken())


def test_a_name_without_an_address():
    with pytest.raises(Refused, match="no address"):
        public_address("x", [])


@given(st.text(max_size=60))
def test_no_text_is_fetched_unless_it_is_a_plain_address(text):
    site = Site()
    try:
        get(text, site)
    except Refused:
        assert site.seen == []
    else:
        assert text.lower().lstrip().startswith("https://")
