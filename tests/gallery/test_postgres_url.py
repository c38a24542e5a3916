import ssl

import pytest

from service.errors import SettingInvalid
from service.gallery.postgres_url import Target, parse


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://ann@db", Target("ann", None, "db", 5432, "ann")),
        ("postgres://ann:pw@db:6000/faces", Target("ann", "pw", "db", 6000, "faces")),
        ("postgresql://a%40b:p%3A%2F%20@[::1]:5433/my%20faces", Target("a@b", "p:/ ", "::1", 5433, "my faces")),
        ("postgresql://ann:@/faces?host=/run/pg", Target("ann", None, "/run/pg", 5432, "faces")),
        ("postgresql://ann@/faces", Target("ann", None, "localhost", 5432, "faces")),
        (
            "postgresql://ann@db/faces?sslmode=require&connect_timeout=9&application_name=site%20a",
            Target("ann", None, "db", 5432, "faces", "require", None, 9.0, "site a"),
        ),
    ],
)
def test_urls(url: str, expected: Target) -> None:
    assert parse(url) == expected


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("@db:port/faces", "cannot be read"),
        ("@db/faces#x", "cannot be read"),
        ("@db/faces?ssl=1", "'ssl' is not a parameter"),
        ("@db/faces?sslmode", "cannot be read"),
        ("@db/faces?sslmode=maybe", "not one of disable, prefer"),
        ("@db/faces?sslmode=disable&sslmode=require", "given twice"),
        ("@db/faces?connect_timeout=0", "seconds from 1"),
        ("@db/faces?connect_timeout=soon", "seconds from 1"),
        ("@db/faces?sslmode=verify-full&sslrootcert=/nowhere.pem", "sslrootcert"),
        ("@db/faces?host=a%00b", "NUL"),
    ],
)
def test_what_is_refused_without_the_password(rest: str, said: str) -> None:
    with pytest.raises(SettingInvalid, match=said) as raised:
        parse(f"postgresql://ann:hunter2{rest}")
    assert "hunter2" not in str(raised.value)


def test_a_user_is_needed() -> None:
    with pytest.raises(SettingInvalid, match="names no user"):
        parse("postgresql://db/faces")


@pytest.mark.parametrize(
    ("rest", "shown"),
    [
        ("db/faces", "postgresql://ann@db:5432/faces"),
        ("[::1]:6000/faces", "postgresql://ann@[::1]:6000/faces"),
        ("/faces?host=/run/pg", "postgresql://ann@:5432/faces?host=/run/pg"),
    ],
)
def test_the_password_is_not_shown(rest: str, shown: str) -> None:
    target = parse(f"postgresql://ann:hunter2@{rest}")
    assert target.password == "hunter2"
    assert str(target) == shown
    assert "hunter2" not in repr(target)


def test_what_each_sslmode_insists_on() -> None:
    def tls(mode: str) -> ssl.SSLContext | bool | None:
        return parse(f"postgresql://ann@db/faces?sslmode={mode}").tls()

    require, full = tls("require"), tls("verify-full")
    assert (tls("disable"), tls("prefer")) == (False, None)
    assert isinstance(require, ssl.SSLContext)
    assert isinstance(full, ssl.SSLContext)
    assert (require.verify_mode, require.check_hostname) == (ssl.CERT_NONE, False)
    assert (full.verify_mode, full.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert parse("postgresql://ann@/faces?host=/run/pg&sslmode=require").tls() is False
