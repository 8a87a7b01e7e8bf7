"""A folder here, the name of a model that is installed with the package, or an id on the Hugging Face hub."""

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

from rhea.errors import InputError

INSTALLED = Path(__file__).parents[1] / "assets"
"""Holds a checkpoint folder for each model of the package: "default", and "rich" with emoji and driving."""
_FILES = ["*.json", "*.safetensors", "*.tiktoken", "README.md", "LICENSE*", "NOTICE*"]
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(path_or_id: str | Path) -> Path:
    """Return the checkpoint's folder: one here goes before an installed model's name.

    An "owner/name" that is no folder here is fetched from the hub (no pickles).
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{folder} is a file; a checkpoint is a folder")
    name = str(path_or_id)
    installed = sorted(each.name for each in INSTALLED.glob("*") if each.is_dir())
    if name in installed:
        return INSTALLED / name
    if not _ID.fullmatch(name):
        raise InputError(f"no such folder: {name}; installed with Rhea: {', '.join(installed) or 'no model'}")
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_FILES))
    except GatedRepoError:
        reason = "it asks you to accept its terms: do so on its page, then log in with `hf auth login`"
    except (RepositoryNotFoundError, HFValidationError):
        reason = "there is no such model there, or it is private"
    except (OSError, ValueError, RuntimeError) as error:  # offline, and whatever the client's transport raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    raise InputError(f"no folder {name} here, and it could not be fetched from the Hugging Face hub: {reason}")
