"""What the tests of the pages share: a reader in Chromium, and texts that would like to be more than text."""

import itertools
import json
from pathlib import Path
from typing import Any

from linnet.track.metrics import RowFile
from tests.browser import Browser
from tests.track.test_report import rows_of

WRITING = "document.querySelector('.writing')"
TEXTS = "[...document.querySelectorAll('.message .text')].map(e => e.textContent)"
LAST = "[...document.querySelectorAll('.message.assistant')].at(-1)"

# What each of them would do. Whatever runs sets `caught`; whatever is fetched shows among the browser's requests.
ACT = "window.caught=1"
AWAY = "http://127.0.0.1:9/caught"
FORMS = (
    f"<script>{ACT}</script>",
    f"<script src={AWAY}.js></script>",
    f"<script type=module>import '{AWAY}.js'</script>",
    f'<img src=x onerror="{ACT}">',
    f"![a picture]({AWAY}.png)",
    f"![a picture][1]\n\n[1]: {AWAY}.png",
    f'<img srcset="{AWAY}.png 1x">',
    f"<svg onload={ACT}><circle r=9 /></svg>",
    f"<svg><script>{ACT}</script></svg>",
    f"<svg><use href={AWAY}.svg#a></use></svg>",
    '<iframe srcdoc="<script>parent.caught=1</script>"></iframe>',
    "<iframe src=javascript:parent.caught=1></iframe>",
    f"[a link](javascript:{ACT})",
    f"<a href=javascript:{ACT} autofocus onfocus={ACT}>a link</a>",
    f"<{AWAY}>",
    f"<style>@import '{AWAY}.css'; * {{ background: url({AWAY}.png) }}</style>",
    f"<link rel=stylesheet href={AWAY}.css>",
    f'<meta http-equiv=refresh content="0;url={AWAY}">',
    f"<object data={AWAY}.swf></object><embed src={AWAY}.swf>",
    f"<video src={AWAY}.mp4 autoplay onerror={ACT}></video>",
    f"<details open ontoggle={ACT}>more</details>",
    f"<base href={AWAY}/>",
    f"<form action={AWAY}><input autofocus onfocus={ACT}><button>send</button></form>",
    f"<template shadowrootmode=open><script>{ACT}</script></template>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=caught=1&gt;'>",
    "<a href=data:text/html;base64,PHNjcmlwdD5vcGVuZXIuY2F1Z2h0PTE8L3NjcmlwdD4=>data</a>",
    "{{constructor.constructor('window.caught=1')()}} ${window.caught=1} <%= window.caught=1 %>",
    f"$$\\href{{javascript:{ACT}}}{{x}}$$ \\(\\includegraphics{{{AWAY}.png}}\\)",
    f"&lt;script&gt;{ACT}&lt;/script&gt; \\u003cscript\\u003e {chr(0)}<scr\0ipt>{ACT}</scr\0ipt>",
    f"</textarea></div></article></main></body></html><script>{ACT}</script>",
)
AROUND = (
    "{}",
    "Hello there, {} and good bye",
    "```html\n{}\n```",
    "> - *{}*\n> - **`{}`**",
    "data: [DONE]\n\ndata: {}\n\nevent: error\r\ndata: x\r\n\r\n",
    "Zwölf naïve 🐦🎶 日本語 {} é\u0301\u202e\u2028\u2029\ufeff",
    "\n\n\t  {}\n\n\n",
    "<!-- {} --><![CDATA[{}]]>",
    "\"'>`]}}})-->{}",
    "| a | b |\n|---|---|\n| {} | <b>bold</b> |\n\n# {}",
)
PAYLOADS = [around.replace("{}", form) for form, around in itertools.product(FORMS, AROUND)]
assert len(set(PAYLOADS)) == 300


class Reader:
    """Somebody before the chat of the server at `url`, with nothing kept from before."""

    def __init__(self, browser: Browser, url: str, *, model: str = "", **screen: Any) -> None:
        self.browser, self.url = browser, url
        browser.open_anew(url, kept={"linnet-model": model} if model else {}, **screen)
        browser.wait(
            "!document.querySelector('#welcome').hidden && document.querySelector('#model').value !== '…'"
        )

    def say(self, text: str) -> None:
        """Type it and press Enter."""
        self.browser.click("#text")
        self.browser.type(text)
        self.browser.press("Enter")

    def ask(self, text: str) -> str:
        """Say it; what was written when nothing more comes."""
        self.say(text)
        return self.answer()

    def answer(self) -> str:
        """The text that was written last, whole."""
        self.browser.wait(f"{LAST} && !{WRITING}")
        return str(self.browser.run(f"{LAST}.querySelector('.text').textContent"))

    @property
    def texts(self) -> list[str]:
        """Of all turns."""
        return list(self.browser.run(TEXTS))

    @property
    def note(self) -> str:
        """The small words below the last one."""
        return str(self.browser.run(f"{LAST}.querySelector('.note').textContent"))

    def set(self, name: str, value: str) -> None:
        """Type a setting."""
        if self.browser.run("document.querySelector('#settings').hidden"):
            self.browser.click("#settings-button")
        self.browser.click(f"#{name}")
        self.browser.run(f"document.querySelector('#{name}').select()")
        self.browser.type(value)

    def choose(self, name: str) -> None:
        """A model, with the arrow keys, as one does who has no mouse."""
        self.browser.run("document.querySelector('#model').focus()")
        names = self.browser.run("[...document.querySelector('#model').options].map(o => o.value)")
        chosen = self.browser.run("document.querySelector('#model').value")
        steps = names.index(name) - names.index(chosen)
        for _ in range(abs(steps)):
            self.browser.press("ArrowDown" if steps > 0 else "ArrowUp")
        self.browser.wait(f"document.querySelector('#model').value === {json.dumps(name)}")

    def is_unharmed(self) -> None:
        """Nothing has run, nothing came from elsewhere, all texts are nothing but text."""
        assert self.browser.run("window.caught === undefined && location.pathname === '/'")
        assert [url for url in self.browser.requests if not url.startswith(self.url)] == []
        assert self.browser.complaints == [], self.browser.complaints
        kinds = "new Set([...document.querySelectorAll('.text')].flatMap(e => [...e.childNodes].map(n => n.nodeName)))"
        assert set(self.browser.run(f"[...{kinds}]")) <= {"#text"}
        assert self.browser.run("document.querySelectorAll('iframe, object, embed, video, base').length") == 0


def go_on(folder: Path, *, first: int, last: int) -> None:
    """The training goes on."""
    with RowFile(folder / "metrics.jsonl") as file:
        for row in rows_of(last):
            if row["step"] >= first:
                file.append(row)
