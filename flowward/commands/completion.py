"""flowward --print-completion: a script that completes commands, options and values in a shell.

It is made of the tables behind the help pages, so pressing Tab starts no Python. Why tyro does not do it:
docs/notes/startup.md.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO

from ..agent.templates import NAMES
from ..algorithms import CLASSES
from ..system import tables
from ..system.errors import unknown
from . import AGENT, COMMANDS, every, module
from .help import Option, Shown
from .list import LISTS

VALUE = re.compile(r"[a-z][a-z0-9-]*")  # an alternative of a metavar that is typed as it stands
TOOLS = ("world", "calculator", "python")  # of agents; others have an address or a folder after their name
ANYTHING = ("-h", "--help", "--help-all", "--debug")


def printed(shell: str) -> str:
    """The script for a shell.

    Raises:
        ValueError: there is none for this shell.
    """
    if shell not in SHELLS:
        raise ValueError(unknown("shell", shell, SHELLS))
    return SHELLS[shell]({command: options(command) for command in every()})


def options(command: str) -> list[Option]:
    """The options of a command, as its whole help page shows them."""
    with redirect_stdout(StringIO()):
        try:
            module(command).run(["--help-all"])
        except Shown as shown:
            return shown.options
    raise AssertionError(f"{command} --help-all shows no page")


def flags(option: Option) -> list[str]:
    """`--name`, and `--no-name` of a switch."""
    if option.positional:
        return []
    path, dot, last = option.name.rpartition(".")
    return [f"--{option.name}", *([f"--{path}{dot}no-{last}"] if option.switch is not None else [])]


def values(command: str, option: Option) -> list[str]:
    """The words that an option of a command takes, if they are known; none if a file may be meant."""
    if re.search(r"\b(FILE|PATH|RUN|LORA)\b", option.metavar):
        return []
    names = _of_agents() if command.startswith("agent ") else _of_images()
    known = names[option.name]() if option.name in names else []
    return [*known, *(each for each in option.metavar.removesuffix(" ...").split("|") if VALUE.fullmatch(each))]


def _of_images() -> Mapping[str, Callable[[], list[str]]]:
    return {
        "algorithm": lambda: list(CLASSES),
        **dict.fromkeys(("reward", "rewards", "evaluation.rewards", "guard"), lambda: _named("rewards")),
    }


def _of_agents() -> Mapping[str, Callable[[], list[str]]]:
    from ..agent import config, rewards

    return {"preset": lambda: list(config.PRESETS), "reward": lambda: list(rewards.REWARDS), "tools": lambda: [*TOOLS]}


def _named(wing: str) -> list[str]:
    return list(tables.load(tables.PACKAGE / wing / "table.yaml"))


def words(command: str) -> list[str]:
    """What may stand first after a command."""
    return {
        "algorithms": list(CLASSES),
        "list": list(LISTS),
        "pretrain": ["scenes", "scenes-4step", "scenes-64"],
        "agent prompts": list(NAMES),
    }.get(command, [])


Tables = Mapping[str, Sequence[Option]]


def _cases(found: Tables, line: Callable[[str, Sequence[str]], str]) -> list[str]:
    """A line for each option whose values are known."""
    return [
        line(f"{command}:--{option.name}", known)
        for command, own in found.items()
        for option in own
        if not option.positional and (known := values(command, option))
    ]


def _flags(own: Sequence[Option]) -> list[tuple[str, str]]:
    """(flag, what it does) of a command; those of every command come last."""
    return [*((flag, option.text) for option in own for flag in flags(option)), *((flag, "") for flag in ANYTHING)]


def _bash(found: Tables) -> str:
    values_of = _cases(found, lambda case, own: f'        "{case}") words="{" ".join(own)}" ;;')
    known = {name: " ".join(flag for flag, _ in _flags(own)) for name, own in found.items()}
    flags_of = [f'        "{name}") flags="{own}" ;;' for name, own in known.items()]
    first = [f'        "{name}") words="{" ".join(own)}" ;;' for name in found if (own := words(name))]
    return "\n".join(
        [
            "# flowward in bash; written by: flowward --print-completion bash",
            "_flowward() {",
            '    local current="${COMP_WORDS[COMP_CWORD]}" command="${COMP_WORDS[1]}" flags="" words="" first=2',
            "    COMPREPLY=()",
            '    if [ "$COMP_CWORD" -eq 1 ]; then',
            f'        COMPREPLY=($(compgen -W "{" ".join(COMMANDS)} --help --version" -- "$current"))',
            "        return",
            "    fi",
            '    if [ "$command" = agent ]; then',
            '        if [ "$COMP_CWORD" -eq 2 ]; then',
            f'            COMPREPLY=($(compgen -W "{" ".join(AGENT)} --help" -- "$current"))',
            "            return",
            "        fi",
            '        command="agent ${COMP_WORDS[2]}" first=3',
            "    fi",
            '    case "$command:${COMP_WORDS[COMP_CWORD-1]}" in',
            *values_of,
            "    esac",
            '    if [ "$COMP_CWORD" -eq "$first" ]; then case "$command" in',
            *first,
            "    esac; fi",
            '    case "$command" in',
            *flags_of,
            "    esac",
            '    [[ "$current" == -* ]] && words="$flags"',
            '    COMPREPLY=($(compgen -W "$words" -- "$current"))',
            "}",
            "complete -o bashdefault -o default -F _flowward flowward",
            "",
        ]
    )


def _zsh(found: Tables) -> str:
    def told(name: str, text: str) -> str:
        return shlex.quote(f"{name}:{text}" if text else name)

    def described(table: Mapping[str, str]) -> str:
        return f"own=({' '.join(told(*each) for each in table.items())})"

    known = {name: " ".join(told(*flag) for flag in _flags(own)) for name, own in found.items()}
    flags_of = [f'        "{name}") own=({own}) ;;' for name, own in known.items()]
    first = [f'            "{name}") compadd -- {" ".join(own)} ;;' for name in found if (own := words(name))]
    return "\n".join(
        [
            "#compdef flowward",
            "# flowward in zsh; written by: flowward --print-completion zsh",
            "_flowward() {",
            "    local -a own",
            '    local command="${words[2]}" first=3',
            "    if (( CURRENT == 2 )); then",
            f"        {described(COMMANDS)}",
            "        _describe command own",
            "        return",
            "    fi",
            '    if [[ "$command" == agent ]]; then',
            "        if (( CURRENT == 3 )); then",
            f"            {described(AGENT)}",
            "            _describe command own",
            "            return",
            "        fi",
            '        command="agent ${words[3]}" first=4',
            "    fi",
            '    case "$command" in',
            *flags_of,
            "    esac",
            '    if [[ "${words[CURRENT]}" == -* ]]; then',
            "        _describe -o option own",
            "        return",
            "    fi",
            '    case "$command:${words[CURRENT-1]}" in',
            *_cases(found, lambda case, own: f'        "{case}") compadd -- {" ".join(own)}; return ;;'),
            "    esac",
            '    if (( CURRENT == first )); then case "$command" in',
            *first,
            "    esac; fi",
            "    _files",
            "}",
            'if [ "$funcstack[1]" = "_flowward" ]; then _flowward "$@"; else compdef _flowward flowward; fi',
            "",
        ]
    )


def _fish(found: Tables) -> str:
    lines = ["# flowward in fish; written by: flowward --print-completion fish"]
    seen, none = "__fish_seen_subcommand_from", f"not __fish_seen_subcommand_from {' '.join(AGENT)}"
    for name, what in COMMANDS.items():
        lines.append(f"complete -c flowward -n __fish_use_subcommand -f -a {name} -d {_quoted(what)}")
    for name, what in AGENT.items():
        lines.append(f"complete -c flowward -n '{seen} agent; and {none}' -f -a {name} -d {_quoted(what)}")
    for name, own in found.items():
        group, _, last = name.rpartition(" ")
        when = f"{seen} agent; and {seen} {last}" if group else f"{seen} {name}; and not {seen} agent"
        start = f"complete -c flowward -n '{when}'"
        if first := words(name):
            lines.append(f"{start} -a {_quoted(' '.join(first))}")
        for option in own:
            known = f" -a {_quoted(' '.join(own_values))}" if (own_values := values(name, option)) else ""
            takes = "" if option.switch is not None else " -x" if known else " -r"  # -x: no files
            lines += [f"{start} -l {flag[2:]}{takes}{known} -d {_quoted(option.text)}" for flag in flags(option)]
        lines.append(f"{start} -s h -l help")
        lines.append(f"{start} -l help-all")
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: Mapping[str, Callable[[Tables], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
