"""The nodes' names and tooltips as this host serves them to the interface, in every language."""

import pytest
from host_tests import frozen, translations

pytestmark = pytest.mark.slow


def test_english_is_what_the_nodes_say(server):
    now = translations.texts(translations.node_defs(frozen.ours(server.get("/object_info"))))
    written = translations.texts(translations.read("en"))
    changed = sorted(key for key in now.keys() | written.keys() if now.get(key) != written.get(key))
    assert not changed, "`make locales` writes English anew, and says what to translate again:\n" + "\n".join(
        f"{key}: {now.get(key)}" for key in changed
    )


def test_the_server_gives_every_language_to_the_interface(server):
    served = server.get("/i18n")
    for language in ("en", *translations.LANGUAGES):
        ours = translations.read(language)
        assert {node: served[language]["nodeDefs"][node] for node in ours} == ours
