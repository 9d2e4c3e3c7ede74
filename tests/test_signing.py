"""What was altered, added, removed, or signed by another key is refused before it is used."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from research import signing
from research.arguments import InputError, RunError

pytestmark = pytest.mark.core


def write_key(key, path, password=None):
    """Writes path.pem and path.pub."""
    encryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption)
    path.with_suffix(".pem").write_bytes(private)
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    mine = ec.generate_private_key(ec.SECP256R1())
    write_key(mine, folder / "mine")
    write_key(mine, folder / "secret", b"correct horse")
    write_key(ec.generate_private_key(ec.SECP384R1()), folder / "other")
    write_key(ec.generate_private_key(ec.SECP256K1()), folder / "bitcoin")
    write_key(rsa.generate_private_key(65537, 2048), folder / "rsa")
    (folder / "text.pem").write_text("not a key")
    (folder / "text.pub").write_text("not a key")
    return folder


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / "export"
    (folder / "weights").mkdir(parents=True)
    for name in ("config.json", ".hidden", "weights/0", "weights/it's [1]"):
        (folder / name).write_bytes(name.encode() * 100)
    return folder


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "10" / "manifest.json"
    path.parent.mkdir()
    path.write_text('{"files": {}}')
    (path.parent / "state").write_text("another file, which the signature says nothing about")
    return path


def refused(path, keys, signature, key="mine"):
    """The one line in which `path` is refused."""
    with pytest.raises(signing.TamperedError) as caught:
        signing.verify(path, keys / f"{key}.pub", signature)
    assert isinstance(caught.value, RunError) and caught.value.code == 1
    line = str(caught.value)
    assert str(path) in line and str(signature) in line and "do not use it" in line
    assert len(line.splitlines()) == 1 and "Digest(" not in line
    return line


def test_what_was_signed_is_accepted(keys, export, manifest, tmp_path):
    for path in (export, manifest):
        signing.sign(path, keys / "mine.pem", tmp_path / "made.sig")
        signing.verify(path, keys / "mine.pub", tmp_path / "made.sig")
        signing.verify(str(path), str(keys / "mine.pub"), str(tmp_path / "made.sig"))


@pytest.mark.parametrize("name", ["config.json", ".hidden", "weights/0", "weights/it's [1]"])
def test_every_altered_byte_is_refused_by_the_name_of_its_file(name, keys, export, tmp_path):
    signing.sign(export, keys / "mine.pem", tmp_path / "export.sig")
    content = bytearray((export / name).read_bytes())
    content[len(content) // 2] ^= 1
    (export / name).write_bytes(content)
    line = refused(export, keys, tmp_path / "export.sig")
    assert f"Hash mismatch for '{name}'" in line


def test_several_differences_are_all_named(keys, export, tmp_path):
    signing.sign(export, keys / "mine.pem", tmp_path / "export.sig")
    (export / "config.json").unlink()
    (export / ".hidden").write_text("")
    (export / "weights" / "0").write_text("")
    (export / "weights" / "1").write_text("")
    line = refused(export, keys, tmp_path / "export.sig")
    assert (
        "Extra files found in model 'export': weights/1; Missing files in model 'export': "
        "config.json; Hash mismatch for '.hidden'; Hash mismatch for 'weights/0'; do not" in line
    )


@pytest.mark.parametrize("name", ["new", "weights/new", ".gitattributes", ".git/hooks", "made.sig"])
def test_a_file_that_was_not_signed_is_refused(name, keys, export, tmp_path):
    signing.sign(export, keys / "mine.pem", tmp_path / "made.sig")
    (export / name).parent.mkdir(exist_ok=True)
    (export / name).write_text("")
    assert f"Extra files found in model 'export': {name}" in refused(
        export, keys, tmp_path / "made.sig"
    )


def test_a_link_is_neither_signed_nor_accepted(keys, export, tmp_path):
    signing.sign(export, keys / "mine.pem", tmp_path / "export.sig")
    (export / "config.json").rename(tmp_path / "config.json")
    (export / "config.json").symlink_to(tmp_path / "config.json")
    assert "symlink" in refused(export, keys, tmp_path / "export.sig")
    with pytest.raises(InputError, match="symlink"):
        signing.sign(export, keys / "mine.pem", tmp_path / "export.sig")
    (export / "config.json").unlink()
    (tmp_path / "config.json").rename(export / "config.json")
    (tmp_path / "latest").symlink_to(export)
    signing.verify(tmp_path / "latest", keys / "mine.pub", tmp_path / "export.sig")


def test_files_beside_a_signed_file_do_not_matter_and_its_content_does(keys, manifest):
    signature = manifest.parent / "manifest.sig"
    signing.sign(manifest, keys / "mine.pem", signature)
    (manifest.parent / "state").write_text("changed")
    (manifest.parent / "more").write_text("")
    signing.verify(manifest, keys / "mine.pub", signature)
    signing.sign(manifest, keys / "mine.pem", signature)  # again, over the old one
    signing.verify(manifest, keys / "mine.pub", signature)
    manifest.write_text('{"files": {"x": 1}}')
    assert "its content" in refused(manifest, keys, signature)


def test_a_missing_or_foreign_signature_is_refused(keys, export, manifest, tmp_path):
    signature = tmp_path / "made.sig"
    assert "made.sig does not exist" in refused(export, keys, signature)
    signing.sign(export, keys / "other.pem", signature)
    assert "Key mismatch" in refused(export, keys, signature)
    assert "other.pub" not in refused(export, keys, signature)
    signing.verify(export, keys / "other.pub", signature)
    # A signature of something else by the right key.
    signing.sign(manifest, keys / "mine.pem", signature)
    assert "Extra files" in refused(export, keys, signature)


def test_a_forged_or_damaged_signature_is_refused(keys, export, tmp_path):
    signature = tmp_path / "export.sig"
    signing.sign(export, keys / "mine.pem", signature)
    whole = signature.read_text()
    for text in ("", "{}", "[]", "null", "\x00", whole[:-100], whole[: len(whole) // 2]):
        signature.write_text(text)
        assert "damaged" in refused(export, keys, signature)
    signature.write_bytes(b"\xff\xfe")
    assert "damaged" in refused(export, keys, signature)

    # Altered files with the signature rewritten to fit them, all but the part that needs the key.
    (export / "config.json").write_text("altered")
    signing.sign(export, keys / "other.pem", signature)
    forged, true = json.loads(signature.read_text()), json.loads(whole)
    forged["verificationMaterial"] = true["verificationMaterial"]
    signature.write_text(json.dumps(forged))
    assert "InvalidSignature" in refused(export, keys, signature)
    for signatures in ([], true["dsseEnvelope"]["signatures"]):
        forged["dsseEnvelope"]["signatures"] = signatures
        signature.write_text(json.dumps(forged))
        assert "damaged" in refused(export, keys, signature)
    payload = base64.b64decode(true["dsseEnvelope"]["payload"]).replace(b"config.json", b"c.json")
    true["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    signature.write_text(json.dumps(true))
    assert "InvalidSignature" in refused(export, keys, signature)


def test_storage_that_fails_is_not_called_tampering_and_not_accepted(keys, export, tmp_path):
    signing.sign(export, keys / "mine.pem", tmp_path / "export.sig")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        signing.verify(export, keys / "mine.pub", tmp_path / "folder")
    with pytest.raises(OSError):
        signing.sign(export, keys / "mine.pem", tmp_path / "none" / "export.sig")


def test_an_unusable_key_is_named(keys, export, tmp_path):
    signing.sign(export, keys / "mine.pem", tmp_path / "export.sig")
    for name in ("rsa", "bitcoin", "text", "none"):
        for action, end in ((signing.sign, ".pem"), (signing.verify, ".pub")):
            with pytest.raises(InputError) as caught:
                action(export, keys / f"{name}{end}", tmp_path / "export.sig")
            assert f"{name}{end}" in str(caught.value) and "P-256" in str(caught.value)
            assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(InputError, match="mine.pub.*private key"):  # the halves exchanged
        signing.sign(export, keys / "mine.pub", tmp_path / "export.sig")
    with pytest.raises(InputError, match="mine.pem.*public key"):
        signing.verify(export, keys / "mine.pem", tmp_path / "export.sig")


def test_an_encrypted_key_opens_with_its_password_only(keys, export, tmp_path, monkeypatch):
    for password in (None, "wrong"):
        if password:
            monkeypatch.setenv("ANNEAL_KEY_PASSWORD", password)
        with pytest.raises(InputError, match="secret.pem.*ANNEAL_KEY_PASSWORD") as caught:
            signing.sign(export, keys / "secret.pem", tmp_path / "export.sig")
        assert "wrong" not in str(caught.value)
    monkeypatch.setenv("ANNEAL_KEY_PASSWORD", "correct horse")
    signing.sign(export, keys / "secret.pem", tmp_path / "export.sig")
    signing.verify(export, keys / "mine.pub", tmp_path / "export.sig")


def test_nothing_to_sign_or_a_signature_in_what_it_signs_is_refused(keys, export, tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        signing.sign(tmp_path / "nowhere", keys / "mine.pem", tmp_path / "made.sig")
    with pytest.raises(InputError, match="nowhere does not exist"):
        signing.verify(tmp_path / "nowhere", keys / "mine.pub", tmp_path / "made.sig")
    for signature in (export / "made.sig", export / "weights" / ".." / "made.sig"):
        with pytest.raises(InputError, match="put it beside"):
            signing.sign(export, keys / "mine.pem", signature)
    before = (export / "config.json").read_bytes()
    with pytest.raises(InputError, match="put it beside"):
        signing.sign(export / "config.json", keys / "mine.pem", export / "config.json")
    assert (export / "config.json").read_bytes() == before


def test_a_missing_package_is_named(keys, export, tmp_path, monkeypatch):
    for name in ("model_signing", "OpenSSL"):
        for module in [m for m in sys.modules if m.split(".")[0] in ("model_signing", "sigstore")]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(InputError, match=r"needs model-signing; pip install 'anneal\[sign\]'"):
            signing.sign(export, keys / "mine.pem", tmp_path / "made.sig")
        monkeypatch.undo()


def test_the_module_itself_imports_nothing_heavy():
    code = "import sys, research.signing; print(sorted(m.split('.')[0] for m in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    for name in ("model_signing", "cryptography", "etils", "jax", "numpy"):
        assert f"'{name}'" not in loaded


def test_a_remote_file_is_signed_and_verified_and_a_remote_folder_refused(keys, monkeypatch):
    import fsspec
    from etils import epath
    from etils.epath import backend
    from fsspec.implementations.memory import MemoryFileSystem

    class Bucket(MemoryFileSystem):
        protocol = "gs"

        @classmethod
        def _strip_protocol(cls, path):
            return MemoryFileSystem._strip_protocol(str(path).replace("gs://", "memory://"))

    monkeypatch.setattr(
        backend.fsspec_backend,
        "fs",
        lambda path: Bucket() if str(path).startswith("gs://") else fsspec.filesystem("file"),
    )
    folder = epath.Path("gs://bucket/10")
    folder.mkdir(parents=True)
    path, signature = folder / "manifest.json", folder / "manifest.sig"
    path.write_text("{}")
    signing.sign(path, keys / "mine.pem", signature)
    signing.verify(str(path), keys / "mine.pub", str(signature))
    path.write_text("[]")
    assert "its content" in refused(path, keys, signature)
    signature.unlink()
    assert "does not exist" in refused(path, keys, signature)
    for action, key in ((signing.sign, "mine.pem"), (signing.verify, "mine.pub")):
        with pytest.raises(InputError, match="remote folder; copy it"):
            action(folder, keys / key, "gs://bucket/10.sig")


def test_the_standard_command_verifies_what_we_sign_and_we_what_it_signs(
    keys, export, manifest, tmp_path
):
    def command(action, path, *more):
        arguments = [sys.executable, "-m", "model_signing", action, "key", str(path), *more]
        arguments += ["--signature", str(tmp_path / "made.sig")]
        return subprocess.run(arguments, capture_output=True, text=True)

    for path in (export, manifest):
        signing.sign(path, keys / "mine.pem", tmp_path / "made.sig")
        public = f"--public_key={keys / 'mine.pub'}"
        done = command("verify", path, public)
        assert (done.returncode, done.stdout) == (0, "Verification succeeded\n"), done.stderr
        assert command("verify", path, f"--public_key={keys / 'other.pub'}").returncode == 1
        done = command("sign", path, f"--private_key={keys / 'mine.pem'}")
        assert done.returncode == 0, done.stderr
        signing.verify(path, keys / "mine.pub", tmp_path / "made.sig")
        changed = path if path.is_file() else path / "config.json"
        changed.write_text("altered")
        refused(path, keys, tmp_path / "made.sig")


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
@pytest.mark.parametrize("is_encrypted", [False, True])
def test_the_documented_commands_make_keys(is_encrypted, export, tmp_path, monkeypatch):
    commands = re.findall("^    (openssl .*)$", signing.__doc__, flags=re.MULTILINE)
    assert len(commands) == 2
    environment = os.environ | {"ANNEAL_KEY_PASSWORD": "secret"}
    for command in commands:
        if is_encrypted:
            command += " -aes256 -pass" if "genpkey" in command else " -passin"
            command += " env:ANNEAL_KEY_PASSWORD"
        subprocess.run(command.split(), cwd=tmp_path, check=True, env=environment)
    if is_encrypted:
        monkeypatch.setenv("ANNEAL_KEY_PASSWORD", "secret")
    assert ("ENCRYPTED" in (tmp_path / "key.pem").read_text()) == is_encrypted
    signing.sign(export, tmp_path / "key.pem", tmp_path / "made.sig")
    signing.verify(export, tmp_path / "key.pub", tmp_path / "made.sig")
