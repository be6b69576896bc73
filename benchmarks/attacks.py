"""Each way to live off the fabric without working for it, as a function: the profit without the rule that closes it,
and with it.

Profits are in whole DC (USD 0.00001) for one day, H100s at USD 2 an hour, computed by the product's own charging,
windows, splits and allocation. Where the rule moves no money at all, its side is the formula that is left: 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

from api.acceptance import billable_ms, window_ms
from fabric.wire.merkle import root
from fabric.wire.receipts import ReceiptKind
from ledger.allocate import EpochInput, GpuUsage, allocate, payout_leaves
from ledger.chain.standing_in import Entrant, Place, stand_ins
from ledger.emission import DEFAULT_SCHEDULE, value_wei_down
from ledger.leaves import gpu_id_hex
from ledger.money import mul_div_down
from ledger.pools import Entrance, Membership, PoolRules, TermsRow, join, leave, pool_at
from ledger.pricing import PricedShare, charge_due_up
from ledger.split import AvailableLine, PoolTerms, UsageLine, split_pool

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
H100 = PricedShare(1000, 200_000)
PRICE_E18 = 10**17  # USD 0.1 per BCT
DC_PER_USD, WEI, USD_E18 = 100_000, 10**18, 10**18
HONEST_DC = 40_000_000  # what everybody else burns in a day: USD 400
WASH_DC = 10_000_000
OPERATOR, OWNER, SNIPER = "0x" + "99" * 20, "0x" + "11" * 20, "0x" + "22" * 20


@dataclass(frozen=True, slots=True)
class Profit:
    """What the attacker nets in a day, in DC; below zero = it costs."""

    without_rule_dc: int
    with_rule_dc: int


@dataclass(frozen=True, slots=True)
class Attack:
    """`who` tries `what`; `rule` closes it; `profit` computes both sides; `test`, as pytest names it, tries it out."""

    name: str
    who: str
    what: str
    rule: str
    profit: Callable[[], Profit]
    test: str


def wash_trading() -> Profit:
    """Rent one's own GPUs all day: under plain pro-rata emission, and under the pay bound."""
    emission = DEFAULT_SCHEDULE.emission_wei(0)
    plain = _dc_of(mul_div_down(emission, WASH_DC, WASH_DC + HONEST_DC)) - WASH_DC
    lines = [
        UsageLine(gpu_id_hex("w"), SNIPER, "wash", "wash", DAY_MS, WASH_DC),
        UsageLine(gpu_id_hex("h"), OWNER, "rest", "op", 1, HONEST_DC),
    ]
    earned = sum(reward.wei for reward in allocate(_epoch(lines)).rewards if reward.holder == SNIPER)
    return Profit(plain, _dc_of(earned) - WASH_DC)


def over_claiming() -> Profit:
    """An operator's meter says a day for a lease of an hour; the control plane saw 3,600 nonces."""
    window = window_ms(start_ms=0, next_nonce_ms=HOUR_MS + 1_000, arrival_ms=DAY_MS, release_ms=HOUR_MS)
    bounded = charge_due_up(billable_ms(DAY_MS, window, 0, ReceiptKind.CLOSE), H100)
    honest = charge_due_up(HOUR_MS, H100)
    return Profit(charge_due_up(DAY_MS, H100) - honest, bounded - honest)


def vanished_client() -> Profit:
    """An operator lets a lease run on whose client is gone, with USD 48 on the account: released after 3 minutes."""
    return Profit(charge_due_up(DAY_MS, H100), charge_due_up(3 * 60_000, H100))


def sub_second_leases() -> Profit:
    """A customer takes a GPU a hundred thousand times for 0.8 s, where whole seconds are billed rounded down."""
    leases, used_ms = 100_000, 800
    worth = leases * charge_due_up(used_ms, H100)
    floored = leases * charge_due_up(used_ms // 1000 * 1000, H100)
    billed = leases * charge_due_up(billable_ms(used_ms, used_ms, 0, ReceiptKind.CLOSE), H100)
    return Profit(worth - floored, worth - billed)


def work_before_open() -> Profit:
    """Compute in the build of the environment, two minutes a lease, all day: not billed, or billed as setup."""
    leases = DAY_MS // 120_000
    worth = leases * charge_due_up(120_000, H100)
    return Profit(worth, worth - leases * charge_due_up(billable_ms(120_000, 120_000, 0, ReceiptKind.CLOSE), H100))


def provoked_fault() -> Profit:
    """Crash one's own work just before its end: not billed, or billed since the node's process lives."""
    worth = charge_due_up(DAY_MS, H100)
    return Profit(worth, worth - charge_due_up(billable_ms(DAY_MS, DAY_MS, 0, ReceiptKind.CLOSE), H100))


def work_by_dispute() -> Profit:
    """Report 0 measured seconds for a day's work, where the customer's report decides; here it moves no money."""
    return Profit(charge_due_up(DAY_MS, H100) - charge_due_up(0, H100), 0)


def idle_farm() -> Profit:
    """Ninety GPUs priced so that nobody rents them, in a pool with ten that work, for its shared half."""
    terms = PoolTerms(0, 5000, 5000, model_weights={"H100": 1})
    working = [UsageLine(f"w{n}", OWNER, "p", "op", DAY_MS, 1_000_000) for n in range(10)]
    idle = [AvailableLine(f"i{n}", SNIPER, "p", "op", "H100", DAY_MS) for n in range(90)]
    ready = [AvailableLine(f"w{n}", OWNER, "p", "op", "H100", DAY_MS) for n in range(10)]
    reward = value_wei_down(10_000_000, PRICE_E18)
    naive = split_pool(reward, working, [*ready, *idle], terms)
    ruled = split_pool(reward, working, ready, terms)  # above the terms' price ceiling: not available
    return Profit(_earned_dc(naive, SNIPER), _earned_dc(ruled, SNIPER))


def join_sniping() -> Profit:
    """Join a pool with a shared half in an epoch's last minute, take the share of a full day, leave."""
    terms = PoolTerms(0, 5000, 5000, model_weights={"H100": 1})
    in_force = TermsRow("p", 0, terms, Entrance.INVITED)
    stay = leave(join([], in_force, "s", now_epoch=5, invited=True), now_epoch=5, rules=PoolRules())
    at_once = Membership("s", "p", 5)
    return Profit(_sniped_dc(at_once, terms), _sniped_dc(stay, terms))


def dead_slot() -> Profit:
    """Sell a day's slot on a GPU and unplug it after an hour: paid at sale, or as usage while it is verified."""
    sold, honest = charge_due_up(DAY_MS, H100), charge_due_up(HOUR_MS, H100)
    return Profit(sold - honest, charge_due_up(HOUR_MS, H100) - honest)


def nft_substitution() -> Profit:
    """An operator takes an investor's GPU out and puts in its own of that model, for which nobody has an NFT: a day's
    reward goes to the operator, or to the NFT's holder since the new GPU stands in the old one's place.
    """
    old, new = gpu_id_hex("old"), gpu_id_hex("new")
    standing = stand_ins([Place(old, ((0, DAY_MS),))], [Entrant(new, DAY_MS, is_there=True)], DAY_MS)
    holder = {old: OWNER}.get(standing.get(new, ""), OPERATOR)
    used = UsageLine(new, OPERATOR, "op", "op", DAY_MS, charge_due_up(DAY_MS, H100))
    paid = [allocate(_epoch([used._replace(holder=who)])).rewards for who in (OPERATOR, holder)]
    without, ruled = (_dc_of(sum(one.wei for one in rewards if one.holder == OPERATOR)) for rewards in paid)
    return Profit(without, ruled)


def stale_oracle() -> Profit:
    """Burn BCT for DC at yesterday's price after it fell by half: at the oracle's word, or at the lower of price
    and its 24 h average, a price that reporters still confirm.
    """
    burned_wei, fresh = 10_000 * WEI, PRICE_E18 // 2
    worth = mul_div_down(burned_wei, fresh * DC_PER_USD, WEI * USD_E18)
    stale = mul_div_down(burned_wei, PRICE_E18 * DC_PER_USD, WEI * USD_E18)
    lower = mul_div_down(burned_wei, min(fresh, PRICE_E18) * DC_PER_USD, WEI * USD_E18)
    return Profit(stale - worth, lower - worth)


def lying_reporter() -> Profit:
    """One of three reporters says ten times the price while it buys DC with its own BCT: by the mean, by the median."""
    burned_wei, honest, lie = 10_000 * WEI, [PRICE_E18, PRICE_E18], 10 * PRICE_E18
    reports = [*honest, lie]
    worth = mul_div_down(burned_wei, PRICE_E18 * DC_PER_USD, WEI * USD_E18)
    mean, median = sum(reports) // len(reports), sorted(reports)[len(reports) // 2]
    by_mean, by_median = (mul_div_down(burned_wei, price * DC_PER_USD, WEI * USD_E18) for price in (mean, median))
    return Profit(by_mean - worth, by_median - worth)


def lying_settler() -> Profit:
    """Whoever settles posts a root that pays everything to itself: taken at its word, or recomputed from the file by
    anybody, disputed within the window and dropped.
    """
    honest = allocate(_epoch([UsageLine(gpu_id_hex("h"), OWNER, "rest", "op", DAY_MS, HONEST_DC)]))
    forged = [payout._replace(holder=SNIPER) for payout in honest.payouts]
    taken = _dc_of(sum(payout.wei for payout in forged))
    is_seen = root(payout_leaves(forged)) != honest.payout_root
    return Profit(taken, 0 if is_seen else taken)


ATTACKS = (
    Attack(
        "wash_trading",
        "trader",
        "rents its own GPUs for the emission",
        "pay bound: at most the value burned",
        wash_trading,
        "tests/ledger/test_allocate.py::test_who_buys_from_oneself_gets_back_less_than_was_burned",
    ),
    Attack(
        "over_claiming",
        "operator",
        "claims a day for an hour",
        "billed ≤ the control plane's window",
        over_claiming,
        "tests/api/test_metering.py::test_the_claim_is_billed_up_to_the_window",
    ),
    Attack(
        "vanished_client",
        "operator",
        "keeps a lease whose client is gone",
        "silence of 3 minutes releases",
        vanished_client,
        "tests/api/test_agents.py::test_a_customer_silent_for_three_minutes_is_released",
    ),
    Attack(
        "sub_second_leases",
        "customer",
        "lives on leases below a second",
        "at least 1 s per lease and GPU",
        sub_second_leases,
        "tests/api/test_metering.py::test_a_lease_that_was_open_costs_a_second_at_least_and_an_unopened_one_nothing",
    ),
    Attack(
        "work_before_open",
        "customer",
        "computes while the environment is built",
        "setup is billed",
        work_before_open,
        "tests/fabric/agent/test_envs.py::test_the_installation_is_the_receipts_setup_and_nothing_of_it_is_idle",
    ),
    Attack(
        "provoked_fault",
        "customer",
        "crashes its own work before the end",
        "any end while the node lives is billed",
        provoked_fault,
        "tests/api/test_metering.py::test_a_crash_of_the_childs_sandbox_is_billed_and_a_sick_gpu_is_not",
    ),
    Attack(
        "work_by_dispute",
        "customer",
        "disputes the measured time",
        "a customer's report moves no money",
        work_by_dispute,
        "tests/api/test_conduct.py::test_no_report_moves_money",
    ),
    Attack(
        "idle_farm",
        "pool member",
        "offers GPUs that nobody can want",
        "available only at ≤ the price ceiling",
        idle_farm,
        "tests/ledger/test_uptime.py::test_time_is_available_when_priced_verified_a_members_and_no_lease_was_let_down",
    ),
    Attack(
        "join_sniping",
        "pool member",
        "joins for the last minute",
        "membership counts from a later epoch on",
        join_sniping,
        "tests/ledger/test_pools.py::test_a_new_pool_and_a_new_member_count_from_the_next_epoch",
    ),
    Attack(
        "dead_slot",
        "operator",
        "sells a slot and unplugs the GPU",
        "a slot becomes usage over its time",
        dead_slot,
        "tests/api/test_slots.py::test_what_was_not_delivered_goes_back",
    ),
    Attack(
        "nft_substitution",
        "operator",
        "puts its own GPU in an investor's place",
        "a GPU that enrols within 30 days stands in for the NFT's",
        nft_substitution,
        "tests/ledger/chain/test_standing_in.py::test_the_new_gpu_earns_for_the_holder_of_the_old_ones_nft_and_who_buys_the_nft_gets_that_too",
    ),
    Attack(
        "stale_oracle",
        "trader",
        "buys DC at yesterday's price",
        "the lower of price and average; halt when stale",
        stale_oracle,
        "tests/ledger/contracts/test_data_credits.py::test_dc_are_minted_at_the_lower_of_price_and_average",
    ),
    Attack(
        "lying_reporter",
        "reporter",
        "reports ten times the price and buys DC",
        "the median of a quorum; a step beyond the bound halts",
        lying_reporter,
        "tests/ledger/contracts/test_price_oracle.py::test_one_liar_among_three_moves_nothing",
    ),
    Attack(
        "lying_settler",
        "settler",
        "posts a root that pays itself",
        "roots follow from the epoch file; a dispute drops them",
        lying_settler,
        "tests/ledger/contracts/test_settlement.py::test_an_upheld_dispute_returns_the_bond",
    ),
)


def _epoch(lines: list[UsageLine]) -> EpochInput:
    return EpochInput(
        epoch=0,
        start_ms=0,
        end_ms=DAY_MS,
        lines=lines,
        gpus=[GpuUsage(line.gpu_id, line.gpu_ms, line.dc, bytes(32)) for line in lines],
        price_usd_e18=PRICE_E18,
        price_source="benchmark",
        emission_wei=DEFAULT_SCHEDULE.emission_wei(0),
        remintable_wei=0,
        stake_bps=500,
    )


def _dc_of(wei: int) -> int:
    """What wei are worth, in DC, rounded down."""
    return mul_div_down(wei, PRICE_E18 * DC_PER_USD, WEI * USD_E18)


def _earned_dc(paid: dict[tuple[str, str], int], holder: str) -> int:
    return _dc_of(sum(wei for (_, who), wei in paid.items() if who == holder))


def _sniped_dc(stay: Membership, terms: PoolTerms) -> int:
    """What a GPU that stayed so takes of epoch 5, when nine others worked all day."""
    working = [UsageLine(f"w{n}", OWNER, "p", "op", DAY_MS, 1_000_000) for n in range(9)]
    ready = [AvailableLine(f"w{n}", OWNER, "p", "op", "H100", DAY_MS) for n in range(9)]
    if pool_at([stay], 5) == "p":
        ready.append(AvailableLine("s", SNIPER, "p", "op", "H100", DAY_MS))
    return _earned_dc(split_pool(value_wei_down(9_000_000, PRICE_E18), working, ready, terms), SNIPER)
