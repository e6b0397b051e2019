"""The hub, through huggingface_hub: a repository made, written in one go, and read back."""

import glob
import hashlib
import os
from pathlib import Path
from typing import Any

from lorafit.errors import MachineError, UserError, VerificationError
from lorafit.publish.plan import Plan

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


class Hub:
    """A model repository of the hub, which need not exist yet. Looked at when this is made.

    visibility: in words, of the repository as it is or would be made. UserError when there is no
    valid token, the name is none, or an existing repository is public and --public was not said.
    """

    def __init__(self, repo: str, *, public: bool, is_reachable: bool) -> None:
        from huggingface_hub import HfApi, get_token

        self._repo, self._public = repo, public
        self._api: Any = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        self.endpoint = str(self._api.endpoint)
        _refuse_bad_name(repo)
        if not is_reachable:
            raise MachineError(
                f"{self.endpoint}: cannot be reached\n    nothing was uploaded; look at the "
                "network and at HF_HUB_OFFLINE, or write a directory: --to-dir DIR")
        if get_token() is None:
            raise UserError("there is no token for the hub", self.endpoint, _LOG_IN)
        self._asked("whoami", self._api.whoami)
        info = self._existing()
        if info is not None and not info.private and not public:
            raise UserError("the repository exists and is public", repo,
                            "say --public if that is meant, or choose another name")
        self.exists = info is not None
        self.visibility = "private" if not public else "public"
        if info is not None:
            self.visibility = f"exists, {'private' if info.private else 'public'}"

    def upload(self, plan: Plan, message: str) -> str:
        """Make the repository if need be, write the plan's files, and check what the hub has.

        Files that the hub has already are not sent again, so an upload that was cut off goes on
        when it is started anew. Returns the address. VerificationError when the hub's files are
        others.
        """
        if not self.exists:
            self._asked("make the repository", self._api.create_repo, self._repo,
                        private=not self._public, exist_ok=True)
        self._asked("upload", self._api.upload_folder, repo_id=self._repo,
                    folder_path=str(plan.artifact), commit_message=message,
                    allow_patterns=[glob.escape(file.name) for file in plan.files])
        self._check(plan)
        return f"{self.endpoint}/{self._repo}"

    def _check(self, plan: Plan) -> None:
        names = [file.name for file in plan.files]
        found = {each.path: each for each in self._asked(
            "read back", self._api.get_paths_info, self._repo, names)}
        wrong = []
        for file in plan.files:
            there = found.get(file.name)
            if there is None:
                wrong.append(f"{file.name} is missing")
            elif there.lfs is not None:
                if file.sha256 is not None and there.lfs.sha256 != file.sha256:
                    wrong.append(f"{file.name} has another SHA-256")
            elif there.blob_id != _git_blob(plan.artifact / file.name):
                wrong.append(f"{file.name} is another")
        if wrong:
            raise VerificationError(f"{self._repo}: the hub has not what was uploaded: "
                                    f"{'; '.join(wrong)}\n    push it again")

    def _existing(self) -> Any:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            return self._api.repo_info(self._repo)
        except RepositoryNotFoundError:
            return None
        except Exception as error:
            raise self._explained("look at the repository", error) from None

    def _asked(self, what: str, call: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        except Exception as error:
            raise self._explained(what, error) from None

    def _explained(self, what: str, error: Exception) -> Exception:
        """One clear message for whatever the hub or the way there did."""
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        said = (getattr(error, "server_message", None)
                or (str(error).strip() or type(error).__name__).splitlines()[0])
        if status == 401:
            return UserError("the hub does not accept the token", self.endpoint, _LOG_IN)
        if status == 403:
            return UserError(f"the token may not do that ({what}: {said})", self._repo,
                             "use a token that may write there, or a repository of your own")
        if status is not None:
            return MachineError(f"{self.endpoint}: the hub refused to {what} ({status}): {said}\n"
                                "    try again later; what is there already is not sent again")
        if isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "httpcore")):
            return MachineError(f"{self.endpoint}: the connection failed ({what}: {said})\n"
                                "    try again; what is there already is not sent again")
        return error


def _refuse_bad_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"is no name of a repository: {str(error).splitlines()[0]}", repo,
                        "name it as OWNER/NAME") from None
    if "/" not in repo:
        raise UserError("names no owner", repo, f"for example YOUR-NAME/{repo}")


def _git_blob(file: Path) -> str:
    """The id that git gives a file's content."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
