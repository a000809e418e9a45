"""Detection of credentials, which no file, option or URL may hold: these are pickled, logged and shown."""

import re

NO_CREDENTIALS = (
    "credentials do not belong here; give them in environment variables or by the instance's role, "
    "which the backends read themselves"
)
_WORDS = re.compile(
    "secret|password|passwd|passphrase|pwd|token|credential|authorization|connectionstring"
    "|(?:access|account|shared|private|api|storage|encryption|signing)key"
)
_VALUES = re.compile(
    r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}"  # access key IDs of AWS
    r"|://[^/?#\s:@]*:[^/?#\s@]*@"  # a URL's user and password
    r"|-----BEGIN"
    r"|(?i:(?:^|[?&;\s])(?:sig|x-amz-signature|x-goog-signature)=)"
)


def is_credential_name(name: str) -> bool:
    """Whether an option of this name holds a credential, regardless of its value."""
    words = re.findall("[a-z0-9]+", re.sub("([a-z0-9])([A-Z])", r"\1 \2", name).lower())
    return "sas" in words or _WORDS.search("".join(words)) is not None


def is_credential(text: str) -> bool:
    """Whether a text looks like a credential, or contains one."""
    if _VALUES.search(text):
        return True
    return any(is_credential_name(name) for name in re.findall(r"[?&;]([\w.-]+)=", text))
