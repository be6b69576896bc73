"""What free GPUs are worth follows the arrivals: holes nobody fills are worth little, scarce models much."""

from fabric.placement.fleet import Fleet, Gpu, Node
from fabric.placement.grammar import parse_gpu
from fabric.placement.outlook import CELLS, Outlook
from fabric.placement.request import Request

GB = 10**9


def fleet_of(models: dict[str, int]) -> Fleet:
    fleet = Fleet()
    for model, count in models.items():
        for index in range(count):
            gpus = tuple(
                Gpu(
                    uuid=f"{model}-{index}-{position}",
                    model=model,
                    memory_bytes=80 * GB,
                    prices_dc_per_gpu_hour={"on_demand": 100},
                    share_step_milli=10,
                )
                for position in range(8)
            )
            name = f"{model}-{index}"
            fleet.upsert_node(Node(name=name, operator="a", cluster="a", gpus=gpus, cpu_milli=96_000, memory_bytes=GB))
    return fleet


def arrive(fleet: Fleet, *texts: str, times: int = 20) -> None:
    for _ in range(times):
        for text in texts:
            fleet.saw(Request(gpu=parse_gpu(text), cpu_milli=4_000))


def test_a_hole_is_worth_what_arrivals_would_make_of_it() -> None:
    fleet = fleet_of({"H100": 1})
    arrive(fleet, "H100:0.8", "H100:0.5")
    worth = fleet.outlook.tables(fleet).cell[:, 0]
    assert worth[20] == 0
    assert worth[49] == 0
    assert 300 < worth[50] < 500
    assert worth[80] > worth[70]
    assert worth[CELLS - 1] > worth[80]


def test_a_model_that_many_insist_on_is_dear() -> None:
    fleet = fleet_of({"H100": 1, "L4": 1})
    arrive(fleet, "H100", "H100", ":1")
    scarcity = fleet.outlook.tables(fleet).scarcity
    dear = {model.name: float(scarcity[number]) for number, model in enumerate(fleet.models)}
    assert dear["L4"] == 0
    assert dear["H100"] > 0.5


def test_models_that_all_can_use_are_equally_scarce() -> None:
    fleet = fleet_of({"H100": 1, "L4": 3})
    arrive(fleet, ":1", ":2")
    assert abs(fleet.outlook.tables(fleet).scarcity).max() < 1e-9


def test_whole_gpus_together_are_worth_more_when_many_are_wanted_at_once() -> None:
    fleet = fleet_of({"H100": 1})
    arrive(fleet, "H100:4", "H100")
    gang = fleet.outlook.tables(fleet).gang[0].tolist()
    assert gang[3] == 0 < gang[4] == gang[7] < gang[8]


def test_the_tables_change_at_doublings_only() -> None:
    outlook = Outlook()
    changes = []
    for index in range(1, 70):
        before = outlook.version
        outlook.saw(Request())
        if outlook.version != before:
            changes.append(index)
    assert changes == [16, 32, 64]


def test_memory_of_the_past_is_bounded() -> None:
    outlook = Outlook()
    for index in range(20_000):
        outlook.saw(Request(cpu_milli=index % 3000))
    assert len(outlook._counts) <= 3000 + 1024
    assert sum(outlook._counts.values()) <= 16_384 + 4_096
