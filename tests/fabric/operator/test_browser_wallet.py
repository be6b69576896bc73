"""The page for a wallet in the browser: as a program meets it, and in a real Chromium with a wallet of the test's."""

import json
import shutil
import threading

import httpx
import pytest
from eth_account import Account

from fabric.operator.browser_wallet import BrowserWallet
from fabric.operator.wallet import WalletError, from_key, signer_of
from fabric.wire.delegation import Delegation

WALLET = from_key("0x" + "01" * 32)
STRANGER = from_key("0x" + "02" * 32)
TYPED = Delegation("fabric <script>", "op_alice", bytes(32), 1_000, 2_000).typed_data()
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def sign_while(person, wait_s=30.0):
    """What `sign` gives while `person(url)` acts in a thread of its own."""
    failures = []

    def act(url):
        try:
            person(url)
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            failures.append(error)

    threads = []

    def show(url):
        threads.append(threading.Thread(target=act, args=(url,)))
        threads[0].start()

    try:
        return BrowserWallet(show, wait_s).sign(TYPED)
    finally:
        threads[0].join()
        assert not failures, failures


def post(url, members, **options):
    return httpx.post(url, content=json.dumps(members), trust_env=False, timeout=5, **options)


def signed_by(wallet):
    return {"address": wallet.address, "signature": "0x" + wallet.sign(TYPED).hex()}


def test_the_signature_that_the_page_brings_is_returned():
    assert sign_while(lambda url: post(url, signed_by(WALLET))) == WALLET.sign(TYPED)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"address": WALLET.address, "signature": signed_by(STRANGER)["signature"]}, "not 0x"),
        ({"address": WALLET.address, "signature": "0x" + "00" * 65}, "nobody's"),
        ({"address": WALLET.address, "signature": "zz"}, "hex digits"),
        ({"address": WALLET.address}, "not a signature"),
        (["address"], "not a signature"),
        ({"address": "a" * 5000, "signature": ""}, "1 to 4096 bytes"),
    ],
)
def test_another_signature_is_refused_and_the_page_goes_on_waiting(answer, said):
    def person(url):
        refused = post(url, answer)
        assert refused.status_code == 400
        assert said in refused.text
        post(url, signed_by(WALLET))

    assert sign_while(person) == WALLET.sign(TYPED)


def test_who_does_not_know_the_page_or_comes_under_another_name_gets_nothing():
    def person(url):
        assert httpx.get(url[:-1], trust_env=False).status_code == 404
        assert post(url.rsplit("/", 1)[0] + "/", signed_by(STRANGER)).status_code == 404
        assert httpx.get(url, headers={"Host": "evil.example"}, trust_env=False).status_code == 404
        post(url, signed_by(WALLET))

    sign_while(person)


def test_a_wallet_that_declines_or_nobody_at_all_is_an_error_that_says_so():
    with pytest.raises(WalletError, match="did not sign: no thanks"):
        sign_while(lambda url: post(url, {"declined": "no thanks"}))
    with pytest.raises(WalletError, match="nobody signed within"):
        sign_while(lambda _: None, wait_s=0.01)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_person_signs_in_a_real_browser_and_sees_what():
    from playwright.sync_api import sync_playwright

    seen = {}

    def person(url):
        with sync_playwright() as playwright:
            flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
            page = browser.new_page()
            page.expose_function("signWithTestKey", lambda typed: "0x" + WALLET.sign(json.loads(typed)).hex())
            page.goto(url)
            page.click("#sign")
            page.get_by_text("This browser has no wallet").wait_for()
            page.evaluate(
                """address => { window.ethereum = { request: async ({ method, params }) =>
                method === "eth_requestAccounts" ? [address] : window.signWithTestKey(params[1]) }; }""",
                WALLET.address,
            )
            seen["text"] = page.inner_text("main")
            page.click("#sign")
            page.get_by_text("Signed by").wait_for()
            browser.close()

    signature = sign_while(person, wait_s=60)
    assert signer_of(TYPED, signature) == Account.from_key("0x" + "01" * 32).address
    for shown in ("Delegation", "op_alice", "fabric <script>", "0x" + "00" * 32, "Thu, 01 Jan 1970 00:00:02 GMT"):
        assert shown in seen["text"]
