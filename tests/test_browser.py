"""The report and the explorer in a real browser: every control does its work, and mistakes are told."""

import re

import pytest
from browser import PHONE, start_browser, watched
from edited_runs import write_images
from PIL import Image
from reported_runs import finished_run, render_few
from served import served

from engine.edit.opening import open_model
from engine.explore.studio import Studio
from engine.report.page import write_report

pytest.importorskip("playwright", reason="playwright is not installed: pip install 'diffsiam[dev]'")
from playwright.sync_api import expect, sync_playwright  # noqa: E402  (skips where it is absent)

expect.set_options(timeout=60_000)  # a busy machine is no failure


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = start_browser(playwright)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory, awaken):
    run = finished_run(tmp_path_factory.mktemp("runs") / "ours", awaken)
    with pytest.MonkeyPatch.context() as patch:
        render_few(run, patch, pairs=2)
    write_report([run])
    return run


@pytest.fixture(scope="module")
def report(run):
    return (run / "report" / "index.html").as_uri()


@pytest.fixture(scope="module")
def place(run, tmp_path_factory):
    studio = Studio(open_model(run), tmp_path_factory.mktemp("uploads"))
    with served(studio) as place:
        yield f"http://{place}/"


def seen(canvas) -> bytes:
    """What a canvas or an image shows."""
    return canvas.screenshot()


def test_the_report_opens_without_network_and_every_control_of_its_explorer_changes_the_picture(
    browser, report
):
    page, wrong = watched(browser, offline=True)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report)
    place = page.locator("[data-exchange]")
    result, said = place.locator("[data-tile=result]"), place.locator(".said")
    expect(said).to_have_text("room 60 of seed 0 with subset 1 of room 61 of seed 0 at scale 1, its own x_T")
    before = seen(result)
    steps = {
        "pair": lambda: place.locator("select").select_option("1"),
        "direction": lambda: place.get_by_label("b takes from a").check(),
        "subset": lambda: place.get_by_label("subset 3").check(),
        "x_T": lambda: place.get_by_label("x_T moves along").check(),
        "scale": lambda: place.get_by_role("slider", name="Scale").fill("2"),
    }
    for name, step in steps.items():
        step()
        assert seen(result) != before, name
        before = seen(result)
    told = "room 63 of seed 0 with subset 1, subset 3 of room 62 of seed 0 at scale 1/2, x_T moved along"
    expect(said).to_have_text(told)
    expect(result).to_have_attribute("aria-label", told)
    expect(place.locator(".command")).to_contain_text("-i 62 -i 63 --subsets 0-1+2-3 --scales 1/2 --inv")

    push = page.locator("[data-push]")
    before = seen(push.locator("[data-tile=result]"))
    push.get_by_label("Less, more").fill("0")
    assert seen(push.locator("[data-tile=result]")) != before
    push.get_by_label("Attribute").select_option("1")
    expect(push.locator(".command")).to_contain_text("--scales=-1")
    assert wrong == []
    assert all(url.startswith(("file:", "data:")) for url in asked)


def test_the_explorer_of_the_report_works_from_the_keyboard_alone(browser, report):
    page, wrong = watched(browser)
    page.goto(report)
    said = page.locator("[data-exchange] .said")
    page.locator("[data-exchange] select").focus()
    page.keyboard.press("ArrowDown")
    expect(said).to_contain_text("room 62")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowDown")
    expect(said).to_contain_text("room 63 of seed 0 with subset 1 of room 62")
    page.keyboard.press("Tab")  # the table, which scrolls
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(said).to_contain_text("with nothing of z")
    page.get_by_role("slider", name="Scale").focus()
    page.keyboard.press("Home")
    expect(said).to_contain_text("at scale 0")
    assert wrong == []


def test_a_click_on_a_cell_of_the_map_takes_its_subset(browser, report):
    page, _ = watched(browser)
    page.goto(report)
    page.locator("[data-exchange] table.map tbody tr").nth(1).locator("td").nth(4).click()
    expect(page.locator("[data-exchange] .said")).to_contain_text("subset 1, subset 2")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_pages_fit_a_phone_and_follow_its_colours(browser, report, place, scheme):
    page, wrong = watched(browser, viewport=PHONE, color_scheme=scheme)
    for address in (report, place):
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper))) > 384) == (scheme == "light")
    assert wrong == []


def test_every_control_has_a_name_and_every_picture_a_description(browser, report, place):
    page, _ = watched(browser)
    for address in (report, place):
        page.goto(address)
        nameless = page.locator("input:visible, select:visible, button:visible").evaluate_all(
            "all => all.filter(x => !(x.labels?.length || x.textContent.trim() || x.ariaLabel)).length"
        )
        silent = page.locator("img:visible, canvas:visible, svg:visible").evaluate_all(
            "all => all.filter(x => !(x.getAttribute('alt') || x.getAttribute('aria-label'))).length"
        )
        assert (nameless, silent) == (0, 0)
        assert page.locator("h1").count() == 1
        assert page.locator("html").get_attribute("lang") == "en"


def few_moves(page):
    page.get_by_text("How it is sampled").click()
    page.get_by_label("DDIM moves of the inversion").fill("2")
    page.get_by_label("DDIM moves of sampling").fill("2")


def test_the_explorer_edits_a_file_of_the_user_and_gives_out_sheet_and_command(browser, place, tmp_path):
    (mine,) = write_images(tmp_path / "mine", 1)
    page, wrong = watched(browser)
    page.goto(place)
    expect(page.locator("[data-slot=b] .name")).to_have_text("room 61 of seed 0")
    page.get_by_label("A file of yours").first.set_input_files(str(mine))
    expect(page.locator("[data-slot=a] .name")).to_have_text("000.png")
    page.get_by_label("or number in the training set").nth(1).fill("5")
    page.get_by_role("button", name="Take").nth(1).click()
    expect(page.locator("[data-slot=b] .name")).to_have_text("room 5 of seed 0")
    page.get_by_label("subset 3").check()
    few_moves(page)
    page.get_by_role("button", name="Make").click()
    expect(page.get_by_role("heading", name="Result")).to_be_focused()
    expect(page.locator("#said")).to_have_text(
        "000.png with subset 1, subset 3 of room 5 of seed 0 at scale 1, its own x_T"
    )
    shown = page.locator("#shown")
    before = shown.get_attribute("src")
    page.get_by_label("Scale", exact=True).fill("1")
    expect(page.locator("#said")).to_contain_text("at scale 1/4")
    assert shown.get_attribute("src") != before
    page.get_by_label("b takes from a").check()
    expect(page.locator("#said")).to_contain_text("room 5 of seed 0 with subset 1, subset 3 of 000.png")
    expect(page.locator("#command")).to_contain_text("-i 000.png -i 5 --subsets 0-1+2-3")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the sheet").click()
    assert Image.open(download.value.path()).width > 300
    assert wrong == []


def test_the_explorer_pushes_an_attribute(browser, place):
    page, wrong = watched(browser)
    page.goto(place)
    page.get_by_label("Less and more of an attribute").check()
    expect(page.locator("fieldset[data-kind=exchange]")).to_be_hidden()
    page.get_by_label("Attribute", exact=True).select_option("brightness")
    few_moves(page)
    page.get_by_role("button", name="Make").click()
    expect(page.locator("#said")).to_have_text("room 60 of seed 0 with brightness pushed by 1")
    expect(page.locator("#directions")).to_be_hidden()
    page.get_by_label("Scale", exact=True).press("Home")
    expect(page.locator("#said")).to_have_text("room 60 of seed 0 with brightness pushed by -1")
    assert wrong == []


def test_mistakes_are_told_in_the_page(browser, place, tmp_path):
    page, _ = watched(browser)  # a refused request is an error of the console too
    page.goto(place)
    error = page.get_by_role("alert")
    (tmp_path / "notes.png").write_text("no image")
    page.get_by_label("A file of yours").first.set_input_files(str(tmp_path / "notes.png"))
    expect(error).to_contain_text("notes.png cannot be read as an image")
    few_moves(page)
    page.get_by_label("Scales, 0 to 1").fill("0,2")
    page.get_by_role("button", name="Make").click()
    expect(error).to_contain_text("2 is not between 0 and 1")
    page.get_by_label("Scales, 0 to 1").fill("half")
    page.get_by_role("button", name="Make").click()
    expect(error).to_contain_text("expected numbers like 0.5 or 1/4")
    page.route("**/jobs", lambda route: route.abort())
    page.get_by_role("button", name="Make").click()
    expect(error).to_contain_text("the server does not answer")
    expect(page.get_by_role("button", name="Make")).to_be_enabled()


def test_an_edit_waits_for_images_that_are_still_on_their_way(browser, place):
    page, wrong = watched(browser)
    held = []
    page.route("**/numbers", lambda request: held.append(request))
    page.goto(place)
    few_moves(page)
    page.get_by_role("button", name="Make").click()
    expect(page.locator("#pace")).to_have_text("Waiting")
    expect(page.locator("#error")).to_have_text("")
    assert len(held) == 2
    for request in reversed(held):  # b comes before a
        request.continue_()
    expect(page.locator("#said")).to_contain_text("room 60 of seed 0 with subset 1 of room 61 of seed 0")
    assert wrong == []


def test_a_long_edit_shows_its_progress_and_can_be_stopped(browser, place):
    page, wrong = watched(browser)
    page.goto(place)
    page.get_by_text("How it is sampled").click()
    for way in ("the inversion", "sampling"):  # so many that it cannot end before it is stopped
        page.get_by_label(f"DDIM moves of {way}").fill("1000")
    page.get_by_role("button", name="Make").click()
    expect(page.locator("#pace")).to_have_text(re.compile(r"\d+ %, \d+ s to go"))
    assert 0 < float(page.locator("#progress").evaluate("bar => bar.value")) < 1
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Make")).to_be_enabled()
    expect(page.locator("#result")).to_be_hidden()
    assert wrong == []
