"""Fixtures that several test files share."""

from collections.abc import Iterator

import pytest

from blockshock.ranks import Ranks


@pytest.fixture(scope="session", params=[1, 4])
def other_ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    """Groups on CPUs of the sizes that the session's group does not have."""
    with Ranks.spawn(request.param) as group:
        yield group
