"""The inventory: Ansible's INI language to frozen hosts. What is expected was compared with ansible-core 2.19."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acoupi_fleet.errors import FleetError, InventoryError, UsageError
from acoupi_fleet.inventory import Host, Inventory, load_inventory
from acoupi_fleet.inventory.hostnames import NameProblemError, expand
from acoupi_fleet.inventory.ini import parse, parse_value
from acoupi_fleet.inventory.merge import merge
from acoupi_fleet.inventory.patterns import select

EXAMPLE = Path(__file__).parents[1] / "inventory" / "sensors.ini"


def read(folder: Path, text: str | bytes) -> Inventory:
    path = folder / "sensors.ini"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_inventory(path)


def hosts_of(text: str) -> dict[str, Host]:
    hosts, _ = merge(parse(text, Path("sensors.ini")))
    return {host.name: host for host in hosts}


def values(host: Host) -> dict[str, Any]:
    return {key: variable.value for key, variable in host.variables.items()}


# --- lines and names


def test_the_example_in_the_repository_is_read() -> None:
    inventory = load_inventory(EXAMPLE)
    assert [host.name for host in inventory.limit("woodland")] == ["oak1", "oak2", "hazel1"]
    assert inventory.groups["reserve"] == inventory.groups["all"]
    hazel = inventory.limit("hazel1")[0]
    assert (hazel.connection.address, hazel.connection.port, hazel.connection.user) == (
        "hazel1.example.org",
        2222,
        "pi",
    )


def test_hosts_keep_the_order_of_their_lines_and_repeated_sections_merge() -> None:
    text = "b\n[g]\na x=1\n[h]\nc\n[g]\nd\na x=2 y=3\n"
    hosts = hosts_of(text)
    assert list(hosts) == ["b", "a", "c", "d"]
    assert values(hosts["a"]) == {"x": 2, "y": 3}
    assert [hosts[name].groups for name in "bacd"] == [("ungrouped",), ("g",), ("h",), ("g",)]


@pytest.mark.parametrize(
    ("word", "names", "port"),
    [
        ("lab1", ["lab1"], None),
        ("lab1:2222", ["lab1"], 2222),
        ("sensor[01:03]", ["sensor01", "sensor02", "sensor03"], None),
        ("sensor[8:10]", ["sensor8", "sensor9", "sensor10"], None),
        ("s[0:9:4]", ["s0", "s4", "s8"], None),
        ("s[:1]", ["s0", "s1"], None),
        ("[a:c]", ["a", "b", "c"], None),
        ("x[a:b][1:2].local:22", ["xa1.local", "xa2.local", "xb1.local", "xb2.local"], 22),
        ("fe80::1", ["fe80::1"], None),
        ("[fe80::1]:2222", ["fe80::1"], 2222),
        ("fe80::[1:2]", ["fe80::1", "fe80::2"], None),
        pytest.param("a" * 253, ["a" * 253], None, id="longest"),
    ],
)
def test_a_word_stands_for_names(word: str, names: list[str], port: int | None) -> None:
    assert expand(word) == (names, port)


@pytest.mark.parametrize(
    "word",
    [
        "-oProxyCommand=id",
        "../etc",
        "a/b",
        "a..b",
        ".hidden",
        "user@host",
        "a b",
        "a\x1b[0m",
        "a\x00",
        "hôte",
        pytest.param("a" * 254, id="too-long"),
        "",
        "lab1:",
        "lab1:0",
        "lab1:65536",
        "lab1:ssh",
        "lab1:²",
        "s[1:",
        "s[1]",
        "s[3:1]",
        "s[1:3:0]",
        "s[1:3:-1]",
        "s[01:100]",
        "s[a:3]",
        "s[1:]",
        "s[1:2:3:4]",
        "s[1:99999999999999999999]",
        "s[1:200][1:200]",
        "s[²:3]",
    ],
)
def test_a_word_that_is_no_safe_name_is_refused(word: str) -> None:
    with pytest.raises(NameProblemError, match=";"):
        expand(word)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("10", 10),
        ("-1.5", -1.5),
        ("True", True),
        ("true", "true"),
        ("None", None),
        ("0700", "0700"),
        ("0x10", 16),
        ("19:00", "19:00"),
        ("'19:00'", "19:00"),
        ("'a' # why", "a"),
        ("a # why", "a # why"),
        ("[1, (2, 3)]", [1, [2, 3]]),
        ("1,2", [1, 2]),
        ("{'a': {'b': 1}}", {"a": {"b": 1}}),
        ("{[]: 1}", "{[]: 1}"),
        ("1j", "1j"),
        ("...", "..."),
        ("100%", "100%"),
        ("%(home)s", "%(home)s"),
        ("a=b", "a=b"),
        ("", ""),
        ("'\\d'", "\\d"),
        pytest.param("(" * 5000, "(" * 5000, id="too-deep"),
        pytest.param("9" * 5000, "9" * 5000, id="too-long"),
        ("a\x00b", "a\x00b"),
    ],
)
def test_a_value_is_a_python_literal_where_it_is_one_and_else_text(raw: str, value: object) -> None:
    found = parse_value(raw)
    assert (found, type(found)) == (value, type(value))


def test_comments_quotes_and_blanks_are_as_in_ansible() -> None:
    text = "; one\n# two\n  a x='1 2' y=it\\'s z=3#4 # rest\n[g] # members\na\n[g:vars]\n k = v # not a comment\n"
    assert values(hosts_of(text)["a"]) == {"x": "1 2", "y": "it's", "z": 3, "k": "v # not a comment"}


@given(st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=40))
def test_any_quoted_text_comes_back_as_it_was(text: str) -> None:
    assert hosts_of(f"a x={shlex.quote(text)}")["a"].variables["x"].raw == text


def test_a_windows_file_with_a_byte_order_mark_is_the_same_inventory(tmp_path: Path) -> None:
    text = "[wood]\nlab1 host=10.0.0.1\n[wood:vars]\nprogram = default\n"
    windows = b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()
    plain, marked = read(tmp_path, text), read(tmp_path, windows)
    assert plain == marked
    assert str(marked.hosts[0].variables["program.class"].origin) == "sensors.ini:4"


# --- who wins


def test_all_loses_to_parents_parents_to_children_children_to_the_host() -> None:
    text = """
        [all:vars]
        a=all
        b=all
        c=all
        d=all
        [top:children]
        near
        [top:vars]
        b=top
        c=top
        d=top
        [near]
        lab1 d=host
        [near:vars]
        c=near
        d=near
    """
    host = hosts_of(text)["lab1"]
    assert values(host) == {"a": "all", "b": "top", "c": "near", "d": "host"}
    assert host.groups == ("top", "near")


@pytest.mark.parametrize(("priority", "winner"), [("", "b"), ("ansible_group_priority=2", "a")])
def test_at_one_depth_the_later_name_wins_unless_a_priority_says_otherwise(priority: str, winner: str) -> None:
    hosts = hosts_of(f"[b]\nlab1\n[a]\nlab1\n[a:vars]\nx=a\n{priority}\n[b:vars]\nx=b\n")
    assert values(hosts["lab1"]) == {"x": winner}


def test_depth_is_the_longest_way_from_all() -> None:
    # `deep` is a child of `all` through `mid`, so that it wins over `zz`, whose name would win at the same depth.
    hosts = hosts_of("[deep]\nlab1\n[zz]\nlab1\n[mid:children]\ndeep\n[deep:vars]\nx=deep\n[zz:vars]\nx=zz\n")
    assert values(hosts["lab1"]) == {"x": "deep"}


@pytest.mark.parametrize(
    "spelled",
    [
        "program.recording.duration=5",
        "program__recording__duration=5",
        "program.recording__duration=5",
        "program.recording=\"{'duration': 5}\"",
        "program=\"{'recording': {'duration': 5}}\"",
    ],
)
def test_each_spelling_of_a_leaf_replaces_the_groups_and_leaves_its_neighbours(spelled: str) -> None:
    text = f"[g]\nlab1 {spelled}\n[g:vars]\nprogram=default\nprogram.recording={{'duration': 1, 'interval': 9}}\n"
    host = hosts_of(text)["lab1"]
    assert values(host) == {
        "program.class": "default",
        "program.recording.duration": 5,
        "program.recording.interval": 9,
    }
    assert str(host.variables["program.recording.duration"].origin) == "sensors.ini:2"
    assert str(host.variables["program.recording.interval"].origin) == "sensors.ini:5"


def test_words_that_are_short_for_a_key_are_that_key() -> None:
    host = hosts_of("lab1 program=default isolation=shared\n[all:vars]\nprogram.isolation=separate\n")["lab1"]
    assert values(host) == {"program.class": "default", "program.isolation": "shared"}


def test_a_value_in_place_of_a_section_replaces_all_of_it() -> None:
    text = "lab1 program.recording.trigger=None\n[all:vars]\nprogram.recording.trigger.level=-20\n"
    assert values(hosts_of(text)["lab1"]) == {"program.recording.trigger": None}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("program.recording.duration=3", "program__recording__duration=4"),
        ("program.recording.duration=3", "program.recording=\"{'duration': 4}\""),
        ("program=default", "program.class=energy"),
        ("isolation=shared", "program.isolation=shared"),
        ("program.recording=3", "program.recording.duration=4"),
    ],
)
def test_two_spellings_of_one_leaf_at_one_level_are_an_error(one: str, other: str) -> None:
    with pytest.raises(InventoryError, match=r"^sensors.ini:2: .* is set at sensors.ini:1 too, as .*; keep one"):
        hosts_of(f"lab1 {one}\nlab1 {other}\n")


def test_the_same_spelling_again_replaces_as_in_ansible() -> None:
    assert values(hosts_of("lab1 program.x=3\nlab1 program.x=4\n")["lab1"]) == {"program.x": 4}


# --- connections


def test_a_host_without_words_about_it_is_reached_by_its_name() -> None:
    connection = hosts_of("lab1\n")["lab1"].connection
    assert connection.address == "lab1"
    assert {connection.port, connection.user, connection.identity, connection.host_key} == {None}


@pytest.mark.parametrize(
    "line",
    [
        "lab1 host=10.0.0.5 port=2222 user=pi identity=keys/id sudo_password=geheim connect_timeout=3",
        """lab1:2222 ansible_host=10.0.0.5 ansible_user=pi ansible_ssh_private_key_file=keys/id
           lab1 ansible_become_password=geheim ansible_timeout=3""",
        """lab1 ansible_ssh_host=10.0.0.5 ansible_port=2222 port=1 ansible_user=pi user=root
           lab1 ansible_private_key_file=keys/id identity=/x ansible_become_pass=geheim connect_timeout=3.0""",
    ],
)
def test_short_names_and_ansibles_mean_the_same_and_ansibles_win(line: str, tmp_path: Path) -> None:
    connection = read(tmp_path, line).hosts[0].connection
    assert (connection.address, connection.port, connection.user) == ("10.0.0.5", 2222, "pi")
    assert connection.identity == tmp_path / "keys/id"
    assert connection.connect_timeout == 3
    assert connection.sudo_password is not None
    assert connection.sudo_password.get_secret_value() == "geheim"


def test_a_hosts_short_name_wins_over_its_groups_ansible_name() -> None:
    assert hosts_of("lab1 user=pi\n[all:vars]\nansible_user=root\n")["lab1"].connection.user == "pi"


def test_the_identity_may_be_in_the_home_of_who_runs_this(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hosts_of("lab1 identity=~/.ssh/id")["lab1"].connection.identity == tmp_path / ".ssh/id"


@pytest.mark.parametrize(
    "key", ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHm0 lab", "SHA256:" + "a" * 43, "ecdsa-sha2-nistp256 AAAA=="]
)
def test_a_host_key_is_a_key_or_its_fingerprint(key: str) -> None:
    assert hosts_of(f"lab1 host_key='{key}'")["lab1"].connection.host_key == key


def test_a_secret_is_in_no_text_that_is_made_of_an_inventory(tmp_path: Path) -> None:
    inventory = read(tmp_path, "lab1 sudo_password=geheim1 ansible_password=geheim2 program.x.token=geheim3\n")
    for shown in (inventory, inventory.hosts[0].variables, inventory.hosts[0].connection):
        assert "geheim" not in f"{shown!r} {shown}"
    assert "geheim" not in str(values(inventory.hosts[0])["sudo_password"])


def test_hosts_are_frozen(tmp_path: Path) -> None:
    host = read(tmp_path, "lab1 x=1\n").hosts[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        host.name = "lab2"  # type: ignore[misc]
    with pytest.raises(TypeError):
        host.variables["x"] = host.variables["x"]  # type: ignore[index]


# --- what is wrong is one clear line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("lab1\nlab2 user", "sensors.ini:2: a word without '='; write key=value, and quote a value that has spaces"),
        ("lab1 x='1", "sensors.ini:1: no closing quotation; quote values like key='a value'"),
        ("lab1 =1", "sensors.ini:1: '' is no key; write key=value, with a key without spaces"),
        ("[a:vars]\n\nx y=1\n[a]\nb", "sensors.ini:3: 'x y' is no key; write key=value, with a key without spaces"),
        ("[a:vars]\nx=1\n  continued\n[a]\nb", "sensors.ini:3: a word without '='; write key=value,"),
        ("[a:hots]\nb", "sensors.ini:1: [a:hots] is no kind of section; write [a], [a:vars] or [a:children]"),
        ("[a b]\nb", "sensors.ini:1: '[a b]' is no section; write [group], [group:vars] or [group:children]"),
        ("[!a]\nb", "sensors.ini:1: '!a' is no name of a group; use letters, digits and _ . -"),
        ("lab1\n[wod:vars]\nx=1\n[wood]\nlab1", "sensors.ini:2: there is no group 'wod'; did you mean 'wood'?"),
        ("lab1\n[a:children]\nx", "sensors.ini:3: there is no group 'x'; write a section [x]"),
        ("[a:children]\nb\n[b:children]\na\n[a]\nl", "groups contain each other: a > b > a; take one of them out"),
        ("[a:children]\na\n[a]\nl", "sensors.ini:2: groups contain each other: a > a; take one of them out"),
        ("[a:children]\nall\n[a]\nl", "sensors.ini:2: groups contain each other: "),
        ("[a]\nl\n[a:vars]\nansible_group_priority=x", "sensors.ini:4: ansible_group_priority: it is no whole number"),
        ("-oProxyCommand=id", "sensors.ini:1: '-oProxyCommand=id' is no host name; use letters, digits and . _ : -"),
        ("lab1\nlab[1:3", "sensors.ini:2: 'lab[1:3' is no host name; use"),
        ("lab1\nlab[3:1]", "sensors.ini:2: [3:1] is empty; the first is not behind the last"),
        ("lab1 port=ssh", "sensors.ini:1: port: it is no port; write a number from 1 to 65535"),
        ("lab1 host=-oProxyCommand=id", "sensors.ini:1: host: it is no name and no address of a host; correct it"),
        ("lab1 ansible_user=-l", "sensors.ini:1: ansible_user: it is no name of a user; correct it"),
        ("lab1 user=", "sensors.ini:1: user: it is empty; write a value, or leave the key out"),
        ("lab1 host='{{ ip }}'", "sensors.ini:1: host: '{{' is in it, and an inventory's values are never templates"),
        ("lab1\n[all:vars]\nuser='a\\nb'", "sensors.ini:3: user: a control character is in it; remove it"),
        ("lab1 connect_timeout=0", "sensors.ini:1: connect_timeout: it is no time limit; write seconds, more than 0"),
        ("lab1 connect_timeout=nan", "sensors.ini:1: connect_timeout: it is no time limit"),
        ("lab1 host_key=yes", "sensors.ini:1: host_key: it is no key; write 'ssh-ed25519 AAAA...' in quotes, or"),
        ("# nothing\n", "sensors.ini: it holds no host; write one a line, such as: lab1 host=192.168.1.20 user=pi"),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_its_cure(text: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(InventoryError) as caught:
        read(tmp_path, text)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_file_that_is_not_utf8_is_one_error_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match=r"^sensors.ini:2: it is not UTF-8; save the file as UTF-8$"):
        read(tmp_path, "lab1\nlab2 place=Höhle\n".encode("latin-1"))


@pytest.mark.parametrize(
    ("name", "problem"), [("missing.ini", "no such file"), ("", "folder"), ("s.yml", "only the INI")]
)
def test_an_inventory_that_is_not_there_is_an_error(name: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match=problem):
        load_inventory(tmp_path / name)


@pytest.mark.parametrize("file", ["group_vars/wood.yml", "group_vars/all/x.yml", "host_vars/lab1"])
def test_what_is_ours_in_a_file_of_variables_is_never_lost_without_a_word(file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text("---\nnginx:\n  program: 1\nprogram:\n  recording: {}\n")
    with pytest.raises(InventoryError, match=rf"^{file}:4: program is not read from files of variables yet; write it"):
        read(tmp_path, "[wood]\nlab1\n")
    path.write_text("---\nnginx:\n  program: 1\n")
    assert read(tmp_path, "[wood]\nlab1\n").hosts


# --- --limit

NAMES = ["lab1", "lab2", "oak1", "fe80::1", "twin"]
GROUPS = {"all": NAMES, "lab": ["lab1", "lab2"], "south": ["lab2", "oak1"], "empty": [], "twin": ["lab1"]}


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("all", NAMES),
        ("*", NAMES),
        ("lab1", ["lab1"]),
        ("lab", ["lab1", "lab2"]),
        ("oak1,lab1", ["lab1", "oak1"]),
        ("oak1:lab1", ["lab1", "oak1"]),
        (" oak1 , lab1 ,", ["lab1", "oak1"]),
        ("lab*", ["lab1", "lab2"]),
        ("la[!2-9]1", ["lab1"]),
        ("*[12]", ["lab1", "lab2", "oak1", "fe80::1"]),
        ("lab:&south", ["lab2"]),
        ("&south:lab", ["lab2"]),
        ("all:!south", ["lab1", "fe80::1", "twin"]),
        ("!south:all", ["lab1", "fe80::1", "twin"]),
        ("!lab", ["oak1", "fe80::1", "twin"]),
        ("fe80::1", ["fe80::1"]),
        ("all,!fe80::1,!lab", ["oak1", "twin"]),
        ("twin", ["lab1"]),  # a group goes before a host of the same name, as in Ansible
    ],
)
def test_a_pattern_chooses_hosts_in_the_inventorys_order(pattern: str, chosen: list[str]) -> None:
    assert select(pattern, NAMES, GROUPS) == chosen


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("lba1", "--limit 'lba1': 'lba1' matches no host and no group; did you mean lab1"),
        ("all:!sout", "'sout' matches no host and no group; did you mean south?"),
        ("xyzzy", "'xyzzy' matches no host and no group; groups are all, lab, south, empty, twin"),
        ("empty", "the group 'empty' has no hosts"),
        ("lab1:&oak1", "no host is left"),
        ("", "it is empty; name a host or a group"),
        (" , : ", "it is empty; name a host or a group"),
        ("!", "matches no host and no group"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(pattern: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        select(pattern, NAMES, GROUPS)
    assert problem in str(caught.value)


def test_no_pattern_means_all_hosts(tmp_path: Path) -> None:
    inventory = read(tmp_path, "b\na\n")
    assert inventory.limit(None) == inventory.hosts


# --- open inputs

_PIECES = st.sampled_from(
    [
        "lab1",
        "lab[1:3]",
        "[a:c]",
        "[wood]",
        "[wood:vars]",
        "[wood:children]",
        "[all:vars]",
        "wood",
        "lake",
        "program=default",
        "program.a=1",
        "program__a=2",
        "program={'a':{'b':1}}",
        "port=22",
        "user=pi",
        "host={{x}}",
        "x='a",
        'y="b',
        "#",
        ";",
        "=",
        ":",
        "[",
        "]",
        "\\",
        "'",
        "\x00",
        "\x85",
        "\u2028",
        "\ufeff",
        "\r",
        "\t",
        "ansible_group_priority=3",
        "[fe80::1]:22",
        "a:22",
        "s[1:9:2]",
        "s[01:1]",
        ":children",
        "🦇",
    ]
)
_TEXTS = st.lists(st.lists(_PIECES | st.text(max_size=8), max_size=5).map(" ".join), max_size=12).map("\n".join)


def refusal(error: type[FleetError], call: Callable[[], object]) -> str | None:
    """The text of the one error that a call may raise."""
    try:
        call()
    except error as refused:
        return str(refused)
    return None


@settings(max_examples=300, deadline=None)
@given(_TEXTS | st.text(max_size=200))
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(text: str) -> None:
    refused = refusal(InventoryError, lambda: hosts_of(text))
    assert refused is None or (refused.startswith("sensors.ini:") and refused.isprintable())


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("lab1ow*?[]!&,:~ -"), max_size=12) | st.text(max_size=12))
def test_whatever_a_pattern_is_it_chooses_hosts_or_is_refused(pattern: str) -> None:
    refused = refusal(UsageError, lambda: select(pattern, NAMES, GROUPS))
    assert refused is not None or select(pattern, NAMES, GROUPS)
