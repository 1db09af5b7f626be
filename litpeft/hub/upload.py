"""Upload a folder to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from litpeft.errors import UserError, first_sentence
from litpeft.hub.hub import hub_answers

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def check_repository(name: str) -> None:
    """Check the form of a repository's name.

    Raises:
        UserError: it is not USER/NAME.
    """
    if not REPOSITORY.fullmatch(name):
        raise UserError(f"--push {name}: give USER/NAME, a repository on the hub.")


def upload(folder: Path, repository: str, public: bool, without: str) -> str:
    """Upload a folder, with the token in HF_TOKEN or of `hf auth login`, and return the address of the repository.

    Args:
        folder: the folder.
        repository: USER/NAME; it is made if it does not exist.
        public: make a new repository public, not private.
        without: name of a file that stays here.

    Raises:
        UserError: there is no token, or the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    command = f"the export is whole; upload it with `hf upload {repository} {folder} . --exclude {without}`"
    if get_token() is None:
        raise UserError(f"--push {repository}: there is no token; run `hf auth login` or set HF_TOKEN. {command}.")
    if not hub_answers():
        raise UserError(f"--push {repository}: the hub cannot be reached. {command}.")
    api = HfApi()
    try:
        address = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, ignore_patterns=without)
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"--push {repository}: {first_sentence(error)}. {command}.") from error
    return str(address)
