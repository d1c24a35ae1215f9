"""The tables of failures hold for both interfaces of a provider."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import httpx2
import pytest

from tests.activities.calling import Api, Interface

BOTH = ("test_failures", "test_what_providers_answer", "test_what_providers_say", "test_answers")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of these files over chat completions, and over the Responses API."""
    if metafunc.module.__name__.rpartition(".")[2] in BOTH:
        metafunc.fixturenames.append("api")
        metafunc.parametrize("api", ["chat", "responses"], indirect=True)


@pytest.fixture(scope="session", autouse=True)
def _certificates_are_read_once() -> Iterator[None]:
    """Let clients share a TLS context. To read the certificates is most of the work of making a client."""
    with pytest.MonkeyPatch.context() as patch:
        shared = functools.cache(httpx2.create_ssl_context)
        patch.setattr("httpx2._transports.default.create_ssl_context", shared)
        yield


@pytest.fixture
def api(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Api:
    """The interface that this test's calls use."""
    monkeypatch.setattr(Interface, "api", request.param)
    api: Api = request.param
    return api
