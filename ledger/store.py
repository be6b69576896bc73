"""`Ledger`: what the control plane calls. Holds, charges, undo, release, balances, finality and epoch close.

Each method reads, lets `ledger.booking` decide, and books, inside the caller's session and transaction; nothing here
commits. Every method that books takes or derives a ``source_id``: called again with the same one it changes nothing
and answers the same. A session that raised a `LedgerError` has booked nothing of that call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import RowMapping, and_, func, select, update
from sqlmodel import Session

from fabric.wire.clock import Clock
from ledger import accounts, booking
from ledger.accounts import AccountKind, Asset
from ledger.allocate import EpochAllocation
from ledger.book import ACCOUNT, ENTRY, NO_CHARGE, POSTINGS, Book, Tails
from ledger.booking import Charge, MeterState, Undo
from ledger.bulk import among
from ledger.closing import Closing, EpochTerms
from ledger.entries import Entry, EntryKind, move, reversal
from ledger.errors import NoHold, SourceConflict, UsageIsFinal, UsageTooLate
from ledger.finality import Finality
from ledger.holding import Holders, by_holder
from ledger.meters import MeterKey, Meters, charge_from
from ledger.settings import LedgerSettings
from ledger.tables import HoldRow, table_of
from ledger.usage import Usage

HOLD = table_of(HoldRow)
_UNUSED = MeterState()


@dataclass(frozen=True, slots=True)
class Balance:
    """A customer's DC."""

    available: int
    held: int
    exiting: int


@dataclass(frozen=True, slots=True)
class Hold:
    """A lease's hold: what is held now, and whether it has ended."""

    lease_id: str
    run_id: str
    customer: str
    held_dc: int
    closed_ms: int | None


class Ledger:
    """The ledger inside one transaction of the caller.

    Args:
        session: opened and committed by the caller.
        clock: the control plane's; the time of every booking.
        settings: epoch length, finality and the like.
        known_ms: up to which moment it is known who held which GPU's NFT; usage after it does not become final. None
            without a chain, where nobody holds any.
    """

    def __init__(
        self,
        session: Session,
        clock: Clock,
        settings: LedgerSettings | None = None,
        known_ms: Callable[[Session], int] | None = None,
    ) -> None:
        self._session = session
        self._clock = clock
        self._settings = settings or LedgerSettings()
        self._known_ms = known_ms
        self._book = Book(session)
        self._meters = Meters(session)
        self._finality = Finality(session, self._settings)

    def credit_test(self, customer: str, dc: int, source_id: str) -> None:
        """Give a customer a test balance, marked as such by the account it comes from."""
        self._append(booking.test_credit(customer, dc, source_id=source_id, at_ms=self._now()))

    def deposit(self, customer: str, dc: int, source_id: str) -> None:
        """DC that a customer deposited on chain; called when the deposit is final there."""
        self._append(booking.deposit(customer, dc, source_id=source_id, at_ms=self._now()))

    def record_bct_burned(self, wei: int, source_id: str) -> None:
        """BCT burned for DC on chain: later epochs may mint them again."""
        self._append(booking.bct_burned(wei, source_id=source_id, at_ms=self._now()))

    def record_claim(self, gpu_id: str, holder: str, wei: int, source_id: str) -> None:
        """BCT that a holder claimed on chain."""
        self._append(booking.claim(gpu_id, holder.lower(), wei, source_id=source_id, at_ms=self._now()))

    def request_exit(self, customer: str, dc: int, source_id: str) -> int:
        """Set aside what a customer who asked on chain to take ``dc`` out has available, at most that much.

        Returns the DC set aside. What is missing lapses: it can be asked for again.
        """
        available = accounts.available(customer)
        tails = self._book.lock({available, accounts.exiting(customer)})
        booked = self._book.find([source_id])
        if booked:
            return self._book.postings(booked[source_id])[1].amount
        moved = min(dc, tails[available].balance)
        if moved > 0:
            self._book.append([booking.request_exit(customer, moved, source_id=source_id, at_ms=self._now())], tails)
        return moved

    def exit_paid(self, customer: str, dc: int, source_id: str) -> None:
        """The chain paid an exit."""
        self._append(booking.exit_paid(customer, dc, source_id=source_id, at_ms=self._now()))

    def hold(
        self, lease_id: str, run_id: str, customer: str, dc: int, source_id: str, *, budget_dc: int | None = None
    ) -> None:
        """Set DC aside for a new lease; size it with `ledger.pricing.hold_sizes`.

        Raises:
            InsufficientFunds: less than ``dc`` available.
            BudgetExceeded: charged and held of all leases of the run would pass ``budget_dc``.
            SourceConflict: the lease has a hold from another ``source_id``, or the run or customer differ.
        """
        known = self.find_hold(lease_id)
        if known is not None and (known.run_id, known.customer) != (run_id, customer):
            raise SourceConflict(f"lease {lease_id} has a hold of run {known.run_id} and customer {known.customer}")
        if known is not None and source_id not in self._book.find([source_id]):
            raise SourceConflict(f"lease {lease_id} has a hold already; top it up instead")
        self._add_to_hold(EntryKind.HOLD, lease_id, run_id, customer, dc, source_id, budget_dc)
        if known is None:
            self._session.add(HoldRow(lease_id=lease_id, run_id=run_id, customer=customer, opened_ms=self._now()))
            self._session.flush()

    def top_up(self, lease_id: str, dc: int, source_id: str, *, budget_dc: int | None = None) -> None:
        """Add DC to a lease's hold; decide how much with `ledger.pricing.top_up`. Errors as `hold`, and `NoHold`."""
        self._book.lock(())  # the hold stays open from here on
        if source_id in self._book.find([source_id]):
            return
        known = self._open_hold(lease_id)
        self._add_to_hold(EntryKind.TOP_UP, lease_id, known.run_id, known.customer, dc, source_id, budget_dc)

    def charge(self, lease_id: str, usage: Usage) -> Charge:
        """Book one receipt's usage; see `charge_many`."""
        if usage.lease_id != lease_id:
            raise NoHold(f"usage of lease {usage.lease_id} cannot be charged to lease {lease_id}")
        return self.charge_many([usage])[0]

    def charge_many(self, usages: Sequence[Usage]) -> list[Charge]:
        """Book usage of many receipts in one go, in order; one that is booked already answers as it did then.

        Raises:
            NoHold: a lease without an open hold.
            UsageOutOfOrder: a meter went back.
            SourceConflict: a receipt's number is booked with other content.
            UsageTooLate: this control plane's clock is behind what is already final.
        """
        wanted = {accounts.held(usage.customer, usage.lease_id) for usage in usages}
        tails = self._book.lock(wanted | {accounts.usage_pending(usage.gpu_id) for usage in usages})
        booked = self._booked_charges(usages)
        fresh = {usage.source_id: usage for usage in usages if usage.source_id not in booked}
        if fresh:
            booked |= self._charge_fresh(list(fresh.values()), tails)
        for usage in usages:
            _expect_same_usage(booked[usage.source_id], usage)
        return [booked[usage.source_id] for usage in usages]

    def undo(self, lease_id: str, generation: int, gpu_id: str, back_to_ms: int, source_id: str) -> Undo:
        """Take a meter back to ``back_to_ms`` cumulative ms: what came after is not billed.

        Charges are reversed and the one that straddles is booked again for its standing part. If the lease's hold
        has ended, what comes back goes on to the customer at once.

        Raises:
            NoHold: no such meter.
            UsageIsFinal: some of it is final; corrections then come from the operator's bond.
        """
        meter = self._meters.find(lease_id, generation, gpu_id)
        if meter is None:
            raise NoHold(f"lease {lease_id}, generation {generation} has no meter for GPU {gpu_id}")
        if self._book.find([f"{source_id}/0"]):
            return Undo((), None)
        held = accounts.held(meter["customer"], lease_id)
        tails = self._book.lock({held, accounts.available(meter["customer"]), accounts.usage_pending(gpu_id)})
        plan, accepted_ms = self._plan_undo(meter["id"], back_to_ms, tails[held].balance, source_id)
        self._append_undo(plan, meter["id"], accepted_ms, tails)
        if self._is_closed(lease_id):
            rest = tails[held].balance
            release = booking.release(
                meter["customer"], lease_id, rest, source_id=f"{source_id}/release", at_ms=self._now()
            )
            self._book.append([release], tails)
        return plan

    def reassign(self, gpu_id: str, holders: Holders, source_id: str) -> int:
        """Book a GPU's usage again for whoever held its NFT at the time of use; returns how many rows were wrong.

        Called when a change of hands became known: usage that is booked already and not final is reversed and booked
        again, in parts where the NFT changed hands within it. Bills stay as they are; what is final stays too.

        Args:
            gpu_id: whose NFT changed hands.
            holders: all that is known of its holders.
            source_id: of the change; each one has its own.
        """
        wrong = 0
        for meter in self._meters.open_of_gpu(gpu_id, self._finality.through_ms()):
            passed = self._wrongly_held(meter, holders)
            if passed:
                self._book_again(meter, passed, holders, source_id)
                wrong += len(passed)
        return wrong

    def release_hold(self, lease_id: str, source_id: str | None = None) -> int:
        """End a lease's hold; the rest goes back to the customer. Returns the DC given back (0 the second time)."""
        known = self.find_hold(lease_id)
        if known is None:
            raise NoHold(f"lease {lease_id} has no hold")
        account = accounts.held(known.customer, lease_id)
        tails = self._book.lock({account, accounts.available(known.customer)})
        if self._is_closed(lease_id):
            return 0
        rest, now_ms = tails[account].balance, self._now()
        entry = booking.release(
            known.customer, lease_id, rest, source_id=source_id or f"release/{lease_id}", at_ms=now_ms
        )
        self._book.append([entry], tails)
        self._session.execute(update(HOLD).where(HOLD.c.lease_id == lease_id).values(closed_ms=now_ms))
        return rest

    def hold_nothing(self, lease_id: str, run_id: str, customer: str, source_id: str) -> None:
        """Open a lease's hold without money: what it costs is paid elsewhere, or is put in by `move_hold`."""
        if self.find_hold(lease_id) is None:
            self._append(Entry(EntryKind.OPEN_HOLD, source_id, self._now(), (), lease_id, customer))
            self._session.add(HoldRow(lease_id=lease_id, run_id=run_id, customer=customer, opened_ms=self._now()))
            self._session.flush()

    def move_hold(self, lease_id: str, new_lease_id: str, new_customer: str, source_id: str) -> int:
        """All that is held for one becomes held for another, of another customer too; the first hold ends.

        Returns the DC moved.

        Raises:
            NoHold: the first has no open hold.
        """
        known = self._open_hold(lease_id)
        self.hold_nothing(new_lease_id, new_lease_id, new_customer, source_id)
        source, target = accounts.held(known.customer, lease_id), accounts.held(new_customer, new_lease_id)
        tails = self._book.lock({source, target})
        moved = tails[source].balance
        if moved:
            name, postings = f"{source_id}/transfer", move(source, target, moved)
            entry = Entry(EntryKind.TRANSFER, name, self._now(), postings, lease_id, known.customer)
            self._book.append([entry], tails)
        self.release_hold(lease_id)
        return moved

    def balance(self, customer: str) -> Balance:
        open_leases = self._session.execute(
            select(HOLD.c.lease_id).where(HOLD.c.customer == customer, HOLD.c.closed_ms.is_(None))
        ).scalars()
        held = [accounts.held(customer, lease_id) for lease_id in open_leases]
        available, exiting = accounts.available(customer), accounts.exiting(customer)
        found = self._book.balances([available, exiting, *held])
        return Balance(found[available], sum(found[account] for account in held), found[exiting])

    def find_hold(self, lease_id: str) -> Hold | None:
        row = self._session.execute(select(HOLD).where(HOLD.c.lease_id == lease_id)).mappings().one_or_none()
        if row is None:
            return None
        held = self._book.balance(accounts.held(row["customer"], lease_id))
        return Hold(lease_id, row["run_id"], row["customer"], held, row["closed_ms"])

    def committed_dc(self, *run_ids: str) -> int:
        """What is charged and held for all leases of these runs: the part of their budget that is taken."""
        posting = POSTINGS[Asset.DC]
        kinds = [EntryKind.HOLD.value, EntryKind.TOP_UP.value, EntryKind.RELEASE.value]
        total = self._session.execute(
            select(func.coalesce(func.sum(posting.c.amount), 0))
            .select_from(HOLD)
            .join(ENTRY, and_(ENTRY.c.lease_id == HOLD.c.lease_id, NO_CHARGE, ENTRY.c.kind.in_(kinds)))
            .join(posting, posting.c.entry_id == ENTRY.c.id)
            .join(ACCOUNT, (ACCOUNT.c.id == posting.c.account_id) & (ACCOUNT.c.kind == AccountKind.HELD.value))
            .where(HOLD.c.run_id.in_(run_ids))
        ).scalar_one()
        return int(total)

    def finalise_usage(self, now_ms: int | None = None) -> int:
        """Make final all usage accepted ``final_after_ms`` before ``now_ms`` or earlier; returns the DC made final.

        Call it every minute or so; a close calls it too. Usage becomes final in the epoch in which its ten minutes
        end, however late this runs.
        """
        now = self._now() if now_ms is None else now_ms
        if self._known_ms is not None:
            now = min(now, self._known_ms(self._session) + self._settings.final_after_ms)
        return self._finality.advance(now, at_ms=self._now())

    def epoch_now(self) -> int:
        """The number of the epoch that is running."""
        return self._finality.epochs.at(self._now())

    def close_epoch(self, n: int, terms: EpochTerms | None = None) -> EpochAllocation:
        """Close epoch ``n``: burn its final usage, allocate and book its pay, fix its roots and file.

        Closed again it answers what it answered then. Without ``terms`` every pool is a pool of one and the price is
        the settings' test price, so the epoch's row says "not settled: no chain configured".

        Raises:
            EpochNotOver: its end is in the future.
            EpochOutOfOrder: the epoch before it is open.
        """
        self.finalise_usage()
        return Closing(self._session, self._settings, self._book).close(n, terms or EpochTerms(), at_ms=self._now())

    def _now(self) -> int:
        return self._clock.now_ms()

    def _append(self, entry: Entry) -> None:
        self._book.append([entry])

    def _add_to_hold(
        self,
        kind: EntryKind,
        lease_id: str,
        run_id: str,
        customer: str,
        dc: int,
        source_id: str,
        budget_dc: int | None,
    ) -> None:
        available = accounts.available(customer)
        tails = self._book.lock({available, accounts.held(customer, lease_id)})
        replay = bool(self._book.find([source_id]))
        entry = booking.hold(
            kind,
            lease_id=lease_id,
            run_id=run_id,
            customer=customer,
            dc=dc,
            available_dc=dc if replay else tails[available].balance,
            budget_left_dc=None if replay or budget_dc is None else budget_dc - self.committed_dc(run_id),
            source_id=source_id,
            at_ms=self._now(),
        )
        self._book.append([entry], tails)

    def _open_hold(self, lease_id: str) -> Hold:
        known = self.find_hold(lease_id)
        if known is None or known.closed_ms is not None:
            raise NoHold(f"lease {lease_id} has no open hold; a lease is charged only while it has one")
        return known

    def _is_closed(self, lease_id: str) -> bool:
        closed_ms = self._session.execute(select(HOLD.c.closed_ms).where(HOLD.c.lease_id == lease_id)).scalar_one()
        return closed_ms is not None

    def _booked_charges(self, usages: Sequence[Usage]) -> dict[str, Charge]:
        entry_ids = self._book.find([usage.source_id for usage in usages])
        rows = self._meters.booked(list(entry_ids.values()))
        return {source_id: charge_from(rows[entry_id], source_id) for source_id, entry_id in entry_ids.items()}

    def _charge_fresh(self, usages: list[Usage], tails: Tails) -> dict[str, Charge]:
        self._expect_open_holds(usages)
        now_ms = self._now()
        if now_ms < self._finality.through_ms():
            raise UsageTooLate(f"{usages[0].source_id}: usage accepted at {now_ms} is final already; check the clock")
        known = self._meters.known(usages)
        charges = _charge_each(usages, {key: meter.state for key, meter in known.items()}, tails, now_ms)
        ids = self._book.append_new([charged.entry for charged in charges], tails)
        meters = {key: meter.id for key, meter in known.items()}
        meters |= self._meters.open([usage for usage in usages if usage.meter not in known])
        written = [
            (charged, entry_id, meters[charged.usage.meter]) for charged, entry_id in zip(charges, ids, strict=True)
        ]
        self._meters.write(written, accepted_ms=now_ms)
        return {charged.entry.source_id: charged for charged in charges}

    def _expect_open_holds(self, usages: Sequence[Usage]) -> None:
        leases = sorted({usage.lease_id for usage in usages})
        rows = self._session.execute(
            select(HOLD.c.lease_id, HOLD.c.customer).where(among(HOLD.c.lease_id, leases), HOLD.c.closed_ms.is_(None))
        )
        held = {row.lease_id: row.customer for row in rows}
        for usage in usages:
            if held.get(usage.lease_id) != usage.customer:
                raise NoHold(
                    f"lease {usage.lease_id} has no open hold of customer {usage.customer}; it cannot be charged"
                )

    def _plan_undo(self, meter_id: int, back_to_ms: int, held_dc: int, source_id: str) -> tuple[Undo, int]:
        """The undo, and when what is charged again was accepted: its ten minutes do not begin anew."""
        standing = self._meters.standing_newest_first(meter_id)
        passed = [row for row in standing if row["cumulative_gpu_ms"] > back_to_ms]
        rest = standing[len(passed) :]
        before = MeterState()
        if rest:
            before = MeterState(rest[0]["seq"], rest[0]["part"], rest[0]["cumulative_gpu_ms"], rest[0]["charged_dc"])
        if passed and passed[-1]["accepted_ms"] < self._finality.through_ms():
            raise UsageIsFinal(
                f"{source_id}: usage from {passed[-1]['accepted_ms']} on is asked back, but all before "
                f"{self._finality.through_ms()} is final; a later correction comes from the operator's bond"
            )
        charges = [charge_from(row, row["source_id"]) for row in passed]
        plan = booking.undo(
            charges, back_to_ms=back_to_ms, before=before, held_dc=held_dc, source_id=source_id, at_ms=self._now()
        )
        return plan, passed[-1]["accepted_ms"] if passed else self._now()

    def _wrongly_held(self, meter: RowMapping, holders: Holders) -> list[Charge]:
        """Charges of a meter from its first wrong one on, newest first, none of them final."""
        through = self._finality.through_ms()
        rows = [row for row in self._meters.standing_newest_first(meter["id"]) if row["accepted_ms"] >= through]
        charges = [charge_from(row, row["source_id"]) for row in rows]
        wrong = [i for i, one in enumerate(charges) if by_holder(one.usage, one.gpu_ms, holders) != [one.usage]]
        return charges[: max(wrong) + 1] if wrong else []

    def _book_again(self, meter: RowMapping, passed: list[Charge], holders: Holders, source_id: str) -> None:
        held = accounts.held(meter["customer"], meter["lease_id"])
        tails = self._book.lock({held, accounts.usage_pending(meter["gpu_id"])})
        at_ms = self._now()
        name = f"{source_id}/{meter['id']}"
        reversals = [reversal(one.entry, source_id=f"{name}/undo/{i}", at_ms=at_ms) for i, one in enumerate(passed)]
        self._book.append(reversals, tails)
        state = self._meters.known([passed[0].usage])[passed[0].usage.meter].state
        parts = [(one, part) for one in reversed(passed) for part in by_holder(one.usage, one.gpu_ms, holders)]
        for i, (one, cut) in enumerate(parts):
            part = cut  # parts of one receipt that were cut before keep their order behind those cut now
            if cut.seq == state.seq and cut.part <= state.part:
                part = replace(cut, part=state.part + 1)
            charged = booking.charge(
                part, meter=state, held_dc=tails[held].balance, at_ms=at_ms, source_id=f"{name}/again/{i}"
            )
            (entry_id,) = self._book.append([charged.entry], tails)
            self._meters.write([(charged, entry_id, meter["id"])], accepted_ms=one.entry.at_ms)
            state = booking.state_after(charged)

    def _append_undo(self, plan: Undo, meter_id: int, accepted_ms: int, tails: Tails) -> None:
        self._book.append(plan.reversals, tails)
        if plan.again is not None:
            (entry_id,) = self._book.append([plan.again.entry], tails)
            self._meters.write([(plan.again, entry_id, meter_id)], accepted_ms=accepted_ms)


def _charge_each(
    usages: Sequence[Usage], states: dict[MeterKey, MeterState], tails: Tails, now_ms: int
) -> list[Charge]:
    left = {account: tail.balance for account, tail in tails.items() if account.kind is AccountKind.HELD}
    charges: list[Charge] = []
    for usage in usages:
        held = accounts.held(usage.customer, usage.lease_id)
        charged = booking.charge(usage, meter=states.get(usage.meter, _UNUSED), held_dc=left[held], at_ms=now_ms)
        states[usage.meter] = booking.state_after(charged)
        left[held] -= charged.dc
        charges.append(charged)
    return charges


def _expect_same_usage(charged: Charge, usage: Usage) -> None:
    booked = charged.usage
    if (booked.cumulative_gpu_ms, booked.receipt_hash) != (usage.cumulative_gpu_ms, usage.receipt_hash):
        raise SourceConflict(
            f"{usage.source_id} is booked with {booked.cumulative_gpu_ms} ms, not {usage.cumulative_gpu_ms}, or from "
            "another receipt; one number, one receipt"
        )
