"""A finished export, uploaded to the Hugging Face hub through its own library, which finds the login by itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] (of httpx or, later, httpx2)
)
from huggingface_hub.utils import validate_repo_id

from rapo_jax.errors import UserError, first_line, masked


def require_login(repo: str) -> None:
    """Raises UserError for a name that the hub refuses, and where nobody is logged in; nothing is sent."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"--push-to-hub={repo} is not the name of a repository, such as me/my-model: {error}."
        ) from error
    if get_token() is None:
        raise UserError("--push-to-hub needs a login: run `hf auth login`, or set HF_TOKEN. Nothing was exported.")


def push(directory: Path, repo: str, *, private: bool) -> str:
    """Uploads a directory as one commit into a repository, which is created if it is absent; returns its address.

    Raises UserError where the hub cannot be reached or refuses, and for a public repository that was asked to be private;
    the directory stays as it is.
    """
    api = HfApi()
    with refusals_said(directory, repo):
        created = api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.repo_info(created.repo_id).private:
            raise UserError(
                f"{directory} is complete, but was not uploaded: {repo} exists and is public; make it private, or "
                "leave out --private."
            )
        api.upload_folder(repo_id=created.repo_id, folder_path=directory, commit_message="Exported by rapo_jax")
    return masked(str(created))


@contextmanager
def refusals_said(directory: Path, repo: str) -> Iterator[None]:
    """Turns what the hub's library raises while the block runs into UserError."""
    try:
        yield
    except HfHubHTTPError as error:
        said = error.server_message or first_line(error)
        raise not_uploaded(directory, repo, f"the hub answered {error.response.status_code}: {said}") from error
    except UserError:
        raise
    except (HTTPError, OSError) as error:  # no network, HF_HUB_OFFLINE
        raise not_uploaded(directory, repo, f"the hub cannot be reached ({first_line(error)})") from error
    except (RuntimeError, ValueError) as error:  # what the library makes of a large file that it could not upload
        raise not_uploaded(directory, repo, first_line(error)) from error


def not_uploaded(directory: Path, repo: str, fact: str) -> UserError:
    return UserError(
        f"{directory} is complete, but was not uploaded to {repo}: {fact.rstrip('.')}. To try again: hf upload {repo} "
        f"{directory}"
    )
