"""Models to and from the Hugging Face hub; the hub's library is imported only when it is used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_insert.artifacts.resolve import CONFIG, INDEX, is_model_folder
from lit_insert.errors import InputError

# A pipeline needs its configs and safetensors; code and pickles stay where they are.
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.md")
_UNSAFE = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".py")


@dataclass(frozen=True)
class Push:
    """What is, or would be, uploaded.

    Attributes:
        repo_id: Target on the hub.
        private: Whether a new repository is made private.
        files: Relative path to size in bytes.
        url: Address of the commit; ``None`` in a dry run.
    """

    repo_id: str
    private: bool
    files: dict[str, int]
    url: str | None


def pull_model(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    also: Sequence[str] = (),
) -> Path:
    """Download a model folder into the hub's cache, or find it there; returns the folder.

    Configs, texts and safetensors come; ``also`` names patterns of further files, such as the ``.bin`` weights of a
    model that was published in no other form.

    Raises:
        InputError: If there is no such model, it is private, or the hub cannot be reached and the cache has
            no copy.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            allow_patterns=[*_WANTED, *also],
        )
    except errors.GatedRepoError as error:
        raise InputError(f"model {repo_id!r}: access must be requested on its hub page, then log in") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"model {repo_id!r}: the hub has no revision {revision!r} of it") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"model {repo_id!r}: no such folder here, nor a public model on the hub (log in if it is private)"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError) as error:
        raise InputError(
            f"model {repo_id!r}: no such folder here, no copy in the hub cache, and the hub cannot be reached"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"model {repo_id!r}: the hub said: {reason}") from error
    return Path(folder)


def push_model(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    message: str = "Upload model",
    token: str | None = None,
    dry_run: bool = False,
) -> Push:
    """Upload an exported folder.

    Args:
        folder: The exported folder, card included.
        repo_id: ``owner/model``; made if it does not exist.
        private: Make a new repository private.
        message: Commit message.
        token: Hub token; by default the one that is logged in.
        dry_run: Check everything, say what would be uploaded, and connect to nothing.

    Raises:
        InputError: If the folder is no complete exported folder or holds code or pickles, or the hub refuses.
    """
    return _push(folder, repo_id, "model", _check_model, private, message, token, dry_run)


def push_dataset(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    message: str = "Upload dataset",
    token: str | None = None,
    dry_run: bool = False,
) -> Push:
    """Upload a dataset folder; arguments and errors as of `push_model`."""
    return _push(folder, repo_id, "dataset", _check_any, private, message, token, dry_run)


def _check_any(folder: Path, files: dict[str, int]) -> None:
    if not files:
        raise InputError(f"{folder}: nothing to upload")
    unsafe = [name for name in files if name.endswith(_UNSAFE)]
    if unsafe:
        raise InputError(f"{folder / unsafe[0]}: code and pickles are not uploaded; remove it or save safetensors")


def _check_model(folder: Path, files: dict[str, int]) -> None:
    if not is_model_folder(folder):
        raise InputError(f"{folder}: no {INDEX}, nor {CONFIG} with *.safetensors, in it; give an exported folder")
    _check_any(folder, files)
    from lit_insert.artifacts.weights import check_safetensors

    for name in files:
        if name.endswith(".safetensors"):
            check_safetensors(folder / name)
    if "README.md" not in files:
        raise InputError(f"{folder}: no README.md in it; write a model card first")


def _push(
    folder: str | Path,
    repo_id: str,
    kind: str,
    check: Callable[[Path, dict[str, int]], None],
    private: bool,
    message: str,
    token: str | None,
    dry_run: bool,
) -> Push:
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise InputError(f"hub id {repo_id!r}: give owner/name")
    files = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    check(folder, files)
    if dry_run:
        return Push(repo_id, private, files, None)

    import huggingface_hub
    from huggingface_hub import errors

    api: Any = huggingface_hub.HfApi(token=token)
    try:
        api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type=kind,
            folder_path=folder,
            commit_message=message,
            allow_patterns=list(files),
        )
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, errors.HFValidationError, OSError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"cannot upload to {repo_id}: {reason.strip()}") from error
    return Push(repo_id, private, files, str(commit.commit_url))
