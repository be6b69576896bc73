import re
from pathlib import Path

import pytest

from benchmarks.attacks import ATTACKS
from benchmarks.economy import smoothness, supply
from benchmarks.epoch_close import measure
from fabric.wire.amounts import format_dc

PAGE = (Path(__file__).parents[2] / "docs" / "attacks.md").read_text()
SECOND_DC, THREE_MINUTES_DC = 56, 10_000


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_each_attack_pays_without_its_rule_and_not_with_it(attack):
    profit = attack.profit()
    assert profit.without_rule_dc > 0
    left = {"over_claiming": SECOND_DC, "vanished_client": THREE_MINUTES_DC}
    assert profit.with_rule_dc <= left.get(attack.name, 0)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_the_attack_book_has_the_numbers_of_the_code(attack):
    profit = attack.profit()
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| {attack.name.replace('_', ' ')} |"))
    assert f"| {format_dc(profit.without_rule_dc)} | {format_dc(profit.with_rule_dc)} |" in row


def test_pooling_smooths_income_and_the_page_says_by_how_much():
    figures = smoothness(gpus=32, epochs=60, seed=42)
    assert figures["variance_ratio"] < 0.5
    assert f"falls to {figures['variance_ratio']:.2f}" in PAGE
    assert f"from {figures['income_cv_alone']:.2f} to {figures['income_cv_pooled']:.2f}" in PAGE


def test_supply_never_passes_the_schedule_whatever_the_demand():
    for growth in (0, 20, 50):
        figures = supply(growth_bps_per_epoch=growth)
        assert figures["supply_minted_bct"] <= figures["supply_schedule_bct"] + figures["supply_burned_bct"]
        assert figures["supply_minted_bct"] <= figures["supply_burned_bct"] + 1


def test_an_epoch_close_is_measured_with_all_its_parts():
    figures = measure(200, verify=True)
    assert figures["gpus"] == 200
    assert {"seconds", "peak_mib", "verify_s"} <= figures.keys()


NAMED = re.findall(r"`((?:api|ledger|fabric)/[\w/]+\.py)::(\w+)`", PAGE)


def test_the_attack_book_names_a_test_for_every_attack():
    assert {f"tests/{path}::{name}" for path, name in NAMED} >= {attack.test for attack in ATTACKS}


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_every_test_that_the_attack_book_names_is_there(path, name):
    text = (Path(__file__).parents[1] / path).read_text()
    assert re.search(rf"^\s*(async )?def {name}\(", text, re.MULTILINE)
