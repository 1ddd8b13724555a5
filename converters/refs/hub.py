"""`--weights hf:ORG/NAME[@REVISION][/FILE]`: a checkpoint of the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from converters.errors import ConvertError
from converters.refs.base import told
from converters.refs.grammar import HUB
from runtime.errors import missing_extra

GRAMMAR = re.compile(
    HUB + r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<file>.+))?"
)
# What a repository calls its weights, the best first.
NAMES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth")
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
CONFIG = "config.json"
LISTED = 8
TIMEOUT_S = 10.0
SERVER_FAULT = 500


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this disk, and what its config.json says.

    name is the reference that finds it again: hf:ORG/NAME@COMMIT/FILE.
    """

    path: Path
    name: str
    config: str = ""


def fetch(ref: str) -> Checkpoint:
    """Download a checkpoint, or find it in the hub's cache (HF_HUB_CACHE) without a network.

    Without FILE it is model.safetensors, else pytorch_model.bin or .pth. Raises MissingExtra,
    ConvertError naming what to do.
    """
    match = GRAMMAR.fullmatch(ref)
    if match is None:
        raise ConvertError(
            f"'{ref}': expected hf:ORG/NAME, hf:ORG/NAME/FILE or hf:ORG/NAME@REVISION/FILE, as in "
            "hf:timm/shvit_s1.in1k"
        )
    file = match["file"]
    if file is not None and not file.endswith(SUFFIXES):
        raise ConvertError(f"'{ref}': expected a checkpoint that ends in {', '.join(SUFFIXES)}")
    names = (file,) if file is not None else NAMES
    try:
        with _explained(match["repo"], match["revision"]):
            repository = _open(match["repo"], match["revision"])
            found = ((name, repository.get(name)) for name in names)
            name, path = next(((n, p) for n, p in found if p is not None), ("", None))
            if path is None:
                raise repository.without(names)
            config = repository.get(CONFIG)
    except ImportError as error:
        raise missing_extra(f"'{ref}'", "huggingface-hub", "convert") from error
    commit = path.parents[len(Path(name).parts) - 1].name  # .../snapshots/COMMIT/name
    origin = f"{HUB}{match['repo']}"
    said = _said(config) if config is not None else ""
    return Checkpoint(
        path,
        f"{origin}@{commit}/{name}",
        f"{CONFIG} of {origin} says: {said}" if said else "",
    )


@dataclass(frozen=True)
class _Repository:
    """A repository: its files, or None where only the cache can be asked and why."""

    name: str
    revision: str | None
    files: list[str] | None
    reason: str = ""

    def get(self, file: str) -> Path | None:
        """A file on this disk, downloaded where there is a network; None where there is none."""
        import huggingface_hub

        if self.files is None:
            cached = huggingface_hub.try_to_load_from_cache(self.name, file, revision=self.revision)
            return Path(cached) if isinstance(cached, str) else None
        if file not in self.files:
            return None
        return Path(huggingface_hub.hf_hub_download(self.name, file, revision=self.revision))

    def without(self, names: tuple[str, ...]) -> ConvertError:
        """The error where none of these files is there."""
        from huggingface_hub import constants

        wanted = " or ".join(names)
        if self.files is None:
            revision = f" --revision {self.revision}" if self.revision else ""
            return ConvertError(
                f"{HUB}{self.name}: {self.reason}, and the cache {constants.HF_HUB_CACHE} holds "
                f"no {wanted} of it. Where there is a network, download it (`hf download "
                f"{self.name}{revision}`) and give the file to --weights, or copy the cache here"
            )
        others = [f for f in self.files if f.endswith(SUFFIXES)]
        hint = (
            f"it has: {', '.join(others[:LISTED])}. Add one: {HUB}{self.name}/{others[0]}"
            if others
            else "it has no other checkpoint"
        )
        return ConvertError(f"{HUB}{self.name} has no {wanted}; {hint}")


def _open(repo: str, revision: str | None) -> _Repository:
    """Ask the hub what a repository holds."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        listed = HfApi().model_info(repo, revision=revision, timeout=TIMEOUT_S).siblings
    except (HfHubHTTPError, HFValidationError) as error:
        status = getattr(getattr(error, "response", None), "status_code", 400)
        if status < SERVER_FAULT:  # an answer, and it is no
            raise
        return _Repository(repo, revision, None, f"the hub answers with status {status}")
    except Exception as error:  # no network: what httpx raises depends on how
        offline = constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set" if offline else f"no answer from the hub ({told(error)})"
        return _Repository(repo, revision, None, reason)
    return _Repository(repo, revision, [entry.rfilename for entry in listed or []])


@contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """The hub's refusals, and downloads cut short, as a ConvertError each."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{repo}"
    try:
        yield
    except ConvertError:
        raise
    except GatedRepoError as error:
        raise ConvertError(
            f"{HUB}{repo} is gated: accept its terms at {page} and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ConvertError(
            f"there is no repository {page}, or it is private: mend the name, or log in with "
            "`hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ConvertError(
            f"{HUB}{repo} has no revision '{revision}': name a branch, a tag or a commit"
        ) from error
    except HFValidationError as error:
        raise ConvertError(f"'{repo}' is no name of a repository: {error}") from error
    except Exception as error:  # connections cut, disks full, answers that are no answers
        raise ConvertError(f"downloading from {page} failed: {told(error)}") from error


def _said(config: Path) -> str:
    """What a config.json says about the model, in words; empty where it says nothing."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the file only helps a message
        return ""
    if not isinstance(content, dict):
        return ""
    labels = content.get("id2label")
    classes = content.get("num_classes") or (len(labels) if isinstance(labels, dict) else None)
    said = [str(content["architecture"])] if content.get("architecture") else []
    said += [f"{classes} classes"] if isinstance(classes, int) else []
    return ", ".join(said)
