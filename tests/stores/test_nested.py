"""Every operation that makes a store refuses to make it inside another one, or around a store that it reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import zarr

import vczstore
from tests.support import cohort, s3
from tests.support.refusals import complain
from tests.support.ways import WRITTEN, Way
from vczstore.errors import OptionError, StorageError, UnsuitableError
from vczstore.stores.resolve import refuse_nested

ARRAYS = cohort.some_arrays(4, cohort.ids(0, 3))
MAKERS: dict[str, Callable[[object, str], object]] = {
    "init": lambda read, new: vczstore.init(new, read),
    "append": lambda read, new: vczstore.append(read, read, output=new, harmonise=True, new_variants="insert"),
    "compact": vczstore.compact,
    "copy_store_to_icechunk": lambda read, new: vczstore.copy_store_to_icechunk(read, new, overwrite=True),
    "create": lambda read, new: vczstore.create(new, read),
    "export": vczstore.export,
    "export to VCF": lambda read, new: vczstore.export(read, f"{new}.vcf"),
    "normalise": lambda read, new: vczstore.normalise(read, read, new),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_refused(maker: str, tmp_path: Path) -> None:
    make, kinds = MAKERS[maker], WRITTEN if maker == "compact" else WRITTEN[1:]
    places = {}
    for kind in kinds:
        (tmp_path / kind).mkdir()
        places[kind] = Way(kind, "cubed").make(tmp_path / kind, ARRAYS)
    (tmp_path / "link").symlink_to(tmp_path / "format3")
    before = cohort.digest(tmp_path)
    read = places["format3"]
    targets = [tmp_path / "link" / "store.vcz" / "a" / "new", *(place / "new" for place in places.values())]
    for new in targets:
        complain(UnsuitableError, (" would lie in ",), lambda new=new: make(read, str(new)))
    if maker != "export to VCF":
        words = (f"{read}, which is read, lies in",)
        complain(UnsuitableError, words, lambda: make(read, str(tmp_path / "link")))
    assert cohort.digest(tmp_path) == before


@pytest.mark.slow
def test_not_refused(tmp_path: Path) -> None:
    """A path next to a store, in a group that is no store, or in a folder that resembles a repository."""
    store = Way("format3", "cubed").make(tmp_path, ARRAYS)
    zarr.create_group(tmp_path / "group")
    (tmp_path / "group" / "snapshots").mkdir()
    (tmp_path / "group" / "repo").write_text("a list of ours")
    vczstore.export(store, tmp_path / "group" / "new")
    vczstore.export(zarr.storage.LocalStore(store), f"{store}2")
    with pytest.raises(UnsuitableError, match=r"would lie in (<LocalStore|file)"):
        vczstore.export(zarr.storage.LocalStore(store), store / "new")


@contextmanager
def gateway(statuses: Mapping[str, int]) -> Iterator[dict[str, object]]:
    """An S3 server that answers GETs below each prefix with its status, and others with 404."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            matching = [status for prefix, status in statuses.items() if self.path.startswith(prefix)]
            self.send_response(matching[0] if matching else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Do not log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {"endpoint": f"http://127.0.0.1:{server.server_port}", "region": "us-east-1", "anonymous": True}
    finally:
        server.shutdown()
        server.server_close()


def test_folders_that_cannot_be_read() -> None:
    """An error if the parent folder cannot be read; folders above it are skipped, since rights often end there."""
    with gateway({"/bucket/team/": 404, "/bucket/": 400}) as options:
        refuse_nested("export", "s3://bucket/team/store", options=options)
        words = "export: s3://bucket/other/store cannot be made, since s3://bucket/other, .* cannot be read"
        complain(StorageError, [words], lambda: refuse_nested("export", "s3://bucket/other/store", options=options))


@pytest.mark.slow
def test_in_an_object_store(s3_server: s3.S3Server, tmp_path: Path) -> None:
    url = s3_server.url("nested")
    store = Way("format3", "cubed").make(tmp_path, ARRAYS)
    reach = {"storage_options": s3_server.options}
    vczstore.init(f"{url}/of/plain.vcz", store, **reach)
    vczstore.copy_store_to_icechunk(store, f"{url}/of/repository", **reach)
    for name in ("plain.vcz", "repository"):
        place = f"{url}/of/{name}"
        refuse_nested("export", f"{place}2", [store, place], options=s3_server.options)
        for read in (store, place):
            words = (f"{place}/deep/new would lie in.*{place}",)
            complain(UnsuitableError, words, lambda p=place, r=read: vczstore.init(f"{p}/deep/new", r, **reach))
    words = ("plain.vcz, which is read, lies in",)
    complain(UnsuitableError, words, lambda: vczstore.init(f"{url}/of", f"{url}/of/plain.vcz", **reach))
    with pytest.raises(OptionError):
        refuse_nested("export", "", [store])
