"""The documentation says what is so: commands parse, code compiles, tables agree, links lead somewhere."""

import importlib.util
import inspect
import re
import shlex
import warnings
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

import strongroom
from strongroom import errors
from strongroom.format import limits

from .pages import DOCS, ROOT, all_pages, blocks, name

PAGES = all_pages()


def hook(module):
    """A module of docs/_hooks, which is no package."""
    path = DOCS / "_hooks" / f"{module}.py"
    spec = importlib.util.spec_from_file_location(f"docs_hooks_{module}", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def calls():
    """Every call of strongroom in a console or text block: (page, command line)."""
    for page in PAGES:
        for block in blocks(page):
            lines = block.text.splitlines()
            if block.language == "console":
                lines = block.commands()
            elif block.language not in ("text", "make", "sh", "bash", "yaml"):
                continue
            for line in lines:
                code = line.removeprefix("$ ").replace("\\\n", " ").split(" # ")[0].strip()
                code = code.replace("$<", "SRC").replace("$@", "DST")  # of make
                code = re.sub(r" \d*[<>].*", "", code)  # redirections
                # At the start of a simple command: what is before is a pipe, a list, a variable.
                found = re.search(r"(?:^|[|;&]\s*|\bdo |\w=\S+ )(strongroom [^|;&<>]*)", code)
                if found and not found[1].startswith(("strongroom SRC", "strongroom [")):
                    yield pytest.param(found[1].strip(), id=f"{name(page)}: {found[1].strip()}"[:100])


def parse(words):
    typer = pytest.importorskip("typer", reason="the command line needs the extra [cli]")
    from strongroom.cli.app import app

    command, title = typer.main.get_command(app), "strongroom"
    while hasattr(command, "commands"):
        if words and words[0].startswith("-"):
            assert words[0] in {"--help", "--version", "--install-completion", "--show-completion"}
            return
        assert words, f"{title} needs a command"
        title, words = f"{title} {words[0]}", words[1:]
        command = command.commands[title.rsplit(" ", 1)[1]]
    if "--help" not in words:
        command.make_context(title, list(words))


@pytest.mark.parametrize("line", sorted(calls(), key=lambda param: param.id))
def test_command_lines_parse(line):
    words = shlex.split(line)
    assert words[0] == "strongroom"
    parse(words[1:])


def test_command_lines_are_found_and_wrong_ones_refused():
    assert len(list(calls())) > 50
    with pytest.raises(Exception, match=r"(?i)no such option"):
        parse(["seal", "model", "-o", "x", "--no-such-option"])
    with pytest.raises(KeyError):
        parse(["conceal", "model"])


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_compiles(page):
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, f"{name(page)}: {block.title}", "exec")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_uses_names_that_exist(page):
    for block in blocks(page):
        if block.language != "python":
            continue
        for dotted in re.findall(r"\bstrongroom((?:\.[A-Za-z_]+)+)", block.text):
            found = strongroom
            for part in dotted[1:].split("."):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # those of frameworks that are imported here
                    if inspect.ismodule(found) and not hasattr(found, part):
                        found = importlib.import_module(f"{found.__name__}.{part}")
                    elif inspect.ismodule(found):
                        found = getattr(found, part)


def anchor(title):
    """As MkDocs makes them."""
    title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
    title = re.sub(r"[^\w\s-]", "", title).strip().lower()
    return re.sub(r"[-\s]+", "-", title)


def anchors(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    return {anchor(title) for title in re.findall(r"^#+ (.+)$", text, flags=re.M)}


def served_models():
    """Every list of models for the model server in a YAML block: that of models.yaml, and of Ray's arguments."""
    yaml = pytest.importorskip("yaml", reason="models.yaml needs the extra [serve]")
    for page in PAGES:
        for block in blocks(page):
            if block.language == "yaml" and re.search(r"^ *models:\n", block.text, re.M):
                content = yaml.safe_load(block.text)
                for one in [content, *(each["args"] for each in content.get("applications", ()))]:
                    if "models" in one:
                        yield page, {"models": one["models"]}


def test_models_of_the_model_server_are_read():
    pytest.importorskip("google.protobuf", reason="models.yaml needs the extra [serve]")
    from strongroom.serving.config_files import models_of_document

    found = list(served_models())
    assert {page.name for page, _ in found} >= {"serve-models.md", "models-yaml.md", "serve-on-ray.md"}
    for page, document in found:
        assert models_of_document(document), name(page)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{name(page)} links to {target}"
        if fragment and linked.suffix == ".md" and "." not in fragment:
            assert fragment in anchors(linked), f"{name(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_included_files_are_there(page):
    for included in re.findall(r'^--8<-- "([^"]+)"', page.read_text(), flags=re.M):
        assert (DOCS / included).is_file()


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:")[1]
    for page in DOCS.rglob("*.md"):
        path = page.relative_to(DOCS).as_posix()
        assert re.search(rf"[ :] ?{re.escape(path)}$", navigation, re.M), path


def test_nothing_is_fetched_from_outside():
    configuration = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in configuration
    assert "http" not in configuration
    for asset in [*DOCS.rglob("*.css"), *DOCS.rglob("*.svg"), *DOCS.rglob("*.js")]:
        text = asset.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|url\((?!#)", text.replace("url(#", "#")), name(asset)


def test_limits_table_is_the_modules():
    table = (DOCS / "spec" / "limits-and-errors.md").read_text()
    rows = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| (\d+) \|", table, re.M))
    constants = {key: str(value) for key, value in vars(limits).items() if key.isupper()}
    assert rows == constants


def test_error_tree_is_the_modules():
    page = (DOCS / "reference" / "errors-and-exit-codes.md").read_text()
    tree = inspect.cleandoc(errors.__doc__).split("::\n\n", 1)[1].split("\n\nA message")[0]
    assert inspect.cleandoc(tree) in page
    rows = set(re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.M))
    classes = {getattr(errors, key) for key in errors.__all__ if key[0].isupper()}
    classes.remove(errors.StrongroomError)
    assert rows == {(str(error.exit_code), error.__name__) for error in classes}


def test_error_table_of_the_specification():
    page = (DOCS / "spec" / "limits-and-errors.md").read_text()
    for class_name, code in re.findall(r"\| `(\w+)` \| (\d+) \|$", page, re.M):
        assert getattr(errors, class_name).exit_code == int(code)


def test_every_environment_variable_is_documented():
    page = (DOCS / "reference" / "environment-variables.md").read_text()
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    read = set(re.findall(r"environ(?:\.get\(|\[|,\s*)\"(STRONGROOM_\w+)\"", source))
    read |= set(re.findall(r"\"(STRONGROOM_\w+)\"", source))
    documented = set(re.findall(r"^\| `(STRONGROOM_\w+)` \|", page, re.M))
    assert read == documented


def test_public_names_are_in_the_reference():
    page = (DOCS / "reference" / "python.md").read_text()
    for public in strongroom.__all__:
        assert re.search(rf"\b{public}\b", page), public


def test_the_command_line_reference_has_every_option():
    pytest.importorskip("typer", reason="the command line needs the extra [cli]")
    reference = hook("reference")
    page = (DOCS / "reference" / "cli.md").read_text()
    assert page.count(reference.MARKER) == 1
    text = reference.markdown()
    for title, command in reference.commands():
        section = text.split(f"## {title}\n", 1)[1].split("\n## ")[0]
        for parameter in command.params:
            for flag in parameter.opts:
                assert flag in section or parameter.param_type_name == "argument", (title, flag)


def test_every_vector_is_listed():
    reference = hook("reference")
    assert (DOCS / "spec" / "test-vectors.md").read_text().count(reference.VECTORS_MARKER) == 1
    text = reference.vectors()
    stored = {path.name for path in reference.VECTORS.parent.glob("*.sealed")}
    assert {f"{vector}.sealed" for vector in re.findall(r"^\* `([^`]+)`", text, re.M)} == stored


def test_every_foreign_format_is_in_the_reference():
    pytest.importorskip("cryptotensors", reason="codecs of other packages")
    from strongroom.compat.registry import CODECS, codec

    reference = hook("reference")
    page = (DOCS / "reference" / "foreign-formats.md").read_text()
    assert page.count(reference.FORMATS_MARKER) == 1
    text = reference.formats()
    for format in CODECS:
        section = text.split(f"## {format}\n", 1)[1].split("\n## ")[0]
        for option in codec(format).options:
            assert f"| `{option}` |" in section
    how_to = (DOCS / "how-to" / "bring-over.md").read_text()
    assert all(f"| `{format}` |" in how_to for format in CODECS)


def test_worked_example_is_current():
    example = hook("worked_example")
    current = example.PAGE.read_text()
    assert current == example.page(current), "run python docs/_hooks/worked_example.py"


def read_by_the_specification(data, key):
    """A sealed file of one segment, from the text of docs/spec alone: no code of the package."""
    import base64
    import json

    def decode(text):
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

    def hkdf(ikm, salt, info):
        return HKDF(hashes.SHA256(), 32, salt, info).derive(ikm)

    assert data[:8] == bytes.fromhex("89 53 52 4D 0D 0A 1A 0A")
    area, size = int.from_bytes(data[8:12], "big"), int.from_bytes(data[12:16], "big")
    header = json.loads(data[16 : 16 + size])
    assert not any(data[48 + size : area])
    dek = aes_key_unwrap(key, decode(header["recipients"][0]["encrypted_key"]))
    bundle = decode(header["bundle"])
    mac = hmac.HMAC(hkdf(dek, bundle, b"strongroom/v1/header"), hashes.SHA256())
    mac.update(data[: 16 + size])
    mac.verify(data[16 + size : 48 + size])
    payload = data[area:]
    assert payload[0] == 0x28
    associated = b"strongroom/v1/file\x00" + bundle + header["path"].encode()
    file_key = hkdf(hkdf(dek, bundle, b"strongroom/v1/payload"), payload[1:33], associated)
    nonce = payload[33:40] + bytes(4) + b"\x01"
    return AESGCM(file_key).decrypt(nonce, payload[40:], None)


def test_worked_example_opens_by_the_specification_and_by_the_package(tmp_path):
    example = hook("worked_example")
    data = example.build()
    assert read_by_the_specification(data, example.KEY) == example.PLAINTEXT
    path = tmp_path / "greeting.txt.sealed"
    path.write_bytes(data)
    with strongroom.open(path, key=example.KEY) as model:
        assert model.read() == example.PLAINTEXT
        assert dict(model.meta) == example.META


def test_documentation_names_no_place_of_one_machine():
    for page in [*PAGES, ROOT / "mkdocs.yml", *Path(DOCS / "_hooks").glob("*.py")]:
        assert not re.search(r"/root/|/home/\w", page.read_text()), name(page)
