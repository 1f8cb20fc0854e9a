"""Test credentials of AWS profiles: renewed before they expire, one clear line if missing, and never shown or leaked."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha1
from pathlib import Path

import numpy as np
import pytest
from object_store import DENIED, ObjectStore, object_store
from runs import save_volume, texture
from sign_ins import PROFILE, SECRET, SignIn, use_profile, write_config

from emseg_core.errors import BlockError, VolumeError
from emseg_core.installation import install_hint
from emseg_core.store.files import credentials
from emseg_core.store.volumes.volume import open_volume

VALUES = texture((4, 16, 16))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """Start a store with a volume."""
    folder = tmp_path_factory.mktemp("volumes")
    save_volume(folder / "v.zarr", VALUES, (4, 8, 8))
    with object_store() as store:
        store.upload(folder / "v.zarr", "v.zarr")
        yield store


@pytest.fixture(autouse=True)
def _afresh(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(credentials, "MIN_INTERVAL_SECONDS", 0.2)
    yield
    store.willing()
    store.expired = lambda token: False
    store.payers.clear()


@pytest.fixture
def sign_in(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SignIn:
    """Create a profile; the store accepts only its valid tokens."""
    sign_in = use_profile(tmp_path, monkeypatch)
    store.expired = sign_in.expired
    return sign_in


def refusal(place: str) -> str:
    """Return the error for a place that cannot be read: one line, within seconds."""
    began = time.monotonic()
    with pytest.raises(VolumeError) as caught:
        open_volume(place)
    assert time.monotonic() < began + 10
    assert len(str(caught.value).splitlines()) == 1
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_renewed_before_they_expire(store: ObjectStore, sign_in: SignIn) -> None:
    sign_in.begin(2.0)
    volume = open_volume(store.address("v.zarr"))
    end = time.monotonic() + 5
    while time.monotonic() < end:
        np.testing.assert_array_equal(volume.read(volume.spec.box), VALUES)
        time.sleep(0.05)
    assert len(sign_in.tokens) > 2


def test_long_lived_ones_are_resolved_once(store: ObjectStore, sign_in: SignIn) -> None:
    sign_in.begin(3600)
    for _ in range(3):
        volume = open_volume(store.address("v.zarr"))
        np.testing.assert_array_equal(volume.read(volume.spec.box), VALUES)
    assert len(sign_in.tokens) == 1
    assert sign_in.calls == 1


def test_expiry_is_an_outage_until_the_next_sign_in(
    store: ObjectStore, sign_in: SignIn, capfd: pytest.CaptureFixture[str]
) -> None:
    sign_in.begin(1.0)
    volume = open_volume(store.address("v.zarr"))
    sign_in.end()
    time.sleep(1.2)
    for _ in range(3):
        with pytest.raises(BlockError, match=r"the credentials of the AWS profile 'lab' have expired.*sign in again") as caught:
            volume.read(volume.spec.box)
        assert caught.value.fault == "store"
        assert len(str(caught.value).splitlines()) == 1
        assert SECRET not in str(caught.value)
    sign_in.begin(60)
    time.sleep(0.3)
    np.testing.assert_array_equal(volume.read(volume.spec.box), VALUES)
    assert capfd.readouterr() == ("", "")


def test_valid_ones_are_used_while_renewal_fails(store: ObjectStore, sign_in: SignIn) -> None:
    sign_in.begin(30)
    volume = open_volume(store.address("v.zarr"))
    sign_in.end()
    time.sleep(0.3)
    np.testing.assert_array_equal(volume.read(volume.spec.box), VALUES)


def test_nobody_is_signed_in(store: ObjectStore, sign_in: SignIn) -> None:
    said = refusal(store.address("v.zarr"))
    assert f"the AWS profile '{PROFILE}' has no valid credentials" in said
    assert f"sign in again; `aws sts get-caller-identity --profile {PROFILE}` says what is wrong" in said


def test_a_process_that_never_ends(
    store: ObjectStore, tmp_path: Path, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "MAX_RESOLUTION_SECONDS", 1.0)
    (tmp_path / "process.py").write_text("import time; time.sleep(3)")
    assert f"the AWS profile '{PROFILE}' gave no credentials within 1 s" in refusal(store.address("v.zarr"))


@pytest.mark.parametrize("expired", [True, False])
def test_single_sign_on_names_its_command(
    *, expired: bool, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds with an expired token and with none, and for a profile that takes a role from another one."""
    session = "https://example.org/start"
    sso = ("sso_session = site", "sso_account_id = 123456789012", "sso_role_name = reader", "region = eu-central-1")
    lines = ["[sso-session site]", f"sso_start_url = {session}", "sso_region = eu-central-1", "[profile base]", *sso]
    role = ['[profile "my role"]', "role_arn = arn:aws:iam::123456789012:role/r", "source_profile = base"]
    write_config(tmp_path, monkeypatch, *lines, *role)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    if expired:
        cache = tmp_path / ".aws" / "sso" / "cache"
        cache.mkdir(parents=True)
        end = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        token = {"startUrl": session, "region": "eu-central-1", "accessToken": SECRET, "expiresAt": end}
        (cache / f"{sha1(b'site').hexdigest()}.json").write_text(json.dumps(token))
    for name, quoted in (("base", "base"), ("my role", "'my role'")):
        monkeypatch.setenv("AWS_PROFILE", name)
        said = refusal(store.address("v.zarr"))
        assert f"the AWS profile '{name}' has no valid credentials" in said
        assert said.endswith(f"sign in again with `aws sso login --profile {quoted}`")


def test_what_a_profile_lacks(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    role = ("role_arn = arn:aws:iam::123456789012:role/r", "source_profile = empty", "mfa_serial = arn:aws:iam::1:mfa/me")
    write_config(tmp_path, monkeypatch, "[profile empty]", "region = eu-west-1", "[profile code]", *role)
    for name, problem in (("empty", "states no credentials"), ("missing", "does not exist"), ("code", "asks for a code")):
        monkeypatch.setenv("AWS_PROFILE", name)
        assert f"the AWS profile '{name}' {problem}" in refusal(store.address("v.zarr"))
    (tmp_path / "config").write_text("[profile\n")
    assert "the AWS profile 'code' cannot be read" in refusal(store.address("v.zarr"))


def test_without_a_profile(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Access is anonymous unless the default profile has credentials. Those of the environment come first."""
    signatures: set[bool] = set()
    store.refuse = lambda key, signed: signatures.add(signed) or ""  # type: ignore[func-returns-value]
    write_config(tmp_path, monkeypatch, "[default]", "region = eu-west-1")
    open_volume(store.address("v.zarr"))
    assert signatures == {False}
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = test\naws_secret_access_key = test\n")
    signatures.clear()
    open_volume(store.address("v.zarr"))
    assert signatures == {True}
    monkeypatch.setenv("AWS_PROFILE", "missing")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    open_volume(store.address("v.zarr"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    signatures.clear()
    open_volume(store.address("v.zarr"))
    assert signatures == {False}


def test_keys_in_a_file_that_is_rewritten(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some programs renew keys without stating when they expire."""
    monkeypatch.setattr(credentials, "RENEWAL_SECONDS", 0.2)
    write_config(tmp_path, monkeypatch)
    keys = "[default]\naws_access_key_id = test\naws_secret_access_key = test\naws_session_token = {}\n"
    (tmp_path / "credentials").write_text(keys.format("first"))
    store.expired = lambda token: token == "first"
    assert "v.zarr cannot be read (the credentials have expired): sign in again" in refusal(store.address("v.zarr"))
    (tmp_path / "credentials").write_text(keys.format("second"))
    time.sleep(0.3)
    assert open_volume(store.address("v.zarr")).spec.shape == VALUES.shape


def test_region_and_endpoint_of_a_profile(
    store: ObjectStore, sign_in: SignIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_in.begin(60)
    use_profile(tmp_path, monkeypatch, f"endpoint_url = {store.url}", "region = eu-west-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert open_volume(store.address("v.zarr")).spec.shape == VALUES.shape


def test_botocore_is_named_where_it_is_missing(store: ObjectStore, sign_in: SignIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "find_spec", lambda name: None)
    assert f"the AWS profile '{PROFILE}' is read with botocore, which is not installed): {install_hint('aws')}" in refusal(
        store.address("v.zarr")
    )


def test_nothing_secret_is_pickled(store: ObjectStore, sign_in: SignIn) -> None:
    sign_in.begin(60)
    volume = open_volume(store.address("v.zarr"))
    volume.read(volume.spec.box)
    pickled = pickle.dumps(volume)
    assert not [token for token in (SECRET, *sign_in.tokens) if token.encode() in pickled]


@pytest.mark.parametrize("payer", ["requester", ""])
def test_who_pays(payer: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    if payer:
        monkeypatch.setenv("AWS_REQUEST_PAYER", payer)
    open_volume(store.address("v.zarr"))
    assert store.payers == {payer}


def test_access_that_is_denied_names_profiles(store: ObjectStore) -> None:
    store.refuse = lambda key, signed: DENIED
    assert "set credentials that permit it, such as AWS_PROFILE" in refusal(store.address("v.zarr"))
